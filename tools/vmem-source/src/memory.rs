// SPDX-License-Identifier: GPL-2.0
//! Memory that exists on this machine and can be exported.

mod file;
mod region;
mod released;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags, fgetxattr, flock, fremovexattr, fsetxattr, fstatfs, fstatvfs};
use rustix::io::Errno;
use twox_hash::XxHash3_128;
use vmem::{Name, PAGE_SIZE, PageRange};
use vmem_pages::join;

use crate::answer::Chunk;
use crate::export::{Export, MAX_PAGES};
use file::FileMemory;
use region::RegionMemory;
use released::Released;

/// Memory that cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Not `NAME=PATH`.
    #[error("{0:?} is not NAME=PATH")]
    Spec(String),
    /// The name breaks the rule.
    #[error(transparent)]
    Name(#[from] vmem::Error),
    /// It cannot be opened or looked at.
    #[error("{}", path.display())]
    Io {
        /// Of what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no memory.
    #[error("{}: {what}", path.display())]
    NotMemory {
        /// What is not.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A server gives pages of it back.
    #[error("{}: another server has it, of which one gives pages back", path.display())]
    InUse {
        /// What is in use.
        path: PathBuf,
    },
    /// Pages of it were given back: what is zero in it need not have been.
    #[error("{}: pages of it were given back, and only a server with their record (--free) knows which", path.display())]
    GivenBack {
        /// What it is.
        path: PathBuf,
    },
    /// It has a size that no region can have.
    #[error("{} has {size} bytes; a region has 1 byte to 16 TiB", path.display())]
    Size {
        /// Of what.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// A piece of memory under a name.
pub struct Memory {
    export: Export,
    contents: Contents,
    path: PathBuf,
    /// What was opened. Who gives pages back has locked it alone, all others together: a page that has been given back reads as zeros.
    held: File,
    /// If pages may be given back: which have been.
    released: Option<Released>,
    /// It has turned out that no holes can be made in it.
    keeps: AtomicBool,
    /// Its file's device, number, device number if it is one itself, and birth.
    numbers: [u64; 4],
}

/// Pages cannot be given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// It cannot be noted that they are. They are kept.
    #[error("the record cannot be written")]
    Note(#[source] io::Error),
    /// There are no holes in this kind of memory. They are kept, and so is all of it from now on.
    #[error("no holes can be made in it; all of its pages are kept from now on")]
    Unsupported(#[source] io::Error),
    /// A hole could not be made, or not all of it.
    #[error("a hole cannot be made")]
    Hole(#[source] io::Error),
}

enum Contents {
    File(FileMemory),
    Region(RegionMemory),
}

impl Memory {
    /// Opens what `NAME=PATH` says: a file (on any file system; sparse or not), a memfd
    /// (`/proc/PID/fd/N`), a block device, or a vmem region (`/dev/vmem/NAME`).
    ///
    /// The last page of a file whose size is not a multiple of the page size is filled up with zeros.
    ///
    /// # Errors
    ///
    /// There is no such memory, or it cannot be exported.
    pub fn open(spec: &str) -> Result<Self, MemoryError> {
        let memory = Self::find(spec)?;
        match flock(&memory.held, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Err(MemoryError::InUse { path: memory.path }),
            _ if memory.is_marked() => Err(MemoryError::GivenBack { path: memory.path }),
            // Not every file system has locks.
            _ => Ok(memory),
        }
    }

    fn find(spec: &str) -> Result<Self, MemoryError> {
        let (name, path) = spec.split_once('=').ok_or_else(|| MemoryError::Spec(spec.to_owned()))?;
        let (name, path) = (Name::new(name)?, Path::new(path));
        let io = |source| MemoryError::Io {
            path: path.to_owned(),
            source,
        };
        let not_memory = |what| MemoryError::NotMemory {
            path: path.to_owned(),
            what,
        };
        // Not blocking, because the open of a FIFO would wait for somebody who writes.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io(e.into()))?);
        let metadata = file.metadata().map_err(io)?;
        let held = file.try_clone().map_err(io)?;
        let kind = metadata.file_type();
        if kind.is_file() && is_in_place_of_a_node(path) {
            return Err(not_memory("a plain file in the place of a region's node; remove it"));
        }
        let (contents, size) = if kind.is_file() || kind.is_block_device() {
            // A block device's metadata has no size, seeking finds it.
            let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| io(e.into()))?;
            (Contents::File(FileMemory::new(file, size)), size)
        } else if kind.is_char_device() {
            let region = RegionMemory::open(file)
                .map_err(io)?
                .ok_or_else(|| not_memory("a device, but no vmem region"))?;
            let size = region.size();
            (Contents::Region(region), size)
        } else {
            return Err(not_memory("neither a file nor a vmem region"));
        };
        let pages = size.div_ceil(PAGE_SIZE as u64);
        if !(1..=MAX_PAGES).contains(&pages) {
            return Err(MemoryError::Size {
                path: path.to_owned(),
                size,
            });
        }
        // A file system may give a new file the number of one that is gone.
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |born| born.as_nanos() as u64);
        let file_numbers = [metadata.ino(), metadata.rdev(), born];
        let identity = identity(&held, metadata.dev(), file_numbers).map_err(io)?;
        Ok(Self {
            export: Export { name, pages, identity },
            contents,
            path: path.to_owned(),
            held,
            released: None,
            keeps: AtomicBool::new(false),
            numbers: [metadata.dev(), metadata.ino(), metadata.rdev(), born],
        })
    }

    /// Opens memory as [`open`](Self::open) does, and lets destinations say which pages they have, so that this machine gets their memory
    /// back. Which these are is noted in the file `NAME.released` in the directory `records`, a bit a page: from then on they are
    /// unreadable, for later servers too. Where the file system can mark files, one that is opened without the record is refused.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); it cannot be written to, another server has it, or there is a record of other memory.
    pub fn open_releasable(spec: &str, records: &Path) -> Result<Self, MemoryError> {
        let mut memory = Self::find(spec)?;
        let in_file = |path: PathBuf| |source| MemoryError::Io { path, source };
        match flock(&memory.held, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(MemoryError::InUse { path: memory.path }),
            other => other.map_err(|error| in_file(memory.path.clone())(error.into()))?,
        }
        // The very file that was opened, whatever is at its path by now.
        let itself = PathBuf::from(format!("/proc/self/fd/{}", memory.held.as_raw_fd()));
        match &mut memory.contents {
            Contents::File(file) => file.writable(&itself),
            Contents::Region(region) => region.writable(&itself),
        }
        .map_err(in_file(memory.path.clone()))?;
        let path = records.join(format!("{}.released", memory.export.name));
        let released = record_tag(&memory.numbers)
            .and_then(|tag| Released::open(&path, tag, memory.export.pages, !memory.is_marked()))
            .map_err(in_file(path))?;
        memory.released = Some(released);
        Ok(memory)
    }

    /// Whether pages of the file were given back, as far as its file system can tell.
    fn is_marked(&self) -> bool {
        fgetxattr(&self.held, MARK, &mut [0; 1][..]).is_ok()
    }

    /// Whether [`release`](Self::release) does anything.
    pub(crate) fn is_releasable(&self) -> bool {
        self.released.is_some()
    }

    /// Gives `range` back: a destination has it. What cannot be noted is kept. Returns how many pages were given back: pages that had been
    /// before do not count.
    ///
    /// Where the system cannot make holes at all, nothing is given back from then on, and the pages stay readable. After another error a hole
    /// may have been made or not: the pages stay unreadable.
    pub(crate) fn release(&self, range: PageRange) -> Result<u64, ReleaseError> {
        let Some(released) = self.released.as_ref().filter(|_| !self.keeps.load(Ordering::Relaxed)) else {
            return Ok(0);
        };
        let fresh = released.note(range).map_err(ReleaseError::Note)?;
        // Not every file system can, and none on a region's node. It costs less than the hole.
        let _ = fsetxattr(&self.held, MARK, b"1", XattrFlags::empty());
        let mut count = 0;
        for (at, pages) in fresh.iter().enumerate() {
            let made = match &self.contents {
                Contents::File(file) => file.release(*pages),
                Contents::Region(region) => region.release(*pages),
            };
            match made {
                Ok(()) => count += pages.count(),
                Err(error) if is_unsupported(&error) => {
                    self.keep(released, &fresh[at..]);
                    return Err(ReleaseError::Unsupported(error));
                }
                Err(error) => return Err(ReleaseError::Hole(error)),
            }
        }
        Ok(count)
    }

    /// No hole can be made: these pages are what they were, and so will all others be.
    fn keep(&self, released: &Released, pages: &[PageRange]) {
        self.keeps.store(true, Ordering::Relaxed);
        // Who cannot note that they are still here has them unreadable, which loses memory and no contents.
        if released.forget(pages).is_ok() && released.is_empty() {
            let _ = fremovexattr(&self.held, MARK);
        }
    }

    /// What is offered of it.
    #[must_use]
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Adds pages from the beginning of `range` to `chunk` until `chunk` is full or `range` at its
    /// end, and returns what is left of `range`. Whatever cannot be read is added as unreadable.
    pub(crate) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let Some(released) = &self.released else {
            return self.read_contents(range, chunk);
        };
        let (front, gone, rest) = released.look().split(range);
        let left = if gone {
            chunk.push_unreadable(front);
            None
        } else {
            let before = chunk.mark();
            let left = self.read_contents(front, chunk);
            // What was given back meanwhile may have been read as zeros. It has been noted before.
            if released.look().has_any(front) {
                chunk.go_back(&before);
                return Some(range);
            }
            left
        };
        match (left, rest) {
            (Some(left), Some(rest)) => join(left, rest),
            (left, rest) => left.or(rest),
        }
    }

    fn read_contents(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        match &self.contents {
            Contents::File(file) => file.read(range, chunk),
            Contents::Region(region) => region.read(range, chunk),
        }
    }
}

/// Whether there are no holes in this kind of memory, so that none has been made.
fn is_unsupported(error: &io::Error) -> bool {
    let errors = [Errno::OPNOTSUPP, Errno::NOSYS].map(|errno| Some(errno.raw_os_error()));
    errors.contains(&error.raw_os_error())
}

/// Whether `path` is where a region's node would be. A program that opens a node too early may make a plain file there, and what it holds is
/// not what anybody means by the path.
fn is_in_place_of_a_node(path: &Path) -> bool {
    let path = std::fs::canonicalize(path);
    path.is_ok_and(|path| path.parent().is_some_and(|directory| directory == Path::new(vmem::DIRECTORY)))
}

/// What a file is marked with once pages of it have been given back.
const MARK: &str = "user.vmem.released";

/// What `statfs` says of file systems in memory: tmpfs (also that of memfds, and of device nodes), ramfs, hugetlbfs.
const IN_MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// Which memory this is, most likely, among all that there are: the same number for the same file. What a file system in memory calls by one
/// number, or the kernel a region, is other memory after a reboot; a file on a disk is the same. `numbers` tell the file from others of its
/// file system; `device` is what this boot calls that.
fn identity(file: &File, device: u64, numbers: [u64; 3]) -> io::Result<u128> {
    let mut hash = XxHash3_128::new();
    if IN_MEMORY.contains(&fstatfs(file)?.f_type) {
        hash.write(&boot_id()?);
        hash.write(&device.to_le_bytes());
    } else {
        hash.write(&fstatvfs(file)?.f_fsid.to_le_bytes());
    }
    numbers.iter().for_each(|number| hash.write(&number.to_le_bytes()));
    Ok(hash.finish_128())
}

/// What the record of released pages knows the memory by: the same number only, most likely, for the same file in the same boot.
fn record_tag(numbers: &[u64]) -> io::Result<u32> {
    Ok(numbers.iter().fold(crc32c::crc32c(&boot_id()?), |crc, number| {
        crc32c::crc32c_append(crc, &number.to_le_bytes())
    }))
}

fn boot_id() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id")
}
