// SPDX-License-Identifier: GPL-2.0-or-later
//! The record of released pages: a file that outlives the server.
//!
//! A released page reads as zeros, and nothing in the memory distinguishes it from a page that is zero. So the server records it before it
//! releases it, in a file that later servers read, and the page is unreadable from then on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vmem::{PageRange, PageSet};

const MAGIC: [u8; 8] = *b"VMEMGONE";

/// Magic, tag of the memory, four bytes of zeros. A bit for each page follows, lowest bit first.
const HEAD_SIZE: u64 = 16;

pub(super) struct Released {
    file: File,
    pages: RwLock<PageSet>,
    /// Locked while the record changes. The set has a lock of its own, which is never held during I/O: readers of pages wait for it.
    update: Mutex<()>,
}

impl Released {
    /// Opens the record at `path`, of memory with these pages; creates it if `may_create`.
    pub(super) fn open(path: &Path, tag: u32, pages: PageRange, may_create: bool) -> io::Result<Self> {
        let mut head = [0; HEAD_SIZE as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&tag.to_le_bytes());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("another server uses this record")),
            other => other?,
        }
        let released = if file.metadata()?.len() == 0 {
            if !may_create {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "pages of this memory have been released, and this is not the record of them",
                ));
            }
            file.set_len(HEAD_SIZE + pages.count().div_ceil(8))?;
            file.write_all_at(&head, 0)?;
            PageSet::none_of(pages)
        } else {
            let (mut found, mut bytes) = ([0; HEAD_SIZE as usize], Vec::new());
            file.read_exact(&mut found)?;
            file.read_to_end(&mut bytes)?;
            let released = PageSet::from_bytes(pages, &bytes).filter(|_| found == head);
            released.ok_or_else(|| {
                let what = "this is the record of another memory; if that memory does not exist any more, remove the file";
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?
        };
        Ok(Self {
            file,
            pages: RwLock::new(released),
            update: Mutex::default(),
        })
    }

    /// The released pages as of now. No page is released while the view exists, so it must not be held while a page is read, which can take
    /// forever: a reader checks a view before and another one after the read.
    pub(super) fn view(&self) -> View<'_> {
        // The set is consistent even if a thread panicked.
        View(self.pages.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records `range` as released. Returns the pages that were not recorded before: the caller may release these, and only after this call.
    pub(super) fn insert(&self, range: PageRange) -> io::Result<Vec<PageRange>> {
        let _update = self.lock_update();
        let fresh = self.view().0.gaps_of(range).collect();
        self.change(range, PageSet::insert)?;
        Ok(fresh)
    }

    /// Removes pages from the record that were not released after all, and are unchanged.
    pub(super) fn remove(&self, pages: &[PageRange]) -> io::Result<()> {
        let _update = self.lock_update();
        pages.iter().try_for_each(|range| self.change(*range, PageSet::remove))
    }

    /// Whether no page is released.
    pub(super) fn is_empty(&self) -> bool {
        self.view().0.is_empty()
    }

    /// Changes `pages` of the record, in the file first.
    fn change(&self, pages: PageRange, how: impl Fn(&mut PageSet, PageRange)) -> io::Result<()> {
        // The bytes of the file with the bits of `pages`.
        let first = pages.first().get() / 8 * 8;
        let last = pages.end().next_multiple_of(8).min(self.view().0.pages().end());
        if let Some(around) = PageRange::from_pgoff(first, last.saturating_sub(first)) {
            let mut changed = PageSet::none_of(around);
            self.view().0.runs_of(around).for_each(|run| changed.insert(run));
            how(&mut changed, pages);
            self.file.write_all_at(&changed.to_bytes(), HEAD_SIZE + first / 8)?;
        }
        how(&mut self.pages.write().unwrap_or_else(PoisonError::into_inner), pages);
        Ok(())
    }

    fn lock_update(&self) -> MutexGuard<'_, ()> {
        // The lock protects no value: a panic leaves nothing inconsistent.
        self.update.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct View<'a>(RwLockReadGuard<'a, PageSet>);

impl View<'_> {
    /// The pages at the beginning of `pages` that are all released or all not, whether they are released, and the other pages.
    pub(super) fn split(&self, pages: PageRange) -> (PageRange, bool, Option<PageRange>) {
        let released = self.0.contains(pages.first());
        let other = if released {
            self.0.gaps_of(pages).next()
        } else {
            self.0.runs_of(pages).next()
        };
        let alike = other.map_or(pages.count(), |other| other.first().get() - pages.first().get());
        match pages.split_at(alike) {
            (Some(front), rest) => (front, released, rest),
            // Not reached: `alike` is at least 1.
            (None, _) => (pages, released, None),
        }
    }

    /// Those of `pages` that are not released.
    pub(super) fn gaps_of(&self, pages: PageRange) -> Vec<PageRange> {
        self.0.gaps_of(pages).collect()
    }

    /// Whether any of `pages` is released.
    pub(super) fn contains_any(&self, pages: PageRange) -> bool {
        self.0.runs_of(pages).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        PageRange::from_pgoff(first, count).expect("a range")
    }

    #[test]
    fn released_pages_are_in_the_record_that_the_next_server_opens() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        let record = Released::open(&path, 7, run(0, 100), true).expect("a record");
        record.insert(run(3, 20)).expect("a write");
        record.insert(run(99, 1)).expect("a write");
        assert!(Released::open(&path, 7, run(0, 100), true).is_err(), "one server at a time");
        drop(record);
        let bytes = std::fs::read(&path).expect("the record");
        assert_eq!(
            bytes[..16],
            *b"VMEMGONE\x07\0\0\0\0\0\0\0",
            "the format of all earlier versions"
        );
        assert_eq!(bytes[16..], [0xf8, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08]);
        let record = Released::open(&path, 7, run(0, 100), true).expect("a record");
        let view = record.view();
        assert_eq!(view.split(run(0, 100)), (run(0, 3), false, Some(run(3, 97))));
        assert_eq!(view.split(run(3, 97)), (run(3, 20), true, Some(run(23, 77))));
        assert_eq!(view.split(run(23, 77)), (run(23, 76), false, Some(run(99, 1))));
        assert_eq!(view.split(run(99, 1)), (run(99, 1), true, None));
    }

    #[test]
    fn removed_pages_are_not_released_for_the_next_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        let record = Released::open(&path, 7, run(0, 100), true).expect("a record");
        assert_eq!(record.insert(run(10, 10)).expect("a write"), [run(10, 10)]);
        let fresh = record.insert(run(5, 20)).expect("a write");
        assert_eq!(fresh, [run(5, 5), run(20, 5)], "pages recorded before are not released again");
        record.remove(&fresh).expect("a write");
        drop(record);
        let record = Released::open(&path, 7, run(0, 100), true).expect("a record");
        assert_eq!(record.view().split(run(0, 100)).0, run(0, 10));
        assert_eq!(record.view().split(run(10, 90)), (run(10, 10), true, Some(run(20, 80))));
        assert!(!record.is_empty());
        record.remove(&[run(10, 10)]).expect("a write");
        assert!(record.is_empty());
    }

    #[test]
    fn record_of_another_memory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        drop(Released::open(&path, 7, run(0, 100), true).expect("a record"));
        assert!(Released::open(&path, 8, run(0, 100), true).is_err());
        assert!(Released::open(&path, 7, run(0, 900), true).is_err());
        std::fs::write(&path, "something else").expect("a file");
        assert!(Released::open(&path, 7, run(0, 100), true).is_err());
    }
}
