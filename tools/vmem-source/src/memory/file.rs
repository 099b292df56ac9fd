// SPDX-License-Identifier: GPL-2.0
//! Memory that is a file.
//!
//! Read with `pread`, which sees what programs that have the file mapped have written. Nothing is
//! mapped here, so that a file that shrinks is an error and no signal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use vmem::{PAGE_SIZE, PageRange};
use vmem_pages::{end, split};

use crate::answer::Chunk;

pub(super) struct FileMemory {
    file: File,
    /// Size in bytes when it was opened. Only what lies beyond this is zero by definition; a page that
    /// is missing because the file has shrunk since is unreadable.
    size: u64,
}

impl FileMemory {
    pub(super) fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }

    /// Opens the file, which is at `path`, for giving pages back.
    pub(super) fn writable(&mut self, path: &Path) -> io::Result<()> {
        self.file = File::options().read(true).write(true).open(path)?;
        Ok(())
    }

    /// Makes a hole. Who maps the file reads zeros there.
    pub(super) fn release(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, bytes.start, bytes.end - bytes.start)?)
    }

    pub(super) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let mut rest = Some(range);
        while let Some(range) = rest.filter(|_| chunk.room() > 0) {
            let hole = self.hole_pages(range);
            rest = match split(range, hole) {
                (Some(zero), rest) => {
                    chunk.push_zero(zero);
                    rest
                }
                (None, _) => self.read_data(range, chunk),
            };
        }
        rest
    }

    /// How many pages at the beginning of `range` are a hole. 0 if there is any doubt.
    fn hole_pages(&self, range: PageRange) -> u64 {
        let start = range.bytes().start;
        let data = match seek(&self.file, SeekFrom::Data(start)) {
            Ok(offset) => offset / PAGE_SIZE as u64,
            // Nothing but a hole up to the end of the file, if it still ends where it did.
            Err(Errno::NXIO) if self.file.metadata().is_ok_and(|m| m.len() >= self.size) => end(range),
            // Not every file system knows of holes.
            Err(_) => range.first().get(),
        };
        data.min(end(range)).saturating_sub(range.first().get())
    }

    /// Reads pages that do not begin with a hole, as many as there is room for. Where the next hole begins is not asked: on tmpfs the
    /// answer is a walk over all pages up to there, with the file locked. So up to a chunk of a hole may be read, which is zero as well.
    fn read_data(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let (data, rest) = split(range, chunk.room() as u64);
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

    /// Reads `range` to where `chunk` takes it. False if any of it cannot be read.
    fn fill(&self, range: PageRange, chunk: &mut Chunk) -> bool {
        let length = range.count() as usize * PAGE_SIZE;
        let buffer = &mut chunk.spare()[..length];
        // Less than `length` only in the last page: the file ends in it.
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
    use vmem_pages::range;

    /// A hole is known without a read: asking for a terabyte of it is no work.
    #[test]
    fn holes_are_not_read() {
        const PAGES: u64 = 1 << 28;
        let size = PAGES * PAGE_SIZE as u64;
        let memory = FileMemory::new(memfd(size, &[5]), size);
        let hole = |first, count| memory.hole_pages(range(first, count).expect("a range"));
        assert_eq!(hole(0, PAGES), 5);
        assert_eq!(hole(5, PAGES - 5), 0);
        assert_eq!(hole(6, PAGES - 6), PAGES - 6);
        assert_eq!(hole(0, 3), 3);
        let mut chunk = Chunk::new();
        assert_eq!(memory.read(range(6, PAGES - 6).expect("a range"), &mut chunk), None);
        assert_eq!((chunk.runs().len(), chunk.data().len()), (1, 0));
    }
}
