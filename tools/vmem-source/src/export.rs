// SPDX-License-Identifier: GPL-2.0
//! What a source offers, what it is opened for, and how much of it may be named at once.

use vmem::{Name, PAGE_SIZE};

/// The most pages that an export has: 16 TiB, the limit of the kernel interface.
pub const MAX_PAGES: u64 = (1 << 44) / PAGE_SIZE as u64;

/// The most ranges in one [`PageSource::ask`](crate::PageSource::ask).
pub const MAX_ASK_RANGES: usize = 1024;

/// The most pages in one [`PageSource::ask`](crate::PageSource::ask) (16 MiB).
pub const MAX_ASK_PAGES: u64 = 4096;

/// The most pages in one frame that says which pages a destination has for good (1 GiB).
pub(crate) const MAX_RELEASE_PAGES: u64 = 1 << 18;

/// One piece of memory that a source offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// What the region will be called.
    pub name: Name,
    /// Number of pages.
    pub pages: u64,
    /// Which memory this is, as far as the source can tell: a number that is another one, most
    /// likely, if a source that went away comes back with other memory under the same name. Pages
    /// of the two must never be mixed.
    pub identity: u128,
}

/// Which traffic a source is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Pages that a program waits for, in small requests.
    Urgent,
    /// All other pages, in large requests.
    Stream,
}

/// The nice value of threads that serve the urgent lane. They have little to do and are waited for: where there are fewer processors than
/// threads that want one, they do not queue behind the stream.
const URGENT_NICE: i32 = -10;

impl Lane {
    /// The calling thread serves this lane from now on. Without the privilege to go before others (`CAP_SYS_NICE`) it is one among them.
    pub fn take_thread(self) {
        if self == Self::Urgent {
            // Of this thread alone: setpriority(2), "C library/kernel differences".
            let _ = rustix::process::setpriority_process(None, URGENT_NICE);
        }
    }
}
