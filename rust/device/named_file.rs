// SPDX-License-Identifier: GPL-2.0

//! Files of named regions, in the file system.
//!
//! An open file is a map descriptor, with reads and writes in addition (`file_io.rs`).

use super::{
    region::Region,
    region_file::RegionFile,
    registry, //
};
use crate::sys::{
    file_ops::{
        FileOps,
        FileOpsTable,
        IoWait,
        OpenedInode, //
    },
    shared::SharedMemory,
    uapi::UserArg,
    vm_ops::NewVma,
    wait::PollQueue, //
};
use kernel::{
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
    types::ForeignOwnable, //
};

/// The operations of files of regions.
pub(crate) static OPS: FileOpsTable<NamedFile> = FileOpsTable::new();

/// The value of [`NamedFile::awaited`] for no page.
const NOTHING: u64 = u64::MAX;

/// The private data of an open file of a region.
pub(crate) struct NamedFile {
    region_file: RegionFile,
    pub(super) memory: SharedMemory,
    /// The page that the last read or write did not wait for. poll() waits for it.
    awaited: Atomic<u64>,
}

impl NamedFile {
    /// The file as a map descriptor.
    pub(super) fn region_file(&self) -> &RegionFile {
        &self.region_file
    }

    /// The region.
    pub(super) fn region(&self) -> &Arc<Region> {
        self.region_file.region()
    }

    /// A read or write does not wait for this page.
    pub(super) fn refuse(&self, pgoff: u64) {
        // Before the caller, and poll(), look at the page.
        if self.awaited.xchg(pgoff, Full) == NOTHING {
            self.region().pages().count_refusal();
        }
    }

    /// A read or write has not had to wait for a page.
    pub(super) fn forget_refusal(&self) {
        if self.awaited.load(Relaxed) != NOTHING && self.awaited.xchg(NOTHING, Relaxed) != NOTHING {
            self.region().pages().forget_refusal();
        }
    }

    fn is_ready(&self) -> bool {
        match self.awaited.load(Relaxed) {
            NOTHING => true,
            // The call finds out what has become of the page.
            pgoff => {
                let pages = self.region().pages();
                !pages.is_awaited(pgoff)
                    || (self.region().fails_absent_touches() && !pages.is_claimed(pgoff))
            }
        }
    }
}

impl Drop for NamedFile {
    fn drop(&mut self) {
        self.forget_refusal();
    }
}

#[vtable]
impl FileOps for NamedFile {
    type Data = KBox<Self>;

    fn open(inode: &OpenedInode<'_>) -> Result<Self::Data> {
        // The inode may still be in use when its region is gone.
        let handle = registry::find_id(inode.file_id()).map_err(|_| ENXIO)?;
        let memory = SharedMemory::of_region(handle.region().staging());
        Ok(KBox::new(
            Self {
                region_file: RegionFile::for_open(handle)?,
                memory,
                awaited: Atomic::new(NOTHING),
            },
            GFP_KERNEL,
        )?)
    }

    fn ioctl(this: &Self, file: &File, cmd: u32, arg: UserArg) -> Result {
        RegionFile::ioctl(&this.region_file, file, cmd, arg)
    }

    fn mmap(this: &Self, vma: NewVma<'_>) -> Result {
        this.region_file.map(vma)
    }

    fn poll_queue<'a>(this: <Self::Data as ForeignOwnable>::Borrowed<'a>) -> Option<&'a PollQueue> {
        Some(&this.region().pages().pollers)
    }

    fn is_readable(this: &Self) -> bool {
        this.is_ready()
    }

    fn is_writable(this: &Self) -> bool {
        this.is_ready()
    }

    fn size(this: &Self) -> u64 {
        this.region().length()
    }

    fn seek(this: &Self, pos: u64, is_data: bool) -> Result<u64> {
        this.find(pos, is_data)
    }

    fn read(this: &Self, pos: u64, to: &mut IovIterDest<'_>, wait: IoWait) -> Result<usize> {
        this.read_from(pos, to, wait)
    }

    fn write(this: &Self, pos: u64, from: &mut IovIterSource<'_>, wait: IoWait) -> Result<usize> {
        this.write_to(pos, from, wait)
    }

    fn punch(this: &Self, offset: u64, len: u64) -> Result {
        this.discard_bytes(offset, len)
    }

    fn prefetch(this: &Self, offset: u64, len: u64) -> Result {
        this.request_bytes(offset, len)
    }

    fn show_fdinfo(this: &Self, m: &SeqFile) {
        RegionFile::show_fdinfo(&this.region_file, m);
    }
}
