// SPDX-License-Identifier: GPL-2.0-or-later
//! Blobs: backends whose size is known when they end.

use std::io::Read;
use std::sync::{Arc, PoisonError};

use vmem_pages::PAGE_SIZE;

use super::Writer;
use super::plan::{Plan, check_name};
use crate::error::Error;
use crate::manifest::BackendKind;

impl Writer {
    /// Adds a blob of at most `limit` bytes, until `contents` ends: the device state, for example. The parent's blob of the same name is
    /// what its pages are compared with. Gives the bytes.
    pub fn put_blob(&self, name: &str, contents: &mut dyn Read, limit: u64) -> Result<u64, Error> {
        check_name(name)?;
        let known = self
            .parent
            .as_ref()
            .and_then(|parent| parent.manifest().backend(name))
            .filter(|(_, known)| known.kind == BackendKind::Blob);
        let mut plan = Plan {
            name: name.to_owned(),
            kind: BackendKind::Blob,
            bytes: 0,
            parent: known.map(|(at, _)| at),
            inherits: false,
        };
        let backend = {
            let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            if plans.iter().any(|plan| plan.name == name) {
                return Err(Error::Name(format!("backend {name} is there twice")));
            }
            plans.push(Arc::new(plan.clone()));
            plans.len() - 1
        };
        let mut chunk = vec![0; self.base.config.frame_pages as usize * PAGE_SIZE];
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match contents.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let error = Error::Object {
                            action: "read",
                            name: format!("the contents of {name}"),
                            cause: error.into(),
                        };
                        return Err(self.lock().fail(error));
                    }
                }
            }
            let first = plan.bytes / PAGE_SIZE as u64;
            plan.bytes += filled as u64;
            if plan.bytes > limit {
                return Err(self
                    .lock()
                    .fail(Error::TooLarge(format!("{name} has more than {limit} bytes"))));
            }
            let whole = filled.div_ceil(PAGE_SIZE) * PAGE_SIZE;
            chunk[filled..whole].fill(0);
            self.put(&plan, backend, first, &chunk[..whole], true)?;
            if filled < chunk.len() {
                break;
            }
        }
        let bytes = plan.bytes;
        if let Some(known) = self.plans.lock().unwrap_or_else(PoisonError::into_inner).get_mut(backend) {
            *known = Arc::new(plan);
        }
        Ok(bytes)
    }
}
