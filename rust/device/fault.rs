// SPDX-License-Identifier: GPL-2.0

//! What a touch of a region does.

use super::{
    discard::discard,
    primitives::Limit,
    registry::Handle, //
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
            Answer,
            Fault,
            Waiting, //
        },
        mm::Mappings,
        vm_ops::{
            MapOps,
            Memory,
            VmOps, //
        },
        wait::{
            Patience,
            Woken, //
        }, //
    }, //
};
use kernel::prelude::*;

/// How long a wait may last that holds up somebody else: a second. A thread that no signal reaches keeps its
/// process from ending; a debugger holds the mmap lock of another process. That is not worth freezing.
const BRIEFLY: Limit = Limit {
    patience: Patience::KillableLocked,
    ms: 1000,
    place: None,
};

static VM_OPS: VmOps<Mapped> = VmOps::new();
static MAP_OPS: MapOps<Mapped> = MapOps::new();

/// A region, as what stands behind its mappings.
pub(crate) struct Mapped(pub(crate) Handle);

impl Memory for Mapped {
    const VM_OPS: &'static VmOps<Self> = &VM_OPS;
    const MAP_OPS: &'static MapOps<Self> = &MAP_OPS;

    /// A present page is mapped. For an absent one the daemon is asked, once, and the fault waits:
    /// without its lock, if its caller can start again.
    fn fault(&self, fault: &mut Fault<'_>) -> Answer {
        let region = self.0.region();
        let pgoff = fault.pgoff();
        loop {
            if fault.is_dying() && !region.pages().is_settled(pgoff) {
                // A dump holds what is here. A dying process does not wait for the rest: no signal
                // would end that wait.
                return self.sigbus();
            }
            if fault.locks_on_fault() && !region.pages().is_settled(pgoff) {
                let addr = fault.address();
                fault.unlock();
                // If it is killed, it does not come back.
                let _ = Mappings::<Self>::of(region.staging()).lock_on_fault(addr);
                return Answer::WAITED;
            }
            match region.pages().touch(pgoff) {
                Touch::Present => {
                    // A present page stays present.
                    return fault.map(
                        region.staging(),
                        |range| region.pages().all_present(range),
                        || true,
                    );
                }
                Touch::Unreadable => return self.unreadable(),
                Touch::Requested | Touch::Waiting if region.gives_up() => return self.sigbus(),
                Touch::Requested | Touch::Waiting => {}
            }
            match fault.waiting() {
                Waiting::Never => return Answer::RETRY,
                Waiting::Unlocked if fault.is_deaf() => {
                    // Its end is waited for when the process dies, so it must not wait for long. Whom
                    // KVM's thread works for touches the page again.
                    if fault.tried() && !fault.is_for_living() {
                        return self.sigbus();
                    }
                    fault.unlock();
                    region.await_page_for(pgoff, BRIEFLY);
                    return Answer::WAITED;
                }
                Waiting::Unlocked => {
                    let may_write = fault.may_write();
                    if !may_write && region.overdue.take(pgoff) && fault.tried() {
                        return self.sigbus();
                    }
                    let place = fault.place();
                    fault.unlock();
                    return match region.await_page(pgoff, place, fault.patience()) {
                        Woken::Placed => Answer::COMPLETED,
                        Woken::Timeout => {
                            if may_write {
                                region.give_up_page(pgoff);
                            } else {
                                region.overdue.add(pgoff);
                            }
                            Answer::WAITED
                        }
                        // The fault starts again and sees.
                        Woken::Done | Woken::Signal => Answer::WAITED,
                    };
                }
                Waiting::InPlace if fault.is_deaf() || !fault.is_own() => {
                    // An IOMMU's, for one; a debugger's.
                    if region.await_page_for(pgoff, BRIEFLY) != Woken::Done {
                        return self.sigbus();
                    }
                }
                Waiting::InPlace => {
                    match region.await_page(pgoff, None, Patience::KillableLocked) {
                        Woken::Done | Woken::Placed => {}
                        Woken::Timeout if fault.may_write() => region.give_up_page(pgoff),
                        Woken::Timeout | Woken::Signal => return self.sigbus(),
                    }
                }
            }
        }
    }

    fn blocks_present(&self, range: PageRange) -> bool {
        let start = range.start() & !(BLOCK_PAGES - 1);
        let end = range
            .end()
            .div_ceil(BLOCK_PAGES)
            .saturating_mul(BLOCK_PAGES);
        PageRange::within(start, end.saturating_sub(start), u64::MAX)
            .is_some_and(|blocks| self.0.region().pages().all_present(blocks))
    }

    fn discard(&self, offset: u64, len: u64) -> Result {
        discard(self.0.region(), offset, len)
    }
}

impl Mapped {
    fn unreadable(&self) -> Answer {
        self.0.region().sigbus.count();
        if self.0.region().poisons() {
            Answer::HWPOISON
        } else {
            Answer::SIGBUS
        }
    }

    fn sigbus(&self) -> Answer {
        self.0.region().sigbus.count();
        Answer::SIGBUS
    }
}
