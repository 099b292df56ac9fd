// SPDX-License-Identifier: GPL-2.0

//! A region.

use super::{
    backing::Extents,
    daemon::Daemon,
    file_times::FileTimes,
    pages::{
        Counter,
        Pages, //
    },
    primitives::WaitParams,
    timed_out::TimedOutFaults, //
};
use crate::{
    model::{
        page_map::Verdict,
        range::{
            pages_for,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        fault_address::FaultAddress,
        memcg::Memcg,
        staging::Staging,
        task::sleep_killable,
        uapi::{
            VMEM_CREATE_HUGE,
            VMEM_CREATE_POISON,
            VMEM_CREATE_SIGBUS, //
        },
        wait::{
            WaitMode,
            WaitOutcome, //
        }, //
    }, //
};
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        barrier::smp_mb,
        Arc,
        Mutex,
        MutexGuard,
        SpinLock, //
    }, //
};

const NOTHING: u32 = 0;
const WRITES: u32 = 1;
const WRITES_AND_FILLS: u32 = 2;

/// The parameters of a new region.
pub(crate) struct Config {
    /// Number of the region.
    pub(crate) id: u64,
    /// The name in `/proc/PID/maps`.
    pub(crate) label: CString,
    /// Size of its file in bytes. The region has as many pages as these take.
    pub(crate) length: u64,
    /// `VMEM_CREATE` bits.
    pub(crate) flags: u32,
    /// How long a touch waits, in milliseconds; 0 is no limit.
    pub(crate) fault_timeout_ms: u32,
}

impl Config {
    fn wants_huge(&self) -> bool {
        self.flags & VMEM_CREATE_HUGE != 0
    }
}

/// A region.
#[pin_data]
pub(crate) struct Region {
    config: Config,
    staging: Staging,
    #[pin]
    pages: Pages,
    #[pin]
    daemon: Daemon,
    plain: Atomic<bool>,
    /// Whether some pages may have backing.
    backed: Atomic<bool>,
    /// What backs the pages. Each shard has a reference, for which this is changed first.
    #[pin]
    backings: Mutex<Option<Arc<Extents>>>,
    /// The times of its file.
    pub(crate) times: FileTimes,
    /// Faults answered with SIGBUS since creation.
    pub(crate) sigbus: Counter,
    /// Faults that have waited too long, and whose mappings cannot make the page unreadable for all
    /// processes.
    pub(crate) timed_out: TimedOutFaults,
    /// What is logged: nothing, writes, or writes and the daemon's fills.
    log: Atomic<u32>,
    /// Held while mappings are changed to other operations.
    #[pin]
    mappings_lock: Mutex<()>,
    /// The memory cgroup that pages are charged to: that of the first program that mapped the
    /// region and whose cgroup has not been removed.
    #[pin]
    charge: SpinLock<Option<Arc<Memcg>>>,
}

impl Region {
    /// A region whose pages are all absent, and which has no daemon.
    pub(crate) fn new(config: Config) -> Result<Arc<Self>> {
        let staging = Staging::new(&config.label, config.length, config.wants_huge())?;
        let pages = Pages::new(pages_for(config.length).ok_or(EFBIG)?)?;
        Arc::pin_init(
            pin_init!(Self {
                config,
                staging,
                pages <- pages,
                daemon <- Daemon::none(),
                plain: Atomic::new(false),
                backed: Atomic::new(false),
                backings <- new_mutex!(None),
                times: FileTimes::now(),
                sigbus: Counter::new(),
                timed_out: TimedOutFaults::new(),
                log: Atomic::new(NOTHING),
                mappings_lock <- new_mutex!(()),
                charge <- new_spinlock!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Number of the region.
    pub(crate) fn id(&self) -> u64 {
        self.config.id
    }

    /// The name in `/proc/PID/maps`.
    pub(crate) fn label(&self) -> &CStr {
        &self.config.label
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.pages.nr().saturating_mul(PAGE_SIZE)
    }

    /// Size of its file in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.config.length
    }

    /// `VMEM_CREATE` bits.
    pub(crate) fn flags(&self) -> u32 {
        self.config.flags
    }

    /// Whether its memory should be huge pages, also after conversion.
    pub(crate) fn wants_huge(&self) -> bool {
        self.config.wants_huge()
    }

    /// The staging file.
    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// The pages.
    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The daemon.
    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Whether new mappings are plain memory.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain.load(Acquire)
    }

    /// Makes new mappings plain memory. No thread has to wait for a page any more.
    pub(crate) fn set_plain(&self) {
        self.staging.allow_open();
        self.plain.store(true, Release);
        self.daemon.ready_waiters.wake_all();
        self.pages.request_waiters.wake_all();
    }

    /// The lock for changing mappings to other operations. `EINTR` if the task is being killed.
    pub(crate) fn lock_mappings(&self) -> Result<MutexGuard<'_, ()>> {
        // The holder may wait for locks of other processes.
        lock_killable(&self.mappings_lock)
    }

    /// Whether some pages may have backing.
    pub(crate) fn is_backed(&self) -> bool {
        self.backed.load(Acquire)
    }

    /// Says so, before a shard has backing, or not any more.
    pub(super) fn set_backed(&self, backed: bool) {
        self.backed.store(backed, Release);
    }

    /// What backs the pages, to be changed. `EINTR` if the task is being killed.
    pub(super) fn lock_backings(&self) -> Result<MutexGuard<'_, Option<Arc<Extents>>>> {
        lock_killable(&self.backings)
    }

    /// Starts logging writes, and with `fills` also the daemon's fills.
    pub(crate) fn start_log(&self, fills: bool) {
        let log = if fills { WRITES_AND_FILLS } else { WRITES };
        self.log.store(log, Release);
    }

    /// Stops logging.
    pub(crate) fn end_log(&self) {
        self.log.store(NOTHING, Release);
    }

    /// Whether writes are logged. The caller has the page's folio, or its `fill`, locked: the start
    /// of a log waits until each of these was unlocked once.
    pub(crate) fn is_logged(&self) -> bool {
        // The lock is taken before the log is read.
        smp_mb(Full);
        self.log.load(Acquire) != NOTHING
    }

    /// Whether the daemon's fills are logged.
    pub(crate) fn logs_fills(&self) -> bool {
        self.log.load(Acquire) == WRITES_AND_FILLS
    }

    /// Whether a touch of an absent page fails at once: no daemon is attached, and the region has
    /// `VMEM_CREATE_SIGBUS`.
    pub(crate) fn fails_absent_touches(&self) -> bool {
        self.config.flags & VMEM_CREATE_SIGBUS != 0 && !self.daemon.is_attached()
    }

    /// Whether a touch that has requested this page fails at once. The page is looked at after the
    /// daemon, which may have brought it before its end.
    pub(crate) fn fails_request(&self, pgoff: u64) -> bool {
        self.fails_absent_touches() && self.pages.is_requested(pgoff)
    }

    /// Whether an unreadable page counts as broken memory.
    pub(crate) fn poisons(&self) -> bool {
        self.config.flags & VMEM_CREATE_POISON != 0
    }

    /// Waits until the page is present or unreadable, the region's time limit has passed, or
    /// touches fail without a daemon.
    pub(crate) fn await_page(
        &self,
        pgoff: u64,
        address: Option<FaultAddress>,
        mode: WaitMode,
    ) -> WaitOutcome {
        self.await_page_for(pgoff, self.wait_params(address, mode))
    }

    /// Makes a page unreadable that has not arrived in time, unless it has just become present.
    pub(crate) fn set_unreadable(&self, pgoff: u64) {
        if let Ok(page) = self.pages.range(pgoff, 1) {
            let _ = self.pages.settle(page, Verdict::Unreadable);
        }
    }

    /// Waits in the same way, with other parameters.
    pub(crate) fn await_page_for(&self, pgoff: u64, params: WaitParams) -> WaitOutcome {
        self.await_page_unless(pgoff, params, || false)
    }

    /// The same, or until `cancelled`. [`Pages::wake_waiters`] makes the waiting threads check
    /// that.
    pub(crate) fn await_page_unless(
        &self,
        pgoff: u64,
        params: WaitParams,
        cancelled: impl Fn() -> bool,
    ) -> WaitOutcome {
        self.pages.wait(pgoff, params, || {
            cancelled() || (self.fails_absent_touches() && !self.pages.is_claimed(pgoff))
        })
    }

    /// How a touch waits for a page.
    pub(crate) fn wait_params(&self, address: Option<FaultAddress>, mode: WaitMode) -> WaitParams {
        WaitParams {
            mode,
            ms: self.config.fault_timeout_ms,
            address,
        }
    }

    /// The memory cgroup to charge pages to.
    pub(crate) fn charge(&self) -> Option<Arc<Memcg>> {
        self.charge.lock().clone()
    }

    /// A program maps the region. The first program's cgroup is charged for it, as long as that
    /// cgroup exists.
    pub(crate) fn charge_to_current(&self) -> Result {
        let is_there = |payer: &Option<Arc<Memcg>>| payer.as_deref().is_some_and(Memcg::is_online);
        if is_there(&self.charge.lock()) {
            return Ok(());
        }
        let Some(memcg) = Memcg::of_current() else {
            return Ok(());
        };
        let memcg = Arc::new(memcg, GFP_KERNEL)?;
        let mut payer = self.charge.lock();
        if !is_there(&payer) {
            *payer = Some(memcg);
        }
        Ok(())
    }
}

/// Locks a mutex whose holder may wait for long. `EINTR` if the task is being killed.
pub(super) fn lock_killable<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    loop {
        match mutex.try_lock() {
            Some(guard) => return Ok(guard),
            None => sleep_killable()?,
        }
    }
}
