// SPDX-License-Identifier: GPL-2.0

//! A region of ours while it is tracked.

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

/// What the mappings of a region have while it is tracked, and what they get when it is not any more.
pub(super) struct TrackedRegion {
    handle: Arc<Handle>,
    /// Whether pages that the daemon fills are logged.
    fills: bool,
    logged: MapFile<Mapped>,
    plain: MapFile<Mapped>,
}

impl TrackedRegion {
    /// For this region and this log; nothing has changed yet.
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

    /// The right to change its mappings. `EINTR` if the task is being killed.
    pub(super) fn lock_mappings(&self) -> Result<MutexGuard<'_, ()>> {
        self.region().lock_mappings()
    }

    /// Those who look from now on see the log.
    pub(super) fn begin(&self) {
        self.region().start_log(self.fills);
    }

    /// Has its mappings tell of writes, but for those that are just being made: they look for the log
    /// whenever a page is mapped. `EINTR` if the task is being killed.
    pub(super) fn track_mappings(&self) -> Result {
        Mappings::of(self.region().staging()).start_logging(&self.logged)?;
        // Who has looked before maps pages with their folios locked, in a read-side section, or not at
        // all.
        self.region().pages().await_fills()?;
        synchronize_rcu();
        Ok(())
    }

    /// How many mappings tell of writes, up to `max`.
    pub(super) fn mappings(&self, max: usize) -> u64 {
        Mappings::<Mapped>::of(self.region().staging()).count_logged(max)
    }

    /// None does so any more, or never has. `EINTR` as above; it can be called again.
    pub(super) fn end(&self) -> Result {
        self.region().end_log();
        Mappings::of(self.region().staging()).stop_logging(&self.plain)
    }
}
