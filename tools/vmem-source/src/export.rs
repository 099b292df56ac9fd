// SPDX-License-Identifier: GPL-2.0-or-later
//! Exports and lanes of a source, and the limits of its calls.

use vmem::{Name, PAGE_SIZE, PageRange};

/// The most pages of an export: 16 TiB, the limit of the kernel interface.
pub const MAX_PAGES: u64 = (1 << 44) / PAGE_SIZE as u64;

/// The most ranges in one [`PageSource::fetch`](crate::PageSource::fetch).
pub const MAX_FETCH_RANGES: usize = 1024;

/// The most pages in one [`PageSource::fetch`](crate::PageSource::fetch) (16 MiB).
pub const MAX_FETCH_PAGES: u64 = 4096;

/// The most pages in one RELEASE frame (1 GiB).
pub(crate) const MAX_RELEASE_PAGES: u64 = 1 << 18;

/// A memory that a source offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Name of the export; the region has the same name unless the user gives another.
    pub name: Name,
    /// All pages of the memory: from page 0 on, at most [`MAX_PAGES`].
    pub pages: PageRange,
    /// Bytes of the last page beyond the end of the memory, which are zero: fewer than a page.
    pub padding: u16,
    /// Identifies the memory, as far as the source can tell: if a source is lost and comes back with other memory under the same name, the
    /// identity differs, most likely. A region must never mix pages of the two.
    pub identity: u128,
}

impl Export {
    /// Size of the memory in bytes, whole pages.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pages.bytes().end
    }

    /// Size of the memory in bytes, to the byte.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.size().saturating_sub(self.padding.into())
    }

    /// The padding of a memory that has so many bytes.
    #[must_use]
    pub const fn padding_of(length: u64) -> u16 {
        (length.wrapping_neg() % PAGE_SIZE as u64) as u16
    }
}

/// Ranges of pages of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportRanges {
    /// Number of the export.
    pub export: usize,
    /// The ranges.
    pub ranges: Vec<PageRange>,
}

impl ExportRanges {
    /// Number of pages. A page counts as often as it is named.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges
            .iter()
            .fold(0, |pages: u64, range| pages.saturating_add(range.count()))
    }
}

/// The traffic that a source is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Pages that a program waits for, in small fetches.
    Urgent,
    /// All other pages, in large fetches.
    Stream,
}

/// The nice value of threads that serve the urgent lane. They have little to do, and programs wait for them: on a busy host they must not
/// queue behind the threads of the stream.
const URGENT_NICE: i32 = -10;

/// The nice value of threads that decompress and verify what no program waits for: they get what programs leave. Several threads of a higher
/// priority would take their share of a processor together.
const YIELDING_NICE: i32 = 19;

impl Lane {
    /// Gives the calling thread the priority of this lane. Without `CAP_SYS_NICE`, the priority stays as it is.
    pub fn set_thread_priority(self) {
        if self == Self::Urgent {
            // This sets the priority of the calling thread alone: setpriority(2), "C library/kernel differences".
            let _ = rustix::process::setpriority_process(None, URGENT_NICE);
        }
    }

    /// Has the calling thread, and those that it starts, give way to programs. Threads of the urgent lane do not: programs wait for them.
    pub fn yield_thread_priority(self) {
        if self == Self::Stream {
            // Of the calling thread alone, too.
            let _ = rustix::process::setpriority_process(None, YIELDING_NICE);
        }
    }
}
