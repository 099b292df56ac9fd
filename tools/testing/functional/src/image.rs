// SPDX-License-Identifier: GPL-2.0-or-later
//! What memory held at one instant: what the tests of snapshots begin with.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder};
use vmem_sys::{calls, vmem_snapshot_info};

use crate::adopted::{Adopted, bitmap, page_bytes, runs};
use crate::failure::{Outcome, ensure, equal};

/// A snapshot descriptor.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    /// For how long writers were held up.
    pub(crate) closed: Duration,
}

impl Image {
    /// Takes a snapshot of one memory.
    pub(crate) fn take(memory: &Adopted, flags: u32, limit: u64) -> Result<Self, Errno> {
        let [image] = Self::take_all([memory], flags, limit)?;
        Ok(image)
    }

    /// Takes one of several, at one instant.
    pub(crate) fn take_all<const N: usize>(memories: [&Adopted; N], flags: u32, limit: u64) -> Result<[Self; N], Errno> {
        let snapshot = calls::snapshot(&memories.map(AsFd::as_fd), flags, limit)?;
        let closed = Duration::from_nanos(snapshot.closed_ns);
        let image = |fd: OwnedFd| Self { file: fd.into(), closed };
        let images: Vec<_> = snapshot.images.into_iter().map(image).collect();
        images.try_into().map_err(|_| Errno::BADF)
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Figures of the snapshot.
    pub(crate) fn info(&self) -> Result<vmem_snapshot_info, Errno> {
        calls::get_snapshot(self.as_fd())
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> Outcome<usize> {
        Ok(self.info()?.size as usize / PAGE_SIZE)
    }

    /// All of it, by one call.
    pub(crate) fn bytes(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; self.pages()? * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// A page, by a call that reads it alone.
    pub(crate) fn page(&self, page: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, page_bytes(page).start as u64)?;
        Ok(bytes)
    }

    /// A mapping of all of it.
    pub(crate) fn map(&self, builder: AreaBuilder) -> Outcome<Area> {
        Ok(builder.map(&self.file, 0, self.pages()?)?)
    }

    /// The reader has these pages.
    pub(crate) fn done(&self, page: usize, count: usize) -> Result<(), Errno> {
        calls::snapshot_done(self.as_fd(), page as u64, count as u64)
    }

    /// The pages that were in the log at the instant.
    pub(crate) fn log(&self) -> Outcome<Vec<usize>> {
        Ok(bitmap(self, 0..self.pages()?, false)?.pages)
    }

    /// The pages that SEEK_DATA and SEEK_HOLE say have contents.
    pub(crate) fn data(&self) -> Outcome<Vec<usize>> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let data = match seek(self, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => return Ok(found),
                Err(errno) => return Err(errno.into()),
            };
            let hole = seek(self, SeekFrom::Hole(data))?;
            ensure!(at <= data && data < hole, "data at {data} after {at}, and a hole at {hole}");
            found.extend(data as usize / PAGE_SIZE..hole as usize / PAGE_SIZE);
            at = hole;
        }
    }

    /// Fails unless it is this.
    pub(crate) fn check(&self, expected: &[u8]) -> Outcome {
        let found = self.bytes()?;
        equal!(found.len(), expected.len());
        let wrong: Vec<_> = (0..found.len() / PAGE_SIZE)
            .filter(|page| found[page_bytes(*page)] != expected[page_bytes(*page)])
            .collect();
        ensure!(
            wrong.is_empty(),
            "{} pages of the image are not what they were: {}",
            wrong.len(),
            runs(&wrong)
        );
        Ok(())
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
