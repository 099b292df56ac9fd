// SPDX-License-Identifier: GPL-2.0

//! Memory while it is tracked.

use super::{
    memories::{
        self,
        Memory, //
    },
    tracking::{
        Found,
        Tracking, //
    }, //
};
use crate::{
    model::range::PageRange,
    sys::{
        shared::Identity,
        staging::Shmem,
        task::nap,
        tracked::{
            Hold,
            TrackOps,
            WriteLog, //
        }, //
    }, //
};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::Arc,
    workqueue::{
        self,
        Work,
        WorkItem, //
    }, //
};

static OPS: TrackOps<Tracking> = TrackOps::new();

/// Makes the operations of tracked memory ready.
pub(crate) fn init(shmem: Shmem, module: &'static ThisModule) -> Shmem {
    OPS.init(module, &shmem);
    shmem
}

impl WriteLog for Tracking {
    fn ops() -> &'static TrackOps<Self> {
        &OPS
    }

    fn of(memory: Identity) -> Option<Arc<Self>> {
        memories::tracking_of(memory)
    }

    fn admit(&self) {
        Tracking::admit(self);
    }

    fn write_fault(&self, pages: PageRange) {
        Tracking::write_fault(self, pages);
    }

    fn written(&self, range: PageRange) {
        Tracking::written(self, range);
    }
}

/// From TRACK to UNTRACK. The memory has our operations as long as this has not ended.
#[pin_data]
pub(crate) struct Tracked {
    memory: Arc<Memory>,
    tracking: Arc<Tracking>,
    hold: Hold<Tracking>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Tracked { self.work }
}

impl WorkItem for Tracked {
    type Pointer = Arc<Self>;

    /// A worker is not killed, so that the end succeeds, unless there is no memory for the moment.
    fn run(this: Arc<Self>) {
        if this.try_end().is_err() {
            let _ = nap();
            let _ = workqueue::system_unbound().enqueue(this);
        }
    }
}

impl Tracked {
    /// Begins to log writes. Also returns how many pages somebody has in hand. On an error the memory is as
    /// before, or soon will be.
    pub(crate) fn start(memory: &Arc<Memory>) -> Result<(Arc<Self>, u64)> {
        let tracking = Tracking::new(memory.shared())?;
        let hold = Hold::new(memory.shared(), &tracking)?;
        let log = tracking.clone();
        let tracked = Arc::pin_init(
            pin_init!(Self {
                memory: memory.clone(),
                tracking: log,
                hold,
                work <- new_work!("vmem_untrack"),
            }),
            GFP_KERNEL,
        )?;
        memory.begin_tracking(tracking)?;
        if let Err(e) = tracked.hold.begin(memory.shared()) {
            memory.forget_tracking();
            memory.end_tracking();
            return Err(e);
        }
        match tracked.tracking.begin(memory.shared(), &tracked.hold) {
            Ok(held) => Ok((tracked, held)),
            Err(e) => {
                let _ = tracked.end();
                Err(e)
            }
        }
    }

    /// Ends it. If the task is being killed (`EINTR`) or there is no memory it ends soon, without the
    /// task.
    pub(crate) fn end(self: Arc<Self>) -> Result {
        self.try_end().inspect_err(|_| {
            let _ = workqueue::system_unbound().enqueue(self);
        })
    }

    fn try_end(&self) -> Result {
        self.memory.forget_tracking();
        self.hold.end(self.memory.shared())?;
        self.memory.end_tracking();
        Ok(())
    }

    /// The log.
    pub(crate) fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    /// How many mappings are tracked, up to `max`.
    pub(crate) fn mappings(&self, max: usize) -> u64 {
        self.hold.mappings(self.memory.shared(), max)
    }

    /// [`Tracking::clean`] of this memory.
    pub(crate) fn clean(&self, chunk: PageRange) -> Result<Found> {
        self.tracking.clean(self.memory.shared(), chunk)
    }
}
