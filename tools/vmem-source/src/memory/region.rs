// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that is a region.
//!
//! A touch of an absent page waits for the region's own daemon; a chain of hosts needs that. A touch of an unreadable page raises SIGBUS,
//! which would end the server: so the kernel copies, and reports where it had to stop.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use vmem::{Access, MapHandle, Mapping, PAGE_SIZE, PageRange, Sharing};

use crate::answer::Chunk;

pub(super) struct RegionMemory {
    mapping: Mapping,
    length: u64,
}

impl RegionMemory {
    /// Maps the region whose open node or file is `file`.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let handle = MapHandle::from(OwnedFd::from(file));
        let length = handle.info().map_err(io::Error::other)?.length;
        let mapping = handle.map(Access::ReadOnly, Sharing::Shared).map_err(io::Error::other)?;
        Ok(Self { mapping, length })
    }

    /// Size in bytes, to the byte.
    pub(super) fn size(&self) -> u64 {
        self.length
    }

    /// Opens the region at `path` again, for writing, so that pages can be released.
    pub(super) fn make_writable(&mut self, path: &Path) -> io::Result<()> {
        let handle = MapHandle::open_path(path, Access::ReadWrite).map_err(io::Error::other)?;
        self.mapping = handle.map(Access::ReadWrite, Sharing::Shared).map_err(io::Error::other)?;
        Ok(())
    }

    /// Makes a hole, which reads as zeros. The region is plain memory.
    pub(super) fn release(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let (start, length) = (bytes.start as usize, (bytes.end - bytes.start) as usize);
        self.mapping.remove(start, length).map_err(io::Error::other)
    }

    pub(super) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let mut rest = Some(range);
        while let Some(range) = rest.filter(|_| chunk.room() > 0) {
            let (front, _) = range.split_at(chunk.room() as u64);
            let readable = front.map_or(0, |front| self.fill(front, chunk));
            rest = match range.split_at(readable) {
                (Some(read), rest) => {
                    chunk.commit(read);
                    rest
                }
                (None, _) => {
                    let (unreadable, rest) = range.split_at(1);
                    unreadable.into_iter().for_each(|page| chunk.push_unreadable(page));
                    rest
                }
            };
        }
        rest
    }

    /// Reads `range` into the spare buffer of `chunk`. Returns the number of pages before the first that cannot be read.
    fn fill(&self, range: PageRange, chunk: &mut Chunk) -> u64 {
        let length = range.count() as usize * PAGE_SIZE;
        let buffer = &mut chunk.spare()[..length];
        let read = self.mapping.read_until_fault(range.bytes().start as usize, buffer);
        (read.unwrap_or(0) / PAGE_SIZE) as u64
    }
}
