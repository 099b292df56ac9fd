// SPDX-License-Identifier: GPL-2.0
//! Memory that exists on this machine and can be exported.

mod file;
mod region;
mod released;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vmem::{Name, PAGE_SIZE, PageRange};

use crate::answer::Chunk;
use crate::page::join;
use crate::source::Export;
use crate::wire::MAX_PAGES;
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
    /// If pages may be given back: which have been.
    released: Option<Released>,
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
        let kind = metadata.file_type();
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
        let identity = identity(&[metadata.dev(), metadata.ino(), metadata.rdev()]).map_err(io)?;
        Ok(Self {
            export: Export { name, pages, identity },
            contents,
            path: path.to_owned(),
            released: None,
        })
    }

    /// Lets destinations say which pages they have, so that this machine gets their memory back. Which these are is noted in the file
    /// `NAME.released` in the directory `records`, of a bit a page: from then on they are unreadable, for later servers too.
    ///
    /// # Errors
    ///
    /// It cannot be written to, or there is a record of other memory.
    pub fn releasable(mut self, records: &Path) -> Result<Self, MemoryError> {
        let in_file = |path: PathBuf| |source| MemoryError::Io { path, source };
        match &mut self.contents {
            Contents::File(file) => file.writable(&self.path),
            Contents::Region(region) => region.writable(&self.path),
        }
        .map_err(in_file(self.path.clone()))?;
        let path = records.join(format!("{}.released", self.export.name));
        let released = Released::open(&path, self.export.identity, self.export.pages).map_err(in_file(path))?;
        self.released = Some(released);
        Ok(self)
    }

    /// Whether [`release`](Self::release) does anything.
    pub(crate) fn is_releasable(&self) -> bool {
        self.released.is_some()
    }

    /// Gives `range` back: a destination has it. What cannot be noted is kept.
    pub(crate) fn release(&self, range: PageRange) -> io::Result<()> {
        let Some(released) = &self.released else { return Ok(()) };
        released.note(range)?;
        match &self.contents {
            Contents::File(file) => file.release(range),
            Contents::Region(region) => region.release(range),
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
        let look = self.released.as_ref().map(Released::look);
        let (front, gone, rest) = look.as_ref().map_or((range, false, None), |look| look.split(range));
        let left = match &self.contents {
            _ if gone => {
                chunk.push_unreadable(front);
                None
            }
            Contents::File(file) => file.read(front, chunk),
            Contents::Region(region) => region.read(front, chunk),
        };
        match (left, rest) {
            (Some(left), Some(rest)) => join(left, rest),
            (left, rest) => left.or(rest),
        }
    }
}

/// Which memory this is: the same number only, most likely, for the same file in the same boot. What a
/// file system in memory calls by one number is other memory after a reboot.
fn identity(numbers: &[u64]) -> io::Result<u32> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    Ok(numbers.iter().fold(crc32c::crc32c(&boot), |crc, number| {
        crc32c::crc32c_append(crc, &number.to_le_bytes())
    }))
}
