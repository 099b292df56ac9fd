// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory whose writes are logged.

use vmem::{DirtyLog, DirtyMap, Tracking};
use vmem_pages::{PageRange, PageSet};

/// Memory whose writes are logged, as by [`vmem::Tracking`].
///
/// All ranges that it is asked about begin at a multiple of 64 pages.
pub trait DirtyMemory: Send {
    /// All pages, from page 0 on.
    fn pages(&self) -> PageRange;

    /// Whether the log begins with all pages. Which of them were written is known only after they are cleaned for the first time.
    fn begins_with_all(&self) -> bool {
        false
    }

    /// Which of `pages` are in the log. The log stays as it is.
    fn peek(&self, pages: PageRange) -> Logged;

    /// Takes those of `pages` that are in the log out of it, and protects them again: a page that is read after this has returned has the
    /// contents that were logged up to then, or later ones, which the next call reports.
    fn clean(&self, pages: PageRange) -> Logged;
}

/// Pages of a log.
#[derive(Debug)]
#[must_use]
pub struct Logged {
    /// The pages: a set of the range that was asked about. If there is an error, those that were found before it.
    pub dirty: PageSet,
    /// The error that ended the call early.
    pub error: Option<vmem::Error>,
}

impl DirtyMemory for Tracking {
    fn pages(&self) -> PageRange {
        Self::pages(self)
    }

    fn begins_with_all(&self) -> bool {
        Self::begins_with_all(self)
    }

    fn peek(&self, pages: PageRange) -> Logged {
        self.peek_map(pages).into()
    }

    fn clean(&self, pages: PageRange) -> Logged {
        self.clean_map(pages).into()
    }
}

impl From<DirtyLog<DirtyMap>> for Logged {
    fn from(log: DirtyLog<DirtyMap>) -> Self {
        let mut dirty = PageSet::none_of(log.pages.pages());
        dirty.words_mut().copy_from_slice(log.pages.words());
        Self { dirty, error: log.error }
    }
}
