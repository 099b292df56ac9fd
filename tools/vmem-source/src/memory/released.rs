// SPDX-License-Identifier: GPL-2.0
//! Which pages have been given back, in a file that outlives the server.
//!
//! A page that was given back reads as zeros, and nothing in the memory tells it from one that is zero. So it is noted here first, in a
//! file that the next server reads, and is unreadable from then on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vmem::PageRange;

use crate::page::{end, split};

const MAGIC: [u8; 8] = *b"VMEMGONE";

/// Magic, identity of the memory, four bytes of zeros. A bit for each page follows, lowest first.
const HEAD_SIZE: u64 = 16;

pub(super) struct Released {
    file: File,
    map: RwLock<Vec<u8>>,
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
        Ok(Self { file, map })
    }

    /// What is given back as of now; nothing more is while this is held, which is not for long: reading a page can take for ever. Who reads
    /// looks before and after it.
    pub(super) fn look(&self) -> Look<'_> {
        // A note is whole whatever a thread died of.
        Look(self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes `range`. It may be given back only after this.
    pub(super) fn note(&self, range: PageRange) -> io::Result<()> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = (range.first().get() / 8, (end(range) - 1) / 8);
        let bytes = first as usize..=last as usize;
        let mut noted = map[bytes.clone()].to_vec();
        for page in range.iter().map(|page| page.get()) {
            noted[(page / 8 - first) as usize] |= 1 << (page % 8);
        }
        self.file.write_all_at(&noted, HEAD_SIZE + first)?;
        map[bytes].copy_from_slice(&noted);
        Ok(())
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
        let byte = usize::try_from(page / 8).ok().and_then(|index| self.0.get(index));
        byte.is_some_and(|byte| byte & (1 << (page % 8)) != 0)
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
