// SPDX-License-Identifier: GPL-2.0
//! Memory that is a vmem region.
//!
//! A touch of an absent page waits for the region's own daemon, which is what a chain of hosts wants. A touch of an unreadable one is
//! SIGBUS, which the server must not die of: so the mapping is read through the kernel, which gives an error instead.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use vmem::{Access, MapHandle, Mapping, PAGE_SIZE, PageRange, Sharing};

use crate::answer::Chunk;
use crate::page::split;

pub(super) struct RegionMemory {
    mapping: Mapping,
    /// `/proc/self/mem`.
    process: File,
}

impl RegionMemory {
    /// Maps the region that `file` is an open node of; `None` if it is another device.
    pub(super) fn open(file: File) -> io::Result<Option<Self>> {
        let handle = MapHandle::from(OwnedFd::from(file));
        if handle.info().is_err() {
            return Ok(None);
        }
        let mapping = handle.map(Access::ReadOnly, Sharing::Shared).map_err(io::Error::other)?;
        Ok(Some(Self {
            mapping,
            process: File::open("/proc/self/mem")?,
        }))
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    pub(super) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let (front, rest) = split(range, chunk.room() as u64);
        let front = front?;
        if self.fill(front, chunk) {
            chunk.commit(front);
            return rest;
        }
        for page in front.iter().map(PageRange::from) {
            if self.fill(page, chunk) {
                chunk.commit(page);
            } else {
                chunk.push_unreadable(page);
            }
        }
        rest
    }

    /// Reads `range` to where `chunk` takes it. False if any of it cannot be read.
    fn fill(&self, range: PageRange, chunk: &mut Chunk) -> bool {
        let length = range.count() as usize * PAGE_SIZE;
        let address = self.mapping.as_ptr() as u64 + range.bytes().start;
        self.process.read_exact_at(&mut chunk.spare()[..length], address).is_ok()
    }
}
