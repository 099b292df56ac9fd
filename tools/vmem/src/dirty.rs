// SPDX-License-Identifier: GPL-2.0-or-later
//! The dirty log of a range of pages.

use vmem_sys::calls::Logged;
use vmem_sys::{Errno, VMEM_MAX_BATCH, vmem_range};

use crate::error::call;
use crate::sys_range::from_sys;
use crate::{Error, PageIndex, PageRange, PageSet};

/// The dirty pages of a range: `P` is a `Vec<PageRange>` or a [`DirtyMap`]. After an error, it covers only the first
/// [`DirtyLog::examined`] pages.
///
/// Pages that were cleaned are in this result only: a caller that ignores a page loses its writes.
#[derive(Debug)]
#[must_use]
pub struct DirtyLog<P> {
    /// The dirty pages. The contents of a dirty page may be unchanged.
    pub pages: P,
    /// Number of dirty pages.
    pub dirty: u64,
    /// Number of dirty pages that stay in the log although it was cleaned: they are pinned (O_DIRECT, RDMA, VFIO) and may be written without
    /// being seen, or the kernel has just allocated or moved them.
    pub held: u64,
    /// Number of pages examined.
    pub examined: u64,
    /// The error that ended the call early.
    pub error: Option<Error>,
}

impl<P> DirtyLog<P> {
    /// The dirty pages, if all pages were examined.
    ///
    /// # Errors
    ///
    /// The error that ended the call early.
    pub fn complete(self) -> Result<P, Error> {
        match self.error {
            None => Ok(self.pages),
            Some(error) => Err(error),
        }
    }

    /// Adds what one call has gone through of `asked` pages. Whether another one is to be made.
    fn add(&mut self, asked: u64, logged: &Logged) -> bool {
        let done = logged.done.min(asked);
        self.examined += done;
        self.dirty += logged.dirty;
        self.held += logged.held;
        self.error = match logged.error {
            None if done == asked => return false,
            None if done > 0 => return true,
            // Without progress and without an error, the loop would never end.
            None => Some(Error::from_errno(call::DIRTY, Errno::IO)),
            Some(errno) => Some(Error::from_errno(call::DIRTY, errno)),
        };
        false
    }
}

/// A bit for each page of a run of pages: whether it is dirty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyMap {
    set: PageSet,
}

impl DirtyMap {
    /// The range of the map.
    pub fn pages(&self) -> PageRange {
        self.set.pages()
    }

    /// Whether `page` is dirty; false for a page outside of the range.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.set.contains(page)
    }

    /// The pages that are dirty, in order, in the longest runs.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.set.runs()
    }

    /// The bits themselves, the lowest of the first word for the first of [`DirtyMap::pages`]. Bits after the last page are zero.
    pub fn words(&self) -> &[u64] {
        self.set.words()
    }
}

/// The log of `pages` as runs of pages. `ask` makes the call for so many pages from an offset on.
pub(crate) fn ranges(pages: PageRange, ask: impl Fn(u64, u64, &mut [vmem_range]) -> Logged) -> DirtyLog<Vec<PageRange>> {
    let mut log = DirtyLog {
        pages: Vec::new(),
        dirty: 0,
        held: 0,
        examined: 0,
        error: None,
    };
    let mut room = vec![vmem_range::default(); VMEM_MAX_BATCH as usize];
    loop {
        let left = pages.count() - log.examined;
        let logged = ask(pages.first().get() + log.examined, left, &mut room);
        for range in room.iter().take(logged.ranges).filter_map(from_sys) {
            // Joins a run that was split at the end of a call.
            range.append_to(&mut log.pages);
        }
        if !log.add(left, &logged) {
            return log;
        }
    }
}

/// The log of `pages` as a bitmap. `ask` makes the call for so many pages from an offset on.
pub(crate) fn map(pages: PageRange, ask: impl Fn(u64, u64, &mut [u64]) -> Logged) -> DirtyLog<DirtyMap> {
    let mut log = DirtyLog {
        pages: DirtyMap {
            set: PageSet::none_of(pages),
        },
        dirty: 0,
        held: 0,
        examined: 0,
        error: None,
    };
    loop {
        let left = pages.count() - log.examined;
        // A call that does not go through all of its pages stops at a multiple of 64, or the next one is refused (EINVAL).
        let words = &mut log.pages.set.words_mut()[(log.examined / u64::from(u64::BITS)) as usize..];
        let logged = ask(pages.first().get() + log.examined, left, words);
        if !log.add(left, &logged) {
            return log;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(PageIndex::new(first).unwrap(), count).unwrap()
    }

    fn pairs(ranges: &[PageRange]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.first().get(), range.count())).collect()
    }

    /// A log that gives at most `room` ranges a call.
    fn in_calls_of(room: usize, dirty: &BTreeSet<u64>, range: PageRange) -> (DirtyLog<Vec<PageRange>>, usize) {
        let calls = RefCell::new(0);
        let log = ranges(range, |pgoff, nr_pages, out| {
            *calls.borrow_mut() += 1;
            let mut logged = Logged {
                done: 0,
                dirty: 0,
                held: 0,
                ranges: 0,
                error: None,
            };
            for page in pgoff..pgoff + nr_pages {
                if dirty.contains(&page) {
                    if page > pgoff && dirty.contains(&(page - 1)) {
                        out[logged.ranges - 1].nr_pages += 1;
                    } else if logged.ranges == room {
                        break;
                    } else {
                        out[logged.ranges] = vmem_range {
                            pgoff: page,
                            nr_pages: 1,
                        };
                        logged.ranges += 1;
                    }
                    logged.dirty += 1;
                }
                logged.done += 1;
            }
            logged
        });
        (log, calls.into_inner())
    }

    #[test]
    fn log_longer_than_one_call_takes_several() {
        let dirty = [0, 1, 4, 6, 7, 8, 20, 99].into();
        let (log, calls) = in_calls_of(2, &dirty, pages(0, 100));
        assert!(log.error.is_none());
        assert_eq!(pairs(&log.pages), [(0, 2), (4, 1), (6, 3), (20, 1), (99, 1)]);
        assert_eq!((log.dirty, log.examined, calls), (8, 100, 3));
        let (log, _) = in_calls_of(2, &dirty, pages(7, 14));
        assert_eq!(pairs(&log.complete().unwrap()), [(7, 2), (20, 1)]);
    }

    #[test]
    fn pages_cleaned_before_an_error_are_returned() {
        let calls = RefCell::new(0);
        let log = ranges(pages(0, 100), |pgoff, _, out| {
            *calls.borrow_mut() += 1;
            out[0] = vmem_range { pgoff, nr_pages: 3 };
            Logged {
                done: 10,
                dirty: 3,
                held: 1,
                ranges: 1,
                error: (*calls.borrow() == 2).then_some(Errno::INTR),
            }
        });
        assert_eq!(pairs(&log.pages), [(0, 3), (10, 3)]);
        assert_eq!((log.dirty, log.held, log.examined), (6, 2, 20));
        assert!(matches!(log.complete(), Err(Error::Interrupted { call: call::DIRTY })));
    }

    #[test]
    fn call_without_progress_or_error_is_an_error() {
        let nothing = Logged {
            done: 0,
            dirty: 0,
            held: 0,
            ranges: 0,
            error: None,
        };
        assert!(ranges(pages(0, 8), |_, _, _| nothing).error.is_some());
        assert!(map(pages(0, 8), |_, _, _| nothing).error.is_some());
    }

    #[test]
    fn bitmap_read_in_parts_is_one_bitmap() {
        let log = map(pages(64, 130), |pgoff, nr_pages, words| {
            words[0] = 1 << (pgoff / 64);
            Logged {
                done: nr_pages.min(64),
                dirty: 1,
                held: 0,
                ranges: 0,
                error: None,
            }
        });
        let map = log.complete().unwrap();
        assert_eq!(map.words(), [1 << 1, 1 << 2, 1 << 3]);
        // The map has two pages of the last word; this kernel says more.
        assert_eq!(pairs(&map.runs().collect::<Vec<_>>()), [(65, 1), (130, 1)]);
        assert!(map.contains(PageIndex::new(65).unwrap()) && !map.contains(PageIndex::new(64).unwrap()));
    }
}
