// SPDX-License-Identifier: GPL-2.0
//! Memory that is a vmem region.
//!
//! A touch of an absent page waits for the region's own daemon, which is what a chain of hosts wants. A touch of an unreadable one is
//! SIGBUS, which the server must not die of: so the kernel reads, and says where it had to stop.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use vmem::{Access, MapHandle, Mapping, PAGE_SIZE, PageRange, Sharing};
use vmem_pages::split;

use crate::answer::Chunk;

pub(super) struct RegionMemory {
    mapping: Mapping,
}

impl RegionMemory {
    /// Maps the region that `file` is an open node of; `None` if it is another device.
    pub(super) fn open(file: File) -> io::Result<Option<Self>> {
        let handle = MapHandle::from(OwnedFd::from(file));
        if handle.info().is_err() {
            return Ok(None);
        }
        let mapping = handle.map(Access::ReadOnly, Sharing::Shared).map_err(io::Error::other)?;
        Ok(Some(Self { mapping }))
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Opens the region, whose node is at `path`, for giving pages back.
    pub(super) fn writable(&mut self, path: &Path) -> io::Result<()> {
        let handle = MapHandle::open_path(path, Access::ReadWrite).map_err(io::Error::other)?;
        self.mapping = handle.map(Access::ReadWrite, Sharing::Shared).map_err(io::Error::other)?;
        Ok(())
    }

    /// Makes a hole. Who maps the region, which is plain memory, reads zeros there.
    pub(super) fn release(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let (start, length) = (bytes.start as usize, (bytes.end - bytes.start) as usize);
        self.mapping.remove(start, length).map_err(io::Error::other)
    }

    pub(super) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let mut rest = Some(range);
        while let Some(range) = rest.filter(|_| chunk.room() > 0) {
            let (front, _) = split(range, chunk.room() as u64);
            let readable = front.map_or(0, |front| self.fill(front, chunk));
            rest = match split(range, readable) {
                (Some(read), rest) => {
                    chunk.commit(read);
                    rest
                }
                (None, _) => {
                    let (unreadable, rest) = split(range, 1);
                    unreadable.into_iter().for_each(|page| chunk.push_unreadable(page));
                    rest
                }
            };
        }
        rest
    }

    /// Reads `range` to where `chunk` takes it, and returns how many pages could be read before the first that could not.
    fn fill(&self, range: PageRange, chunk: &mut Chunk) -> u64 {
        let length = range.count() as usize * PAGE_SIZE;
        let buffer = &mut chunk.spare()[..length];
        let read = self.mapping.read_until_fault(range.bytes().start as usize, buffer);
        (read.unwrap_or(0) / PAGE_SIZE) as u64
    }
}
