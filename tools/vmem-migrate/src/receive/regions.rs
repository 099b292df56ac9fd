// SPDX-License-Identifier: GPL-2.0
//! A guest's regions, as the kernel describes them. It answers also when QEMU and the daemon do not.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use vmem::{Access, Error, Info, MapHandle};

use crate::record::Incoming;

/// What all regions of a guest are at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// All exist, and are those that were recorded.
    pub(super) exist: bool,
    /// A process maps one of them, or may do so.
    pub(super) mapped: bool,
    /// All are plain memory.
    pub(super) plain: bool,
    /// Each that is not plain has a daemon.
    pub(super) attached: bool,
    /// Pages that are present.
    pub(super) present: u64,
}

/// The regions of a guest.
#[derive(Clone)]
pub(super) struct Regions {
    names: Vec<String>,
    look: Arc<dyn Fn() -> State + Send + Sync>,
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Regions").field(&self.names).finish()
    }
}

impl Regions {
    /// The regions of a guest that is recorded.
    pub(super) fn of(record: &Incoming) -> Self {
        let (names, ids) = (record.regions.clone(), record.region_ids.clone());
        let look = move || look(&names, &ids);
        Self {
            names: record.regions.clone(),
            look: Arc::new(look),
        }
    }

    /// Regions that are what `look` says, for tests.
    #[cfg(test)]
    pub(super) fn fake(look: impl Fn() -> State + Send + Sync + 'static) -> Self {
        Self {
            names: Vec::new(),
            look: Arc::new(look),
        }
    }

    /// How they are now.
    pub(super) fn look(&self) -> State {
        (self.look)()
    }
}

/// The number of each region, which no other one ever has.
pub(super) fn ids(names: &[String]) -> Result<Vec<u64>, Error> {
    names.iter().map(|name| info(name).map(|info| info.id)).collect()
}

fn info(name: &str) -> Result<Info, Error> {
    MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info())
}

fn look(names: &[String], ids: &[u64]) -> State {
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
                // What maps a plain region is not counted.
                state.mapped |= info.plain || info.mappings > 0;
                state.plain &= info.plain;
                state.attached &= info.plain || info.attached;
                state.present += info.present;
            }
            // A new region of the same name is another guest's.
            Ok(_)
            | Err(Error::Open {
                source: Errno::NOENT | Errno::NXIO | Errno::NODEV,
                ..
            }) => (state.exist, state.plain, state.attached) = (false, false, false),
            // It may exist.
            Err(_) => (state.mapped, state.plain) = (true, false),
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_that_does_not_exist_is_neither_mapped_nor_plain() {
        let state = look(&["no-such-region-here".to_owned()], &[1]);
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
