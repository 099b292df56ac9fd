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
use vmem::PageRange;

use crate::bits;
use crate::page::{end, split};

const MAGIC: [u8; 8] = *b"VMEMGONE";

/// Magic, identity of the memory, four bytes of zeros. A bit for each page follows, lowest first.
const HEAD_SIZE: u64 = 16;

pub(super) struct Released {
    file: File,
    map: RwLock<Vec<u8>>,
    /// Who changes the record has this, and the map's lock only for a moment: the file may be slow, and reading a page waits for the map.
    changing: Mutex<()>,
}

impl Released {
    /// Opens or, if there `may_begin` one, begins the record at `path`, of memory of `pages` pages.
    pub(super) fn open(path: &Path, identity: u32, pages: u64, may_begin: bool) -> io::Result<Self> {
        let mut head = [0; HEAD_SIZE as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&identity.to_le_bytes());
        let size = usize::try_from(pages.div_ceil(8)).map_err(io::Error::other)?;
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
        let mut map = Vec::new();
        if file.metadata()?.len() == 0 {
            if !may_begin {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "pages of this memory were given back, and this is not the record of them",
                ));
            }
            map.resize(size, 0);
            file.set_len(HEAD_SIZE + size as u64)?;
            file.write_all_at(&head, 0)?;
        } else {
            let mut found = [0; HEAD_SIZE as usize];
            file.read_exact(&mut found)?;
            file.read_to_end(&mut map)?;
            if found != head || map.len() != size {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "this is no record of this memory; if what it stands for is gone, remove it",
                ));
            }
        }
        let map = RwLock::new(map);
        let changing = Mutex::default();
        Ok(Self { file, map, changing })
    }

    /// What is given back as of now; nothing more is while this is held, which is not for long: reading a page can take for ever. Who reads
    /// looks before and after it.
    pub(super) fn look(&self) -> Look<'_> {
        // A note is whole whatever a thread died of.
        Look(self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes `range`, and returns what of it was not noted before. Only that may be given back, and only after this.
    pub(super) fn note(&self, range: PageRange) -> io::Result<Vec<PageRange>> {
        let _changing = self.begin();
        let fresh = bits::unset_runs(&self.look().0, range);
        self.change(range, bits::set)?;
        Ok(fresh)
    }

    /// These pages, which were noted, have not been given back, and it is sure that they are what they were.
    pub(super) fn forget(&self, pages: &[PageRange]) -> io::Result<()> {
        let _changing = self.begin();
        pages.iter().try_for_each(|range| self.change(*range, bits::clear))
    }

    /// Whether nothing has been given back.
    pub(super) fn is_empty(&self) -> bool {
        self.look().0.iter().all(|byte| *byte == 0)
    }

    /// Changes the bits of `range`, in the file first.
    fn change(&self, range: PageRange, how: impl Fn(&mut [u8], PageRange)) -> io::Result<()> {
        let first = range.first().get() / 8;
        let bytes = first as usize..=((end(range) - 1) / 8) as usize;
        let mut changed = self.look().0[bytes.clone()].to_vec();
        let shifted = crate::page::range(range.first().get() % 8, range.count());
        shifted.into_iter().for_each(|range| how(&mut changed, range));
        self.file.write_all_at(&changed, HEAD_SIZE + first)?;
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map[bytes].copy_from_slice(&changed);
        Ok(())
    }

    fn begin(&self) -> MutexGuard<'_, ()> {
        // It protects no value of its own.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Look<'a>(RwLockReadGuard<'a, Vec<u8>>);

impl Look<'_> {
    /// The pages from the beginning of `range` that are alike, whether they are given back, and the rest.
    pub(super) fn split(&self, range: PageRange) -> (PageRange, bool, Option<PageRange>) {
        let gone = self.gone(range.first().get());
        let alike = (range.first().get()..end(range))
            .take_while(|page| self.gone(*page) == gone)
            .count();
        match split(range, alike as u64) {
            (Some(front), rest) => (front, gone, rest),
            // The first page is like itself.
            (None, _) => (range, gone, None),
        }
    }

    /// Whether any page of `range` is given back.
    pub(super) fn has_any(&self, range: PageRange) -> bool {
        (range.first().get()..end(range)).any(|page| self.gone(page))
    }

    fn gone(&self, page: u64) -> bool {
        bits::is_set(&self.0, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::range;

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
