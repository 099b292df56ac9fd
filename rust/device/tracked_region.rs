// SPDX-License-Identifier: GPL-2.0

//! A region while its memory is tracked.

use super::{
    fault::Mapped,
    region::Region,
    registry::Handle,
    tracking::Tracking, //
};
use crate::sys::{
    mm::Mappings,
    task::synchronize_rcu,
    vm_ops::MapFile, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};

/// The operations of a tracked region's mappings, and those that they get when tracking ends.
pub(super) struct TrackedRegion {
    handle: Arc<Handle>,
    /// Whether pages that the daemon fills are logged.
    fills: bool,
    logged: MapFile<Mapped>,
    plain: MapFile<Mapped>,
}

impl TrackedRegion {
    /// For this region and this log. Nothing has changed yet.
    pub(super) fn new(handle: &Arc<Handle>, tracking: &Arc<Tracking>, fills: bool) -> Result<Self> {
        let region = handle.region();
        let file = |mapped| MapFile::new(region.staging(), region.label(), mapped);
        Ok(Self {
            handle: handle.clone(),
            fills,
            logged: file(Mapped::logged(handle.clone(), tracking.clone()))?,
            plain: file(Mapped::new(handle.clone()))?,
        })
    }

    fn region(&self) -> &Region {
        self.handle.region()
    }

    /// The lock for changing the region's mappings. `EINTR` if the task is being killed.
    pub(super) fn lock_mappings(&self) -> Result<MutexGuard<'_, ()>> {
        self.region().lock_mappings()
    }

    /// From now on, faults, fills and new mappings find the log.
    pub(super) fn begin(&self) {
        self.region().start_log(self.fills);
    }

    /// Makes the region's mappings log writes, except for those that are being made: these look for
    /// the log whenever a page is mapped. `EINTR` if the task is being killed.
    pub(super) fn track_mappings(&self) -> Result {
        Mappings::of(self.region().staging()).start_logging(&self.logged)?;
        // Threads that looked before map pages with the folio locked or in an RCU read-side
        // section, or map none.
        self.region().pages().await_fills()?;
        synchronize_rcu();
        Ok(())
    }

    /// How many mappings log writes, up to `max`.
    pub(super) fn mappings(&self, max: usize) -> u64 {
        Mappings::<Mapped>::of(self.region().staging()).count_logged(max)
    }

    /// Makes all mappings stop logging writes. `EINTR` as above; the call can be repeated.
    pub(super) fn end(&self) -> Result {
        self.region().end_log();
        Mappings::of(self.region().staging()).stop_logging(&self.plain)
    }
}
