// SPDX-License-Identifier: GPL-2.0-or-later
//! A region in this process's own memory: what the module does, as far as the engine can tell.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vmem::{Error, PAGE_SIZE, PageIndex, PageRange, Progress};

use crate::sink::{RegionState, Sink};

/// What is known of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    Absent,
    Present,
    Unreadable,
}

struct Inner {
    bytes: Vec<u8>,
    pages: Vec<Page>,
    queued: BTreeSet<u64>,
    requested: BTreeSet<u64>,
    /// Pages that came although they were present.
    refused: u64,
    mapped: bool,
    /// The most pages that there is memory for.
    room: u64,
}

/// A region of this process.
pub(super) struct Memory {
    inner: Mutex<Inner>,
    changed: Condvar,
    wanted: OwnedFd,
}

impl Memory {
    pub(super) fn new(pages: u64) -> Self {
        let inner = Inner {
            bytes: vec![0xee; pages as usize * PAGE_SIZE],
            pages: vec![Page::Absent; pages as usize],
            queued: BTreeSet::new(),
            requested: BTreeSet::new(),
            refused: 0,
            mapped: true,
            room: u64::MAX,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            wanted: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"),
        }
    }

    /// Touches a page, and waits until it is there. `None` if it is unreadable or does not come.
    pub(super) fn touch(&self, pgoff: u64) -> Option<Vec<u8>> {
        self.want(pgoff);
        let at = pgoff as usize;
        let limit = Duration::from_secs(20);
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |inner| inner.pages[at] == Page::Absent)
            .expect("no panic");
        (inner.pages[at] == Page::Present).then(|| inner.bytes[at * PAGE_SIZE..][..PAGE_SIZE].to_vec())
    }

    /// Touches a page, and does not wait.
    pub(super) fn want(&self, pgoff: u64) {
        let mut inner = self.lock();
        if inner.pages[pgoff as usize] == Page::Absent && inner.requested.insert(pgoff) {
            inner.queued.insert(pgoff);
            rustix::io::write(&self.wanted, &1_u64.to_ne_bytes()).expect("room");
        }
    }

    /// Whether a program has it mapped.
    pub(super) fn set_mapped(&self, mapped: bool) {
        self.lock().mapped = mapped;
    }

    /// Touches a page, and keeps every call on the region until the result is dropped.
    pub(super) fn stall_after(&self, pgoff: u64) -> impl Sized + use<'_> {
        let mut inner = self.lock();
        inner.queued.insert(pgoff);
        inner.requested.insert(pgoff);
        rustix::io::write(&self.wanted, &1_u64.to_ne_bytes()).expect("room");
        inner
    }

    /// How many pages there is memory for.
    pub(super) fn set_room(&self, pages: u64) {
        self.lock().room = pages;
    }

    /// A touch of this page has timed out before anybody took its request.
    pub(super) fn time_out(&self, pgoff: u64) {
        self.lock().pages[pgoff as usize] = Page::Unreadable;
    }

    /// A new daemon comes: requests that were not answered come again.
    pub(super) fn attach(&self) {
        let mut inner = self.lock();
        inner.queued = inner.requested.clone();
        if !inner.queued.is_empty() {
            rustix::io::write(&self.wanted, &1_u64.to_ne_bytes()).expect("room");
        }
    }

    /// Changes the last byte of a page, whatever is known of the page.
    pub(super) fn spoil(&self, pgoff: u64) {
        self.lock().bytes[(pgoff as usize + 1) * PAGE_SIZE - 1] ^= 1;
    }

    /// All bytes, and what is known of them.
    pub(super) fn contents(&self) -> (Vec<u8>, Vec<Page>) {
        let inner = self.lock();
        (inner.bytes.clone(), inner.pages.clone())
    }

    pub(super) fn present(&self) -> u64 {
        self.lock().pages.iter().filter(|page| **page == Page::Present).count() as u64
    }

    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic")
    }

    fn settle(&self, ranges: &[PageRange], to: Page, bytes: impl Fn(usize) -> Option<Vec<u8>>) -> Progress {
        let mut inner = self.lock();
        let mut changed = 0;
        let mut present = inner.pages.iter().filter(|page| **page == Page::Present).count() as u64;
        for (entry, pages) in ranges.iter().enumerate() {
            let mut contents = bytes(entry).unwrap_or_default();
            for page in pages.iter() {
                let at = page.get() as usize;
                let rest = contents.split_off(contents.len().min(PAGE_SIZE));
                if inner.pages[at] == Page::Present {
                    inner.refused += 1;
                } else if present >= inner.room {
                    drop(inner);
                    self.changed.notify_all();
                    return Progress {
                        ranges: entry,
                        pages: changed,
                        error: Some(Error::NoMemory { call: "FILL_PAGES" }),
                    };
                } else {
                    if !contents.is_empty() {
                        inner.bytes[at * PAGE_SIZE..][..PAGE_SIZE].copy_from_slice(&contents);
                    }
                    inner.pages[at] = to;
                    inner.queued.remove(&page.get());
                    inner.requested.remove(&page.get());
                    changed += 1;
                    present += 1;
                }
                contents = rest;
            }
        }
        drop(inner);
        self.changed.notify_all();
        Progress {
            ranges: ranges.len(),
            pages: changed,
            error: None,
        }
    }
}

impl Sink for Memory {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wanted.as_fd()
    }

    fn take(&self, max: usize) -> Result<Vec<PageIndex>, Error> {
        let mut inner = self.lock();
        let taken: Vec<u64> = inner.queued.iter().copied().take(max).collect();
        inner.queued.retain(|page| !taken.contains(page));
        if inner.queued.is_empty() {
            // Not readable any more until the next request.
            let _ = rustix::io::read(&self.wanted, &mut [0; 8]);
        }
        Ok(taken.into_iter().filter_map(PageIndex::new).collect())
    }

    fn fill(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        let ranges: Vec<_> = fills
            .iter()
            .map(|(first, contents)| PageRange::new(*first, (contents.len() / PAGE_SIZE) as u64).expect("whole pages"))
            .collect();
        self.settle(&ranges, Page::Present, |entry| Some(fills[entry].1.to_vec()))
    }

    fn stage(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        let mut inner = self.lock();
        let mut pages = 0;
        for (entry, (first, contents)) in fills.iter().enumerate() {
            if inner.room == 0 {
                let error = Some(Error::NoMemory { call: "FILL_PAGES" });
                return Progress {
                    ranges: entry,
                    pages,
                    error,
                };
            }
            for (at, page) in (first.get() as usize..).zip(contents.chunks(PAGE_SIZE)) {
                assert_eq!(inner.pages[at], Page::Absent, "a present page is not staged");
                inner.bytes[at * PAGE_SIZE..][..PAGE_SIZE].copy_from_slice(page);
                pages += 1;
            }
        }
        let (ranges, error) = (fills.len(), None);
        Progress { ranges, pages, error }
    }

    fn mark_cached(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges, Page::Present, |_| None)
    }

    fn mark_zero(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges, Page::Present, |entry| {
            Some(vec![0; ranges[entry].count() as usize * PAGE_SIZE])
        })
    }

    fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges, Page::Unreadable, |_| None)
    }

    fn make_present(&self, ranges: &[PageRange]) -> Progress {
        Progress {
            ranges: ranges.len(),
            pages: 0,
            error: None,
        }
    }

    fn read(&self, pages: PageRange, to: &mut [u8]) -> Result<(), Error> {
        let from = pages.first().get() as usize * PAGE_SIZE;
        to.copy_from_slice(&self.lock().bytes[from..][..pages.count() as usize * PAGE_SIZE]);
        Ok(())
    }

    fn make_plain(&self) -> Result<(), Error> {
        Ok(())
    }

    fn absent(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Error> {
        let is_present: Vec<bool> = self.lock().pages.iter().map(|page| *page == Page::Present).collect();
        let absent = pages.iter().filter(|page| !is_present[page.get() as usize]);
        absent.for_each(|page| each(page.into()));
        Ok(())
    }

    fn state(&self) -> Result<RegionState, Error> {
        let inner = self.lock();
        let count = |wanted| inner.pages.iter().filter(|page| **page == wanted).count() as u64;
        Ok(RegionState {
            present: count(Page::Present),
            unreadable: count(Page::Unreadable),
            backed: 0,
            mappings: inner.mapped.into(),
            plain: false,
        })
    }
}
