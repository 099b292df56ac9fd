// SPDX-License-Identifier: GPL-2.0

//! Memory while it is tracked.

use super::{
    dirty::ReadableLog,
    fault::Mapped,
    memories::{
        self,
        AdoptedMemory, //
    },
    tracked_region::TrackedRegion,
    tracking::{
        DirtyChunk,
        FirstPages,
        Tracking, //
    }, //
};
use crate::{
    model::{
        dirty_log::ChunkBits,
        range::PageRange, //
    },
    sys::{
        shared::InodeId,
        staging::Shmem,
        task::{
            sleep_killable,
            system_dfl_wq, //
        },
        tracked::{
            OpsOverride,
            TrackedOps,
            WriteLog, //
        },
        vm_ops,
        write_fault::WriteFault, //
    }, //
};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

static OPS: TrackedOps<Tracking> = TrackedOps::new();

/// Initializes the operations of tracked memory.
pub(crate) fn init(shmem: Shmem, module: &'static ThisModule) -> Shmem {
    OPS.init(module, &shmem);
    shmem
}

impl WriteLog for Tracking {
    fn ops() -> &'static TrackedOps<Self> {
        &OPS
    }

    fn of(memory: InodeId) -> Option<Arc<Self>> {
        memories::tracking_of(memory)
    }

    fn admit(&self, pages: Option<PageRange>) -> Result {
        Tracking::admit(self, pages)
    }

    fn leave(&self) {
        self.copy_before_write().leave();
    }

    fn write_fault(&self, memory: InodeId, fault: &WriteFault<'_>) -> bool {
        memories::with_log(Some(self), memory, |log| log.log_fault(fault)).unwrap_or(true)
    }

    fn await_writable(&self, memory: InodeId) {
        memories::with_log(Some(self), memory, |log| {
            log.copy_before_write().await_open()
        });
    }

    fn log_write(&self, range: PageRange) {
        Tracking::log_write(self, range);
    }
}

/// A memory from TRACK to UNTRACK. It has the operations of tracked memory until this has ended.
#[pin_data]
pub(crate) struct Tracked {
    memory: Arc<AdoptedMemory>,
    tracking: Arc<Tracking>,
    ops_override: OpsOverride<Tracking>,
    region: Option<TrackedRegion>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Tracked { self.work }
}

impl WorkItem for Tracked {
    type Pointer = Arc<Self>;

    /// Ends tracking. A worker is not killed, so this succeeds unless memory is short; then it is
    /// tried again.
    fn run(this: Arc<Self>) {
        if this.try_end().is_err() {
            let _ = sleep_killable();
            let _ = system_dfl_wq().enqueue(this);
        }
    }
}

impl Tracked {
    /// Starts logging writes, and with `fills` also the fills of a region's daemon. Also returns
    /// how many pages are held, of those that were looked at. After an error the memory is as
    /// before, or soon will be.
    pub(crate) fn start(
        memory: &Arc<AdoptedMemory>,
        begins_with: FirstPages,
        fills: bool,
    ) -> Result<(Arc<Self>, u64)> {
        let tracking = Tracking::new(memory.shared())?;
        let ops_override = OpsOverride::new(memory.shared(), &tracking)?;
        let region = memory
            .handle()
            .map(|handle| TrackedRegion::new(handle, &tracking, fills))
            .transpose()?;
        let log = tracking.clone();
        let tracked = Arc::pin_init(
            pin_init!(Self {
                memory: memory.clone(),
                tracking: log,
                ops_override,
                region,
                work <- new_work!("vmem_untrack"),
            }),
            GFP_KERNEL,
        )?;
        memory.begin_tracking(tracking)?;
        match tracked.begin(begins_with) {
            Ok(held) => Ok((tracked, held)),
            Err(e) => {
                let _ = tracked.end();
                Err(e)
            }
        }
    }

    /// The lock for changing the mappings of a region, if the memory is one. `EINTR` if the task is
    /// being killed.
    fn lock_mappings(&self) -> Result<Option<MutexGuard<'_, ()>>> {
        self.region
            .as_ref()
            .map(TrackedRegion::lock_mappings)
            .transpose()
    }

    fn begin(&self, begins_with: FirstPages) -> Result<u64> {
        let _mappings = self.lock_mappings()?;
        let memory = self.memory.shared();
        self.ops_override.install(memory)?;
        if let Some(region) = &self.region {
            region.begin();
        }
        self.tracking.begin(memory, begins_with, || {
            let region = self
                .region
                .as_ref()
                .map(|_| <Mapped as vm_ops::VmOps>::VM_OPS);
            // Check all mappings before any is changed.
            self.ops_override.check_mappings(memory, region)?;
            self.ops_override.track_mappings(memory)?;
            if let Some(region) = &self.region {
                region.track_mappings()?;
                memory.await_unlocked(self.tracking.all())?;
            }
            Ok(())
        })
    }

    /// Ends tracking. If the task is being killed (`EINTR`) or memory is short, a worker ends it
    /// soon.
    pub(crate) fn end(self: Arc<Self>) -> Result {
        self.try_end().inspect_err(|_| self.end_soon())
    }

    /// Lets a worker end tracking.
    pub(crate) fn end_soon(self: Arc<Self>) {
        let _ = system_dfl_wq().enqueue(self);
    }

    fn try_end(&self) -> Result {
        let _mappings = self.lock_mappings()?;
        self.tracking.end();
        self.memory.forget_tracking();
        if let Some(region) = &self.region {
            region.end()?;
        }
        self.ops_override.restore(self.memory.shared())?;
        self.memory.end_tracking();
        Ok(())
    }

    /// The log.
    pub(crate) fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    /// How many mappings are tracked, up to `max`.
    pub(crate) fn mappings(&self, max: usize) -> u64 {
        let region = self
            .region
            .as_ref()
            .map_or(0, |region| region.mappings(max));
        region.saturating_add(self.ops_override.mappings(self.memory.shared(), max))
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &Arc<AdoptedMemory> {
        &self.memory
    }
}

impl ReadableLog for Tracked {
    const CLEANS: bool = true;

    fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        self.tracking.range(pgoff, nr)
    }

    fn peek(&self, chunk: PageRange) -> ChunkBits {
        self.tracking.reader().peek(chunk)
    }

    fn clean(&self, chunk: PageRange) -> Result<DirtyChunk> {
        self.tracking.reader().clean(self.memory.shared(), chunk)
    }

    fn mark(&self, range: PageRange) {
        self.tracking.mark(range);
    }

    fn mark_bits(&self, chunk: PageRange, bits: &ChunkBits) {
        self.tracking.mark_bits(chunk, bits);
    }

    fn count_cleaned(&self, nr: u64) {
        self.tracking.cleaned.add(nr);
    }
}
