// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory of a program at the source.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use vmem::{Access, MapHandle, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder};

use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure};
use crate::setting::{Setting, bytes_of, contents};
use crate::world::wait_until;

/// Pages of which so many are data at first; the others are a hole.
const DATA: usize = 3;
const OF: usize = 4;

/// Shared memory, open for writing once: programs that are started later have the same open file.
pub(crate) struct Memory {
    pub(crate) file: File,
    pages: usize,
    kind: Kind,
}

enum Kind {
    Memfd,
    /// A file that is removed at the end.
    Named(PathBuf),
    /// A region that is plain memory, and its node.
    Region(String, MapHandle),
}

impl Memory {
    /// A memfd. Three quarters of its pages are data, and the others are a hole.
    pub(crate) fn memfd(pages: usize) -> Outcome<Self> {
        let file = OwnedFd::into(memfd_create("rounds", MemfdFlags::CLOEXEC)?);
        Self::fill(file, pages, Kind::Memfd)
    }

    /// A file in `/dev/shm`.
    pub(crate) fn named(name: &str, pages: usize) -> Outcome<Self> {
        let path = PathBuf::from(format!("/dev/shm/{name}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        Self::fill(file, pages, Kind::Named(path))
    }

    fn fill(file: File, pages: usize, kind: Kind) -> Outcome<Self> {
        file.set_len((pages * PAGE_SIZE) as u64)?;
        let bytes: Vec<u8> = (0..pages as u64 * DATA as u64 / OF as u64)
            .flat_map(|page| bytes_of(&contents(page)))
            .collect();
        file.write_all_at(&bytes, 0)?;
        Ok(Self { file, pages, kind })
    }

    /// A region whose daemon has filled it, has made it plain memory, and has gone.
    pub(crate) fn region(name: &str, pages: usize) -> Outcome<Self> {
        let setting = Setting::create(RegionBuilder::new((pages * PAGE_SIZE) as u64).name(name).mode(0o600))?;
        setting.fill_all()?;
        setting.region.ready()?;
        setting.region.make_vma_anonymous()?;
        Ok(Self {
            file: setting.region.staging().try_clone()?,
            pages,
            kind: Kind::Region(name.to_owned(), MapHandle::open(name, Access::ReadWrite)?),
        })
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Where vmemd opens it.
    pub(crate) fn path(&self) -> String {
        match &self.kind {
            Kind::Memfd => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()),
            Kind::Named(path) => path.display().to_string(),
            Kind::Region(name, _) => format!("/dev/vmem/{name}"),
        }
    }

    /// Maps all of it.
    pub(crate) fn area(&self) -> Outcome<Area> {
        let area = AreaBuilder::default();
        Ok(match &self.kind {
            Kind::Region(_, node) => area.map(node, 0, self.pages)?,
            _ => area.map(&self.file, 0, self.pages)?,
        })
    }

    /// What it holds, by a call that maps nothing.
    pub(crate) fn bytes(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; self.pages * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn adopt(&self) -> Result<Adopted, rustix::io::Errno> {
        match &self.kind {
            Kind::Region(_, node) => Adopted::new(node),
            _ => Adopted::new(&self.file),
        }
    }

    /// Whether a process has adopted it.
    pub(crate) fn is_adopted(&self) -> bool {
        self.adopt().is_err()
    }

    /// Waits until nobody tracks it any more: somebody else can.
    pub(crate) fn wait_untracked(&self) -> Outcome {
        wait_until("the memory is not adopted", || Ok(!self.is_adopted()))?;
        let adopted = self.adopt()?;
        adopted.track_anew()?;
        adopted.untrack()?;
        ensure!(adopted.tracking()?.tracked == 0, "it is tracked after the log");
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Kind::Named(path) = &self.kind {
            let _ = fs::remove_file(path);
        }
    }
}
