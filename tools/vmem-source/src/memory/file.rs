// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that is a file.
//!
//! The server reads it with `pread(2)`, which sees the writes of programs that map the file. The server does not map it: reading a file that
//! has been truncated is an error, not a signal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use vmem::{PAGE_SIZE, PageRange};

use crate::answer::Chunk;

pub(super) struct FileMemory {
    file: File,
    /// Size in bytes when the file was opened. Bytes beyond it are zero; a page that is missing because the file was truncated later is
    /// unreadable.
    size: u64,
}

impl FileMemory {
    pub(super) fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }

    /// Opens the file at `path` again, for writing, so that pages can be released.
    pub(super) fn make_writable(&mut self, path: &Path) -> io::Result<()> {
        self.file = File::options().read(true).write(true).open(path)?;
        Ok(())
    }

    /// Makes a hole, which reads as zeros, also through mappings of the file.
    pub(super) fn release(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, bytes.start, bytes.end - bytes.start)?)
    }

    pub(super) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let mut rest = Some(range);
        while let Some(range) = rest.filter(|_| chunk.room() > 0) {
            let hole = self.hole_pages(range);
            rest = match range.split_at(hole) {
                (Some(zero), rest) => {
                    chunk.push_zero(zero);
                    rest
                }
                (None, _) => self.read_data(range, chunk),
            };
        }
        rest
    }

    /// Number of pages at the beginning of `range` that are surely a hole.
    pub(super) fn hole_pages(&self, range: PageRange) -> u64 {
        let start = range.bytes().start;
        let data = match seek(&self.file, SeekFrom::Data(start)) {
            Ok(offset) => offset / PAGE_SIZE as u64,
            // A hole up to the end of the file, if the file has not been truncated.
            Err(Errno::NXIO) if self.file.metadata().is_ok_and(|m| m.len() >= self.size) => range.end(),
            // Not every file system supports SEEK_DATA.
            Err(_) => range.first().get(),
        };
        data.min(range.end()).saturating_sub(range.first().get())
    }

    /// Reads pages that do not begin with a hole, as many as `chunk` has room for. It does not look for the next hole: `SEEK_HOLE` on tmpfs
    /// walks over all pages up to there with the file locked. Up to a chunk of a hole is read as data, which is zero as well.
    fn read_data(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let (data, rest) = range.split_at(chunk.room() as u64);
        let data = data?;
        if self.fill(data, chunk) {
            chunk.commit(data);
        } else {
            for page in data.iter().map(PageRange::from) {
                if self.fill(page, chunk) {
                    chunk.commit(page);
                } else {
                    chunk.push_unreadable(page);
                }
            }
        }
        rest
    }

    /// Reads `range` into the spare buffer of `chunk`. False if any page cannot be read.
    fn fill(&self, range: PageRange, chunk: &mut Chunk) -> bool {
        let length = range.count() as usize * PAGE_SIZE;
        let buffer = &mut chunk.spare()[..length];
        // Shorter than `length` only for the last page, in which the file ends.
        let in_file = usize::try_from(self.size - range.bytes().start)
            .unwrap_or(usize::MAX)
            .min(length);
        buffer[in_file..].fill(0);
        self.file.read_exact_at(&mut buffer[..in_file], range.bytes().start).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::memfd;

    /// A terabyte of a hole must cost no read.
    #[test]
    fn hole_is_found_without_reading_it() {
        const PAGES: u64 = 1 << 28;
        let size = PAGES * PAGE_SIZE as u64;
        let memory = FileMemory::new(memfd(size, &[5]), size);
        let hole = |first, count| memory.hole_pages(PageRange::from_pgoff(first, count).expect("a range"));
        assert_eq!(hole(0, PAGES), 5);
        assert_eq!(hole(5, PAGES - 5), 0);
        assert_eq!(hole(6, PAGES - 6), PAGES - 6);
        assert_eq!(hole(0, 3), 3);
        let mut chunk = Chunk::new();
        assert_eq!(
            memory.read(PageRange::from_pgoff(6, PAGES - 6).expect("a range"), &mut chunk),
            None
        );
        assert_eq!((chunk.runs().len(), chunk.data().len()), (1, 0));
    }
}
