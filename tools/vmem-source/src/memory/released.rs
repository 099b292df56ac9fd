// SPDX-License-Identifier: GPL-2.0
//! Which pages have been given back, in a file that outlives the server.
//!
//! A page that was given back reads as zeros, and nothing in the memory tells it from one that is zero. So it is noted here first, in a
//! file that the next server reads, and is unreadable from then on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vmem::{PageRange, PageSet};
use vmem_pages::{end, range, split};

const MAGIC: [u8; 8] = *b"VMEMGONE";

/// Magic, the memory's tag, four bytes of zeros. A bit for each page follows, lowest first.
const HEAD_SIZE: u64 = 16;

pub(super) struct Released {
    file: File,
    gone: RwLock<PageSet>,
    /// Held while the record is changed. The set's lock is held only for a moment: the file may be slow, and who reads a page waits for the set.
    changing: Mutex<()>,
}

impl Released {
    /// Opens or, if there `may_begin` one, begins the record at `path`, of memory of `pages` pages.
    pub(super) fn open(path: &Path, tag: u32, pages: u64, may_begin: bool) -> io::Result<Self> {
        let mut head = [0; HEAD_SIZE as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&tag.to_le_bytes());
        let all = range(0, pages).ok_or_else(|| io::Error::other("no memory has so many pages"))?;
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
        let gone = if file.metadata()?.len() == 0 {
            if !may_begin {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "pages of this memory were given back, and this is not the record of them",
                ));
            }
            file.set_len(HEAD_SIZE + pages.div_ceil(8))?;
            file.write_all_at(&head, 0)?;
            PageSet::none_of(all)
        } else {
            let (mut found, mut bytes) = ([0; HEAD_SIZE as usize], Vec::new());
            file.read_exact(&mut found)?;
            file.read_to_end(&mut bytes)?;
            let gone = PageSet::from_bytes(all, &bytes).filter(|_| found == head);
            gone.ok_or_else(|| {
                let what = "this is no record of this memory; if what it stands for is gone, remove it";
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?
        };
        Ok(Self {
            file,
            gone: RwLock::new(gone),
            changing: Mutex::default(),
        })
    }

    /// What is given back as of now; nothing more is while this is held, which is not for long: reading a page can take for ever. Who reads
    /// looks before and after it.
    pub(super) fn look(&self) -> Look<'_> {
        // A note is whole whatever a thread died of.
        Look(self.gone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes `range`, and returns what of it was not noted before. Only that may be given back, and only after this.
    pub(super) fn note(&self, range: PageRange) -> io::Result<Vec<PageRange>> {
        let _changing = self.begin();
        let fresh = self.look().0.gaps_of(range).collect();
        self.change(range, PageSet::insert)?;
        Ok(fresh)
    }

    /// These pages, which were noted, have not been given back, and it is sure that they are what they were.
    pub(super) fn forget(&self, pages: &[PageRange]) -> io::Result<()> {
        let _changing = self.begin();
        pages.iter().try_for_each(|range| self.change(*range, PageSet::remove))
    }

    /// Whether nothing has been given back.
    pub(super) fn is_empty(&self) -> bool {
        self.look().0.is_empty()
    }

    /// Changes these pages of the record, in the file first.
    fn change(&self, pages: PageRange, how: impl Fn(&mut PageSet, PageRange)) -> io::Result<()> {
        // The whole bytes of the file that have their bits.
        let first = pages.first().get() / 8 * 8;
        let last = end(pages).next_multiple_of(8).min(end(self.look().0.pages()));
        if let Some(around) = range(first, last.saturating_sub(first)) {
            let mut changed = PageSet::none_of(around);
            self.look().0.runs_of(around).for_each(|run| changed.insert(run));
            how(&mut changed, pages);
            self.file.write_all_at(&changed.to_bytes(), HEAD_SIZE + first / 8)?;
        }
        how(&mut self.gone.write().unwrap_or_else(PoisonError::into_inner), pages);
        Ok(())
    }

    fn begin(&self) -> MutexGuard<'_, ()> {
        // It protects no value of its own.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Look<'a>(RwLockReadGuard<'a, PageSet>);

impl Look<'_> {
    /// The pages from the beginning of `pages` that are alike, whether they are given back, and the rest.
    pub(super) fn split(&self, pages: PageRange) -> (PageRange, bool, Option<PageRange>) {
        let gone = self.0.contains(pages.first());
        let other = if gone {
            self.0.gaps_of(pages).next()
        } else {
            self.0.runs_of(pages).next()
        };
        let alike = other.map_or(pages.count(), |other| other.first().get() - pages.first().get());
        match split(pages, alike) {
            (Some(front), rest) => (front, gone, rest),
            // The first page is like itself.
            (None, _) => (pages, gone, None),
        }
    }

    /// Whether any of these pages is given back.
    pub(super) fn has_any(&self, pages: PageRange) -> bool {
        self.0.runs_of(pages).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        range(first, count).expect("a range")
    }

    #[test]
    fn what_is_noted_is_found_by_the_next_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        let record = Released::open(&path, 7, 100, true).expect("a record");
        record.note(run(3, 20)).expect("a note");
        record.note(run(99, 1)).expect("a note");
        assert!(Released::open(&path, 7, 100, true).is_err(), "one server at a time");
        drop(record);
        let bytes = std::fs::read(&path).expect("the record");
        assert_eq!(
            bytes[..16],
            *b"VMEMGONE\x07\0\0\0\0\0\0\0",
            "as every server before has written it"
        );
        assert_eq!(bytes[16..], [0xf8, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08]);
        let record = Released::open(&path, 7, 100, true).expect("a record");
        let look = record.look();
        assert_eq!(look.split(run(0, 100)), (run(0, 3), false, Some(run(3, 97))));
        assert_eq!(look.split(run(3, 97)), (run(3, 20), true, Some(run(23, 77))));
        assert_eq!(look.split(run(23, 77)), (run(23, 76), false, Some(run(99, 1))));
        assert_eq!(look.split(run(99, 1)), (run(99, 1), true, None));
    }

    #[test]
    fn what_is_forgotten_is_not_given_back_for_the_next_server_either() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        let record = Released::open(&path, 7, 100, true).expect("a record");
        assert_eq!(record.note(run(10, 10)).expect("a note"), [run(10, 10)]);
        let fresh = record.note(run(5, 20)).expect("a note");
        assert_eq!(
            fresh,
            [run(5, 5), run(20, 5)],
            "what was noted before is not given back again"
        );
        record.forget(&fresh).expect("a note");
        drop(record);
        let record = Released::open(&path, 7, 100, true).expect("a record");
        assert_eq!(record.look().split(run(0, 100)).0, run(0, 10));
        assert_eq!(record.look().split(run(10, 90)), (run(10, 10), true, Some(run(20, 80))));
        assert!(!record.is_empty());
        record.forget(&[run(10, 10)]).expect("a note");
        assert!(record.is_empty());
    }

    #[test]
    fn a_record_of_other_memory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ram.released");
        drop(Released::open(&path, 7, 100, true).expect("a record"));
        assert!(Released::open(&path, 8, 100, true).is_err());
        assert!(Released::open(&path, 7, 900, true).is_err());
        std::fs::write(&path, "something else").expect("a file");
        assert!(Released::open(&path, 7, 100, true).is_err());
    }
}
