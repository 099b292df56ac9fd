// SPDX-License-Identifier: GPL-2.0-or-later
//! `--verify`: QEMU's device state is kept here until the destination has compared all of the guest's memory with the source's.

use vmem::PAGE_SIZE;
use vmem_control::Verified;
use vmem_process::printable;
use vmem_qemu::MemoryBackend;

use super::{OutgoingMigration, STALL, within};
use crate::error::Cause;
use crate::report::Arrival;

/// The comparison of a move that has one.
#[derive(Debug)]
pub(in crate::migrate) struct Verification {
    /// Pages of the guest's memory.
    pages: u64,
    /// The destination may fetch pages, and has not said what the comparison has found.
    is_awaited: bool,
    /// Bytes that were present and bytes that were compared at the latest report.
    done: u64,
}

impl Verification {
    /// A comparison of all of this memory.
    pub(in crate::migrate) fn new(memory: &[MemoryBackend]) -> Self {
        Self {
            pages: memory.iter().map(|memory| memory.bytes.div_ceil(PAGE_SIZE as u64)).sum(),
            is_awaited: false,
            done: 0,
        }
    }
}

impl OutgoingMigration {
    /// Returns an error if the memory is to be compared, and the destination has not said that it can do that.
    pub(super) fn check_can_verify(&self, can_verify: bool) -> Result<(), Cause> {
        if self.verification.is_none() || can_verify {
            return Ok(());
        }
        Err(Cause::other(
            "the destination cannot compare the guest's memory (--verify): its vmemctl is older than this one. Update it, or move the guest \
             without --verify",
        ))
    }

    /// Whether the guest stands still until its memory was compared.
    pub(super) fn awaits_verification(&self) -> bool {
        self.verification.as_ref().is_some_and(|verification| verification.is_awaited)
    }

    /// START was said. From now on the move has time as long as pages arrive or are compared.
    pub(super) fn begin_verification(&mut self) {
        if let Some(verification) = &mut self.verification {
            verification.is_awaited = true;
            self.deadline = within(STALL);
        }
    }

    /// The destination has reported how far its pages are.
    pub(super) fn verification_at(&mut self, progress: &Arrival) {
        let awaited = self.verification.as_mut().filter(|verification| verification.is_awaited);
        if let Some(verification) = awaited.filter(|verification| progress.done > verification.done) {
            verification.done = progress.done;
            self.deadline = within(STALL);
        }
    }

    /// The destination has compared the memory: lets the device state through, or returns the error that ends the move.
    pub(super) fn verified(&mut self, verified: &Verified) -> Result<(), Cause> {
        let awaited = self.verification.as_mut().filter(|verification| verification.is_awaited);
        let Some(verification) = awaited else { return Ok(()) };
        self.report.verified(verified);
        if verified.different > 0 {
            return Err(Cause::other(format!(
                "{} of {} pages of the guest's memory are not the same at the destination: {}",
                verified.different,
                verification.pages,
                names(verified)
            )));
        }
        if verified.pages != verification.pages {
            return Err(Cause::other(format!(
                "the destination has compared {} pages, and the guest's memory has {}",
                verified.pages, verification.pages
            )));
        }
        verification.is_awaited = false;
        self.deadline = within(self.timeout);
        self.pages_are_there()
    }
}

/// The pages that differ, as far as they are named.
fn names(verified: &Verified) -> String {
    let name = |page: &vmem_control::RegionPage| format!("page {} of region {}", page.page, printable(&page.region));
    let names: Vec<_> = verified.first.iter().take(MAX_NAMED).map(name).collect();
    let more = if verified.different > names.len() as u64 {
        ", ..."
    } else {
        ""
    };
    names.join(", ") + more
}

/// How many pages an error names.
const MAX_NAMED: usize = 16;

#[cfg(test)]
mod tests {
    use vmem_control::RegionPage;

    use super::*;

    #[test]
    fn first_16_pages_are_named_without_control_characters() {
        let page = |page| RegionPage {
            region: "ram\u{1b}".to_owned(),
            page,
        };
        let verified = |count: u64, different| Verified {
            pages: 512,
            different,
            first: (0..count).map(page).collect(),
        };
        let two = names(&verified(2, 2));
        assert!(
            two.starts_with("page 0 of region ram") && two.contains(", page 1 of region ram"),
            "{two}"
        );
        assert!(!two.contains('\u{1b}') && !two.ends_with("..."), "{two}");
        let many = names(&verified(100, 300));
        assert_eq!(many.matches("page ").count(), 16, "{many}");
        assert!(many.ends_with(", ..."), "{many}");
    }
}
