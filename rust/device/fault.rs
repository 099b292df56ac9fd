// SPDX-License-Identifier: GPL-2.0

//! Faults in the mappings of a region.

use super::{
    discard::discard,
    memories,
    primitives::WaitParams,
    region::Region,
    registry::Handle,
    touch::touch_to_map,
    tracking::Tracking, //
};
use crate::{
    model::{
        page_map::Touch,
        range::{
            PageRange,
            BLOCK_PAGES, //
        }, //
    },
    sys::{
        fault::{
            Fault,
            FaultPolicy,
            MapDecision,
            RetryMode, //
        },
        mm::Mappings,
        shared::InodeId,
        staging::FilledPage,
        vm_fault_reason::VmFaultReason,
        vm_ops::{
            MapFileOps,
            VmOps,
            VmOpsTables, //
        },
        wait::{
            WaitMode,
            WaitOutcome, //
        },
        write_fault::WriteFault, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A wait of one second, for a wait that blocks other tasks. A thread that no signal reaches keeps
/// its process from exiting, and a debugger holds the mmap lock of another process. The task is not
/// frozen in it.
const BOUNDED_WAIT: WaitParams = WaitParams {
    mode: WaitMode::KillableLocked,
    ms: 1000,
    address: None,
};

static VM_OPS: VmOpsTables<Mapped> = VmOpsTables::new();
static MAP_OPS: MapFileOps<Mapped> = MapFileOps::new();

/// A region behind its mappings.
pub(crate) struct Mapped {
    handle: Arc<Handle>,
    /// The log, for mappings that log writes.
    tracking: Option<Arc<Tracking>>,
}

impl Mapped {
    /// For mappings that do not log writes.
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self {
            handle,
            tracking: None,
        }
    }

    /// For mappings that log writes.
    pub(crate) fn logged(handle: Arc<Handle>, tracking: Arc<Tracking>) -> Self {
        Self {
            handle,
            tracking: Some(tracking),
        }
    }

    fn region(&self) -> &Arc<Region> {
        self.handle.region()
    }

    fn with_log<R>(&self, then: impl FnOnce(&Tracking) -> R) -> Option<R> {
        let memory = InodeId::of_region(self.region().staging());
        memories::with_log(self.tracking.as_deref(), memory, then)
    }
}

impl FaultPolicy for Mapped {
    /// A present page stays present.
    fn present(&self, range: PageRange) -> bool {
        self.region().pages().all_present(range)
    }

    fn present_among(&self, range: PageRange) -> u64 {
        self.region().pages().present_among(range)
    }

    /// A mapping that was being made when the log began does not log writes. Each page that is
    /// mapped there is logged as written, until the mapping is changed.
    fn may_map(&self, fault: &WriteFault<'_>, write_faults: bool) -> MapDecision {
        if write_faults || !self.region().is_logged() {
            return MapDecision::Map;
        }
        match self.with_log(|log| log.log_fault(fault)) {
            Some(true) => MapDecision::MapPageOnly,
            Some(false) => MapDecision::Retry,
            // The log ends.
            None => MapDecision::Map,
        }
    }

    fn await_writable(&self) {
        self.with_log(|log| log.copy_before_write().await_open());
    }

    fn allows_fault_around(&self, _around: PageRange, write_faults: bool) -> bool {
        write_faults || !self.region().is_logged()
    }
}

impl VmOps for Mapped {
    const VM_OPS: &'static VmOpsTables<Self> = &VM_OPS;
    const MAP_OPS: &'static MapFileOps<Self> = &MAP_OPS;

    /// Waits until the page is present, and maps it.
    fn fault(&self, fault: &mut Fault<'_>) -> VmFaultReason {
        match await_present(self.region(), fault) {
            Ok(filled) => fault.map(self.region().staging(), self, filled),
            Err(answer) => answer,
        }
    }

    fn blocks_present(&self, range: PageRange) -> bool {
        let start = range.start() & !(BLOCK_PAGES - 1);
        let end = range
            .end()
            .div_ceil(BLOCK_PAGES)
            .saturating_mul(BLOCK_PAGES);
        PageRange::within(start, end.saturating_sub(start), u64::MAX)
            .is_some_and(|blocks| self.region().pages().all_present(blocks))
    }

    fn discard(&self, offset: u64, len: u64) -> Result {
        discard(self.region(), offset, len)
    }

    fn write_fault(&self, fault: &WriteFault<'_>) -> bool {
        self.with_log(|log| log.log_fault(fault)).unwrap_or(true)
    }
}

/// Waits until the page is present and the fault may map it, or returns the result of the fault. An
/// absent page is read from its backing, or requested, once. The fault waits without its lock if its caller can retry.
/// A page that this touch has read is returned.
pub(super) fn await_present(
    region: &Arc<Region>,
    fault: &mut Fault<'_>,
) -> Result<Option<FilledPage>, VmFaultReason> {
    let pgoff = fault.pgoff();
    if pgoff >= region.pages().nr() {
        // A mapping of the region's file may reach beyond the end.
        return Err(VmFaultReason::SIGBUS);
    }
    loop {
        if fault.is_process_dying() && !region.pages().is_settled(pgoff) {
            // A core dump has the pages that are present. A dying process does not wait for others:
            // no signal would end that wait.
            return Err(sigbus(region));
        }
        if fault.is_mlock_onfault() && !region.pages().is_settled(pgoff) {
            let addr = fault.user_address();
            fault.unlock();
            // If the task is killed, the fault is not retried.
            let _ = Mappings::<Mapped>::of(region.staging()).set_lockonfault(addr);
            return Err(VmFaultReason::RETRY_MAJOR);
        }
        let (found, filled) = touch_to_map(region, pgoff, || fault.foreign_charge());
        match found {
            Touch::Present => return Ok(filled),
            Touch::Unreadable => return Err(unreadable(region)),
            Touch::NewlyRequested | Touch::AlreadyRequested if region.fails_request(pgoff) => {
                return Err(sigbus(region))
            }
            Touch::NewlyRequested
            | Touch::AlreadyRequested
            | Touch::NewlyClaimed
            | Touch::AlreadyClaimed => {}
        }
        match fault.retry_mode() {
            RetryMode::NoWait => return Err(VmFaultReason::RETRY),
            RetryMode::DropLock if fault.is_kernel_or_exiting_thread() => {
                // The exit of the process waits for this thread, so its wait must be short. If it
                // is a thread of KVM, the virtual CPU that it works for touches the page again.
                if fault.tried() && !fault.is_kthread_of_live_process() {
                    return Err(sigbus(region));
                }
                fault.unlock();
                region.await_page_for(pgoff, BOUNDED_WAIT);
                return Err(VmFaultReason::RETRY_MAJOR);
            }
            RetryMode::DropLock => {
                let may_write = fault.may_write();
                if !may_write && region.timed_out.take(pgoff) && fault.tried() {
                    return Err(sigbus(region));
                }
                let address = fault.fault_address();
                fault.unlock();
                return Err(match region.await_page(pgoff, address, fault.wait_mode()) {
                    WaitOutcome::Mapped => VmFaultReason::COMPLETED,
                    WaitOutcome::Timeout => {
                        if may_write {
                            region.set_unreadable(pgoff);
                        } else {
                            region.timed_out.add(pgoff);
                        }
                        VmFaultReason::RETRY_MAJOR
                    }
                    // The retried fault finds out.
                    WaitOutcome::Done | WaitOutcome::Signal => VmFaultReason::RETRY_MAJOR,
                });
            }
            RetryMode::HoldLock
                if fault.is_kernel_or_exiting_thread() || !fault.is_in_current_mm() =>
            {
                // For example a fault of an IOMMU or of a debugger.
                if region.await_page_for(pgoff, BOUNDED_WAIT) != WaitOutcome::Done {
                    return Err(sigbus(region));
                }
            }
            RetryMode::HoldLock => match region.await_page(pgoff, None, WaitMode::KillableLocked) {
                WaitOutcome::Done | WaitOutcome::Mapped => {}
                WaitOutcome::Timeout if fault.may_write() => region.set_unreadable(pgoff),
                WaitOutcome::Timeout | WaitOutcome::Signal => return Err(sigbus(region)),
            },
        }
    }
}

fn unreadable(region: &Region) -> VmFaultReason {
    region.sigbus.count();
    if region.poisons() {
        VmFaultReason::HWPOISON
    } else {
        VmFaultReason::SIGBUS
    }
}

fn sigbus(region: &Region) -> VmFaultReason {
    region.sigbus.count();
    VmFaultReason::SIGBUS
}
