// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest's regions, as the kernel describes them. The kernel answers even while QEMU and vmemd do not.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use vmem::{Access, Error, Info, MapHandle};

use crate::record::Incoming;

/// The state of all regions of a guest together at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// All regions exist, and have the recorded numbers.
    pub(super) exist: bool,
    /// A process maps one of the regions, or may do so.
    pub(super) mapped: bool,
    /// All regions are plain memory.
    pub(super) plain: bool,
    /// Each region that is not plain memory has a daemon.
    pub(super) attached: bool,
    /// The number of present pages.
    pub(super) present: u64,
}

/// The regions of a guest.
#[derive(Clone)]
pub(super) struct Regions {
    names: Vec<String>,
    inspect: Arc<dyn Fn() -> State + Send + Sync>,
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Regions").field(&self.names).finish()
    }
}

impl Regions {
    /// The regions of the recorded guest.
    pub(super) fn of(record: &Incoming) -> Self {
        let (names, ids) = (record.regions.clone(), record.region_ids.clone());
        let inspect = move || inspect(&names, &ids);
        Self {
            names: record.regions.clone(),
            inspect: Arc::new(inspect),
        }
    }

    /// Regions in the state that `inspect` returns, for tests.
    #[cfg(test)]
    pub(super) fn fake(inspect: impl Fn() -> State + Send + Sync + 'static) -> Self {
        Self {
            names: Vec::new(),
            inspect: Arc::new(inspect),
        }
    }

    /// The current state.
    pub(super) fn inspect(&self) -> State {
        (self.inspect)()
    }
}

/// The number of each region. The kernel never gives it to another region.
pub(super) fn ids(names: &[String]) -> Result<Vec<u64>, Error> {
    names.iter().map(|name| info(name).map(|info| info.id)).collect()
}

fn info(name: &str) -> Result<Info, Error> {
    MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info())
}

fn inspect(names: &[String], ids: &[u64]) -> State {
    let mut state = State {
        exist: true,
        mapped: false,
        plain: true,
        attached: true,
        present: 0,
    };
    for (at, name) in names.iter().enumerate() {
        match info(name) {
            Ok(info) if ids.get(at).is_none_or(|id| *id == info.id) => {
                // The kernel does not count mappings of a plain region.
                state.mapped |= info.plain || info.mappings > 0;
                state.plain &= info.plain;
                state.attached &= info.plain || info.attached;
                state.present += info.present;
            }
            // A new region of the same name belongs to another guest.
            Ok(_)
            | Err(Error::Open {
                source: Errno::NOENT | Errno::NXIO | Errno::NODEV,
                ..
            }) => (state.exist, state.plain, state.attached) = (false, false, false),
            // Any other error does not prove that the region is gone, so it may be mapped.
            Err(_) => (state.mapped, state.plain) = (true, false),
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_region_is_neither_mapped_nor_plain() {
        let state = inspect(&["no-such-region-here".to_owned()], &[1]);
        assert_eq!(
            state,
            State {
                exist: false,
                mapped: false,
                plain: false,
                attached: false,
                present: 0
            }
        );
    }
}
