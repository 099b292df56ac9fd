// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of this host that can be exported.

mod file;
mod holes;
mod region;
mod released;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags, fgetxattr, flock, fremovexattr, fsetxattr, fstatfs, fstatvfs};
use rustix::io::Errno;
use twox_hash::XxHash3_128;
use vmem::{Name, PAGE_SIZE, PageRange};

use crate::answer::Chunk;
use crate::backing::BackingFile;
use crate::error::Error;
use crate::export::{Export, MAX_PAGES};
use file::FileMemory;
use region::RegionMemory;
use released::Released;

/// A memory with a name, for export.
pub struct Memory {
    export: Export,
    contents: Contents,
    path: PathBuf,
    /// The open file, locked with `flock(2)`: exclusively by a server that releases pages, shared by others. A released page reads as zeros.
    lock: File,
    /// The released pages; `None` if pages must not be released.
    released: Option<Released>,
    /// Set when it is known that the memory cannot have holes.
    keeps_pages: AtomicBool,
    /// Of the file: device, inode, device number (if it is a device), time of birth.
    file_id: [u64; 4],
}

enum Contents {
    File(FileMemory),
    Region(RegionMemory),
}

impl Memory {
    /// Opens the memory `NAME=PATH`. PATH is a file (on any file system; sparse or not), a memfd (`/proc/PID/fd/N`), a block device, or a
    /// region (`/run/vmem/NAME`, `/dev/vmem/NAME`).
    ///
    /// If the size of a file is not a multiple of the page size, zeros fill its last page.
    ///
    /// # Errors
    ///
    /// [`Error::Spec`], [`Error::Name`], [`Error::File`], [`Error::NotMemory`], [`Error::Size`], [`Error::InUse`],
    /// [`Error::PagesReleased`].
    pub fn open(spec: &str) -> Result<Self, Error> {
        let memory = Self::find(spec)?;
        match flock(&memory.lock, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Err(Error::InUse { path: memory.path }),
            _ if memory.is_marked() => Err(Error::PagesReleased { path: memory.path }),
            // Not every file system has locks.
            _ => Ok(memory),
        }
    }

    fn find(spec: &str) -> Result<Self, Error> {
        let (name, path) = spec.split_once('=').ok_or_else(|| Error::Spec(spec.to_owned()))?;
        let (name, path) = (Name::new(name)?, Path::new(path));
        let io = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let not_memory = |found| Error::NotMemory {
            path: path.to_owned(),
            found,
        };
        // A region has one lock and one identity, by whatever path it is named: those of its node.
        let node = vmem::region_node(path);
        let opened = node.as_deref().unwrap_or(path);
        // Nonblocking: the open of a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(opened, flags, Mode::empty()).map_err(|e| io(e.into()))?);
        let metadata = file.metadata().map_err(io)?;
        let lock = file.try_clone().map_err(io)?;
        let kind = metadata.file_type();
        if kind.is_file() && is_in_place_of_a_region(path) {
            return Err(not_memory("a plain file in the place of a region; remove it"));
        }
        let is_region = vmem::region_of(file.as_fd()).is_some();
        let (contents, size) = if is_region {
            let region = RegionMemory::open(file).map_err(io)?;
            let size = region.size();
            (Contents::Region(region), size)
        } else if kind.is_file() || kind.is_block_device() {
            // The metadata of a block device has no size; lseek(2) finds it.
            let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| io(e.into()))?;
            (Contents::File(FileMemory::new(file, size)), size)
        } else if kind.is_char_device() {
            return Err(not_memory("a device, but not a region"));
        } else {
            return Err(not_memory("neither a file nor a region"));
        };
        let pages = PageRange::of_len(size)
            .filter(|pages| pages.count() <= MAX_PAGES)
            .ok_or_else(|| Error::Size {
                path: path.to_owned(),
                size,
            })?;
        // A file system may reuse the inode number of a deleted file.
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |born| born.as_nanos() as u64);
        let file_numbers = [metadata.ino(), metadata.rdev(), born];
        let is_in_memory = is_region || IN_MEMORY.contains(&fstatfs(&lock).map_err(|e| io(e.into()))?.f_type);
        let device = is_in_memory.then_some(metadata.dev());
        let identity = identity(&lock, device, file_numbers).map_err(io)?;
        Ok(Self {
            export: Export {
                name,
                pages,
                padding: Export::padding_of(size),
                identity,
            },
            contents,
            path: path.to_owned(),
            lock,
            released: None,
            keeps_pages: AtomicBool::new(false),
            file_id: [metadata.dev(), metadata.ino(), metadata.rdev(), born],
        })
    }

    /// As [`open`](Self::open), but destinations can release the pages that they have, which frees their memory on this host. The file
    /// `NAME.released` in the directory `records` records the released pages, with a bit for each page: from then on they are unreadable,
    /// for later servers too. If the file system has extended attributes, [`open`](Self::open) refuses the file from then on.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open). [`Error::File`] also if the memory cannot be written to, or if the record is one of other memory.
    pub fn open_releasable(spec: &str, records: &Path) -> Result<Self, Error> {
        let mut memory = Self::find(spec)?;
        let in_file = |path: PathBuf| |source| Error::File { path, source };
        match flock(&memory.lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse { path: memory.path }),
            other => other.map_err(|error| in_file(memory.path.clone())(error.into()))?,
        }
        // The file that was opened, even if another one is at its path by now.
        let itself = PathBuf::from(format!("/proc/self/fd/{}", memory.lock.as_raw_fd()));
        match &mut memory.contents {
            Contents::File(file) => file.make_writable(&itself),
            Contents::Region(region) => region.make_writable(&itself),
        }
        .map_err(in_file(memory.path.clone()))?;
        let path = records.join(format!("{}.released", memory.export.name));
        let released = record_tag(&memory.file_id)
            .and_then(|tag| Released::open(&path, tag, memory.export.pages, !memory.is_marked()))
            .map_err(in_file(path))?;
        memory.released = Some(released);
        Ok(memory)
    }

    /// Whether the file is marked as one with released pages.
    fn is_marked(&self) -> bool {
        fgetxattr(&self.lock, MARK, &mut [0; 1][..]).is_ok()
    }

    /// Whether [`release`](Self::release) does anything.
    pub(crate) fn is_releasable(&self) -> bool {
        self.released.is_some()
    }

    /// Releases `range`, which a destination has. Returns the number of pages released by this call.
    ///
    /// # Errors
    ///
    /// [`Error::ReleaseRecord`]: nothing is released. [`Error::HolesUnsupported`]: the pages stay readable, and later calls release nothing.
    /// [`Error::PunchHole`]: the hole may have been made or not, and the pages stay unreadable.
    pub(crate) fn release(&self, range: PageRange) -> Result<u64, Error> {
        let Some(released) = self.released.as_ref().filter(|_| !self.keeps_pages.load(Ordering::Relaxed)) else {
            return Ok(0);
        };
        let fresh = released.insert(range).map_err(Error::ReleaseRecord)?;
        // Not every file system has extended attributes, and the node of a region has none. The call costs less than the hole.
        let _ = fsetxattr(&self.lock, MARK, b"1", XattrFlags::empty());
        let (mut count, mut failed) = (0, None);
        for (at, pages) in fresh.iter().enumerate() {
            let made = match &self.contents {
                Contents::File(file) => file.release(*pages),
                Contents::Region(region) => region.release(*pages),
            };
            match made {
                Ok(()) => count += pages.count(),
                Err(error) if is_unsupported(&error) => {
                    self.keep_pages(released, &fresh[at..]);
                    return Err(Error::HolesUnsupported(error));
                }
                // Of the others, the memory can be freed.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(count), |error| Err(Error::PunchHole(error)))
    }

    /// Makes the memory keep its pages from now on: it cannot have holes, and `pages` are unchanged.
    fn keep_pages(&self, released: &Released, pages: &[PageRange]) {
        self.keeps_pages.store(true, Ordering::Relaxed);
        // If the record cannot be changed, the pages stay unreadable: their memory is wasted, but no contents are lost.
        if released.remove(pages).is_ok() && released.is_empty() {
            let _ = fremovexattr(&self.lock, MARK);
        }
    }

    /// The export of the memory.
    #[must_use]
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// The memory as a file that the kernel may read pages of a region from.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub(crate) fn backing_file(&self) -> Result<BackingFile, Error> {
        // The same open file, and not another one of the same path: its lock lasts as long as the kernel has the file.
        let file = self.lock.try_clone().map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })?;
        Ok(BackingFile {
            export: self.export.name.clone(),
            file,
            path: self.path.clone(),
            pages: PageRange::of_pages(self.export.length() / PAGE_SIZE as u64),
        })
    }

    /// Adds pages from the beginning of `range` to `chunk`, and returns the pages that did not fit. Pages that cannot be read are added as
    /// unreadable.
    pub(crate) fn read(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        let Some(released) = &self.released else {
            return self.read_contents(range, chunk);
        };
        let (front, is_released, rest) = released.view().split(range);
        let left = if is_released {
            chunk.push_unreadable(front);
            None
        } else {
            let checkpoint = chunk.checkpoint();
            let left = self.read_contents(front, chunk);
            // Pages that were released meanwhile may have been read as zeros. They were recorded before that.
            if released.view().contains_any(front) {
                chunk.rollback(&checkpoint);
                return Some(range);
            }
            left
        };
        match (left, rest) {
            (Some(left), Some(rest)) => left.join(rest),
            (left, rest) => left.or(rest),
        }
    }

    /// Whether it is memory of a region, of which pages may be absent.
    pub(crate) fn is_region(&self) -> bool {
        matches!(self.contents, Contents::Region(_))
    }

    fn read_contents(&self, range: PageRange, chunk: &mut Chunk) -> Option<PageRange> {
        match &self.contents {
            Contents::File(file) => file.read(range, chunk),
            Contents::Region(region) => region.read(range, chunk),
        }
    }
}

/// Whether the error says that this kind of memory cannot have holes.
fn is_unsupported(error: &io::Error) -> bool {
    let errors = [Errno::OPNOTSUPP, Errno::NOSYS].map(|errno| Some(errno.raw_os_error()));
    errors.contains(&error.raw_os_error())
}

/// Whether `path` is in the directory of region nodes, or in that of their files, and no region. A program that opens its memory before the region
/// exists may create a plain file there, which is not the memory that the user means.
fn is_in_place_of_a_region(path: &Path) -> bool {
    let directories = [vmem::DIRECTORY, vmem::FILES_DIRECTORY].map(Path::new);
    let path = std::fs::canonicalize(path);
    path.is_ok_and(|path| path.parent().is_some_and(|parent| directories.contains(&parent)) && vmem::region_at(&path).is_none())
}

/// The extended attribute of a file with released pages.
const MARK: &str = "user.vmem.released";

/// File system types in memory, as `statfs(2)` gives them: tmpfs (also of memfds), ramfs, hugetlbfs. A region is in memory, too.
const IN_MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// The identity of a memory: the same number for the same file, and another one, most likely, for all others. A file on a disk keeps its
/// identity over a reboot; files of file systems in memory and regions do not. `numbers` identify the file in its file system, and `device` that
/// file system in this boot, if it is one in memory.
fn identity(file: &File, device: Option<u64>, numbers: [u64; 3]) -> io::Result<u128> {
    let mut hash = XxHash3_128::new();
    match device {
        Some(device) => {
            hash.write(&boot_id()?);
            hash.write(&device.to_le_bytes());
        }
        None => hash.write(&fstatvfs(file)?.f_fsid.to_le_bytes()),
    }
    numbers.iter().for_each(|number| hash.write(&number.to_le_bytes()));
    Ok(hash.finish_128())
}

/// Identifies the memory in the record of its released pages: the same number, most likely, only for the same file in the same boot.
fn record_tag(numbers: &[u64]) -> io::Result<u32> {
    Ok(numbers.iter().fold(crc32c::crc32c(&boot_id()?), |crc, number| {
        crc32c::crc32c_append(crc, &number.to_le_bytes())
    }))
}

fn boot_id() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id")
}
