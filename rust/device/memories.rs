// SPDX-License-Identifier: GPL-2.0

//! All adopted memory, and its logs.

use super::{
    region::Region,
    registry::Handle,
    tracking::Tracking, //
};
use crate::sys::{
    global::global_mutex,
    shared::{
        InodeId,
        SharedMemory, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Release, //
        },
        Arc,
        UniqueArc, //
    }, //
};

global_mutex! {
    static MEMORIES: Mutex<KVec<Entry>> = KVec::new(), initialized by init;
}

struct Entry {
    inode_id: InodeId,
    tracking: Option<Arc<Tracking>>,
}

/// Adopted shared memory. It has one descriptor.
pub(crate) struct AdoptedMemory {
    shared: SharedMemory,
    id: u64,
    /// The region that the memory belongs to, if any.
    region: Option<Arc<Handle>>,
    tracked: Atomic<bool>,
}

impl AdoptedMemory {
    /// Adopts memory. `EBUSY` if it is adopted already, or if another open file could write to it.
    pub(crate) fn adopt(shared: SharedMemory, id: u64) -> Result<Arc<Self>> {
        Self::new(shared, id, None)
    }

    /// Adopts the memory of a region, whose pages need not all be present.
    pub(crate) fn adopt_region(handle: Arc<Handle>) -> Result<Arc<Self>> {
        let region = handle.region();
        let shared = SharedMemory::of_region(region.staging());
        let id = region.id();
        Self::new(shared, id, Some(handle))
    }

    fn new(shared: SharedMemory, id: u64, region: Option<Arc<Handle>>) -> Result<Arc<Self>> {
        let room = UniqueArc::<Self>::new_uninit(GFP_KERNEL)?;
        let inode_id = shared.inode_id();
        {
            let mut memories = MEMORIES.lock();
            if memories.iter().any(|entry| entry.inode_id == inode_id) {
                return Err(EBUSY);
            }
            memories.push(
                Entry {
                    inode_id,
                    tracking: None,
                },
                GFP_KERNEL,
            )?;
        }
        // From here on, `drop` removes it from the list.
        let memory: Arc<Self> = room
            .write(Self {
                shared,
                id,
                region,
                tracked: Atomic::new(false),
            })
            .into();
        if !memory.shared.is_sole_writer() {
            return Err(EBUSY);
        }
        Ok(memory)
    }

    /// The memory itself.
    pub(crate) fn shared(&self) -> &SharedMemory {
        &self.shared
    }

    /// The handle of the region that the memory belongs to, if any.
    pub(crate) fn handle(&self) -> Option<&Arc<Handle>> {
        self.region.as_ref()
    }

    /// The region that the memory belongs to, if any.
    pub(crate) fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref().map(|handle| handle.region())
    }

    /// Number of the region.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Marks the memory as tracked. `EALREADY` if it is tracked, or if tracking is ending.
    pub(super) fn begin_tracking(&self, tracking: Arc<Tracking>) -> Result {
        self.tracked
            .cmpxchg(false, true, Full)
            .map_err(|_| EALREADY)?;
        self.set_tracking(Some(tracking));
        Ok(())
    }

    /// Hides the log from system calls and new mappings.
    pub(super) fn forget_tracking(&self) {
        self.set_tracking(None);
    }

    /// Lets the memory be tracked again.
    pub(super) fn end_tracking(&self) {
        self.tracked.store(false, Release);
    }

    fn set_tracking(&self, tracking: Option<Arc<Tracking>>) {
        let inode_id = self.shared.inode_id();
        // The old log is dropped without the lock.
        let _before = {
            let mut memories = MEMORIES.lock();
            let entry = memories.iter_mut().find(|entry| entry.inode_id == inode_id);
            entry.map(|entry| core::mem::replace(&mut entry.tracking, tracking))
        };
    }
}

impl Drop for AdoptedMemory {
    fn drop(&mut self) {
        let inode_id = self.shared.inode_id();
        let mut memories = MEMORIES.lock();
        let at = memories.iter().position(|entry| entry.inode_id == inode_id);
        let _entry = at.and_then(|at| memories.remove(at).ok());
        if memories.is_empty() {
            // A static is not dropped when the module is unloaded.
            *memories = KVec::new();
        }
    }
}

/// Calls `then` with the log that a write to `memory` belongs to, if there is one. `log` is the log
/// that the written mapping was made for. It may have ended, and another one may have begun, while
/// the mapping was being made.
pub(crate) fn with_log<R>(
    log: Option<&Tracking>,
    memory: InodeId,
    then: impl FnOnce(&Tracking) -> R,
) -> Option<R> {
    match log.filter(|log| !log.is_over()) {
        Some(log) => Some(then(log)),
        None => tracking_of(memory).map(|log| then(&log)),
    }
}

/// The log of a region, if it is tracked.
pub(crate) fn tracking_of_region(region: &Region) -> Option<Arc<Tracking>> {
    tracking_of(InodeId::of_region(region.staging()))
}

/// The log of a memory, if it is tracked.
pub(crate) fn tracking_of(inode_id: InodeId) -> Option<Arc<Tracking>> {
    let memories = MEMORIES.lock();
    let entry = memories.iter().find(|entry| entry.inode_id == inode_id)?;
    entry.tracking.clone()
}
