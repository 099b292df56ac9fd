// SPDX-License-Identifier: GPL-2.0-or-later
//! One mapping of a file, unmapped when dropped.

use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::copy;
use crate::error::Error;

/// Access that a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads. The descriptor must be open for reading.
    ReadOnly,
    /// Reads and writes. The descriptor of a shared mapping must be open for both.
    ReadWrite,
}

/// Where writes to a mapping go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// To the file: all who map it see them (`MAP_SHARED`).
    Shared,
    /// To this mapping alone: the first write to a page copies it (`MAP_PRIVATE`).
    Private,
}

/// A mapping of a part of a file.
///
/// Several threads can use it at once. A forked child inherits it as the kernel defines.
///
/// # Invariants
///
/// `address` is the begin of `len` bytes that this mapping alone unmaps. They are readable, and writable if `access` says so. No
/// reference to them exists.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: the memory is the process's, not a thread's, and all access to it is atomic (`copy`).
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from the byte `offset` on, a multiple of [`PAGE_SIZE`](crate::PAGE_SIZE).
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn new(file: impl AsFd, offset: u64, len: usize, access: Access, sharing: Sharing) -> Result<Self, Error> {
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        // SAFETY: without an address to map at, the kernel takes one where nothing is.
        let address = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file.as_fd(), offset) };
        let address = address
            .and_then(|address| NonNull::new(address.cast()).ok_or(Errno::NOMEM))
            .map_err(|source| Error::Map { offset, len, source })?;
        // INVARIANT: made just now, with this access.
        Ok(Self { address, len, access })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: the kernel refuses a mapping of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the mapping, for a system call that takes one. A caller that dereferences it must know what else writes there.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Copies `to.len()` bytes from `offset` on out of the mapping. The copy can wait for a daemon, or raise SIGBUS: see the
    /// [crate's documentation](crate).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`].
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), Error> {
        let range = self.range(offset, to.len())?;
        // SAFETY: the range is inside the mapping.
        let from = unsafe { self.address.as_ptr().add(range.start) };
        // SAFETY: by the type's invariants, the whole range is readable as long as `self` is.
        unsafe { copy::out_of(from, to) };
        Ok(())
    }

    /// As [`Mapping::read_at`], but the copy ends where a touch would raise SIGBUS. Returns the number of bytes before that page. The kernel
    /// does the copy, which is slower for short reads.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] and [`Error::Read`].
    pub fn read_until_fault(&self, offset: usize, to: &mut [u8]) -> Result<usize, Error> {
        let range = self.range(offset, to.len())?;
        // SAFETY: the range is inside the mapping.
        let from = unsafe { self.address.as_ptr().add(range.start) };
        copy::out_of_until_fault(from, to).map_err(Error::Read)
    }

    /// Copies `from` into the mapping from `offset` on. The copy can wait for a daemon, or raise SIGBUS: see the
    /// [crate's documentation](crate).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] and [`Error::ReadOnly`].
    pub fn write_at(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Err(Error::ReadOnly);
        }
        let range = self.range(offset, from.len())?;
        // SAFETY: the range is inside the mapping.
        let to = unsafe { self.address.as_ptr().add(range.start) };
        // SAFETY: by the type's invariants, the whole range is writable as long as `self` is.
        unsafe { copy::into(to, from) };
        Ok(())
    }

    /// Makes a hole of `len` bytes from `offset` on, in the file and all its mappings (`MADV_REMOVE`); it reads as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::ReadOnly`], and [`Error::Remove`] (`EINVAL`: not whole pages).
    pub fn remove(&self, offset: usize, len: usize) -> Result<(), Error> {
        if self.access == Access::ReadOnly {
            return Err(Error::ReadOnly);
        }
        let range = self.range(offset, len)?;
        // SAFETY: the range is inside the mapping.
        let start = unsafe { self.address.as_ptr().add(range.start) };
        // SAFETY: the range is this mapping's, and as no reference to it exists, it may change.
        unsafe { madvise(start.cast(), len, Advice::LinuxRemove) }.map_err(Error::Remove)
    }

    /// The range of `len` bytes from `offset` on, checked against the length of the mapping.
    fn range(&self, offset: usize, len: usize) -> Result<Range<usize>, Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(offset..end),
            _ => Err(Error::OutOfBounds {
                offset,
                len,
                mapped: self.len,
            }),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the type's invariants, the range is this mapping's to unmap, and no reference to it exists.
        let result = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of a whole mapping: {result:?}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    /// A file without a name that holds a pattern in which each byte differs from its neighbours.
    fn file(len: usize) -> File {
        let mut file = File::from(rustix::fs::memfd_create("mapping", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&pattern(len)).unwrap();
        file
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn read_at_any_alignment_and_length_returns_the_bytes() {
        let expected = pattern(2 * PAGE_SIZE);
        let mapping = Mapping::new(file(2 * PAGE_SIZE), 0, 2 * PAGE_SIZE, Access::ReadOnly, Sharing::Shared).unwrap();
        for offset in (0..20).chain(PAGE_SIZE - 20..PAGE_SIZE + 20) {
            for len in 0..40 {
                let mut read = vec![0; len];
                mapping.read_at(offset, &mut read).unwrap();
                assert_eq!(read, &expected[offset..offset + len], "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn write_at_any_alignment_and_length_changes_only_its_bytes() {
        let file = file(PAGE_SIZE);
        let mapping = Mapping::new(&file, 0, PAGE_SIZE, Access::ReadWrite, Sharing::Shared).unwrap();
        let mut expected = pattern(PAGE_SIZE);
        for offset in 0..20 {
            for len in 0..40 {
                let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + offset) as u8).collect();
                mapping.write_at(offset, &bytes).unwrap();
                expected[offset..offset + len].copy_from_slice(&bytes);
                let mut whole = vec![0; PAGE_SIZE];
                file.read_exact_at(&mut whole, 0).unwrap();
                assert_eq!(whole, expected, "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn checked_read_ends_where_a_touch_raises_sigbus() {
        // The file has two pages, the mapping three.
        let mapping = Mapping::new(file(2 * PAGE_SIZE), 0, 3 * PAGE_SIZE, Access::ReadOnly, Sharing::Shared).unwrap();
        let expected = pattern(2 * PAGE_SIZE);
        for offset in [0, 1, PAGE_SIZE, 2 * PAGE_SIZE - 1] {
            let mut read = vec![0; 3 * PAGE_SIZE - offset];
            let len = mapping.read_until_fault(offset, &mut read).unwrap();
            assert_eq!(len, 2 * PAGE_SIZE - offset, "from {offset}");
            assert_eq!(read[..len], expected[offset..]);
        }
        assert_eq!(mapping.read_until_fault(2 * PAGE_SIZE, &mut [0; 8]).unwrap(), 0);
        assert_eq!(mapping.read_until_fault(0, &mut []).unwrap(), 0);
        assert_eq!(mapping.read_until_fault(7, &mut [0; 8]).unwrap(), 8);
        assert!(mapping.read_until_fault(3 * PAGE_SIZE, &mut [0; 1]).is_err());
    }

    #[test]
    fn private_writes_do_not_reach_the_file() {
        let file = file(PAGE_SIZE);
        let mapping = Mapping::new(&file, 0, PAGE_SIZE, Access::ReadWrite, Sharing::Private).unwrap();
        mapping.write_at(0, &[0xff; 16]).unwrap();
        let mut read = [0; 16];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, pattern(16)[..]);
    }

    #[test]
    fn mapping_at_an_offset_reads_from_that_offset() {
        let mapping = Mapping::new(
            file(3 * PAGE_SIZE),
            PAGE_SIZE as u64,
            PAGE_SIZE,
            Access::ReadOnly,
            Sharing::Shared,
        )
        .unwrap();
        let mut read = [0; 8];
        mapping.read_at(0, &mut read).unwrap();
        assert_eq!(read, pattern(2 * PAGE_SIZE)[PAGE_SIZE..PAGE_SIZE + 8]);
    }

    #[test]
    fn copy_beyond_the_end_is_refused() {
        let mapping = Mapping::new(file(PAGE_SIZE), 0, PAGE_SIZE, Access::ReadWrite, Sharing::Shared).unwrap();
        for (offset, len) in [(PAGE_SIZE, 1), (PAGE_SIZE - 1, 2), (0, PAGE_SIZE + 1), (usize::MAX, 2)] {
            let mut bytes = vec![0; len];
            assert!(matches!(mapping.read_at(offset, &mut bytes), Err(Error::OutOfBounds { .. })));
            assert!(matches!(mapping.write_at(offset, &bytes), Err(Error::OutOfBounds { .. })));
        }
        mapping.read_at(PAGE_SIZE, &mut []).unwrap();
    }

    #[test]
    fn read_only_mapping_refuses_writes() {
        let mapping = Mapping::new(file(PAGE_SIZE), 0, PAGE_SIZE, Access::ReadOnly, Sharing::Shared).unwrap();
        assert!(matches!(mapping.write_at(0, &[1]), Err(Error::ReadOnly)));
    }

    #[test]
    fn unaligned_or_empty_mapping_is_refused() {
        let file = file(PAGE_SIZE);
        for (offset, len) in [(0, 0), (1, PAGE_SIZE), (0, usize::MAX)] {
            assert!(matches!(
                Mapping::new(&file, offset, len, Access::ReadOnly, Sharing::Shared),
                Err(Error::Map { .. })
            ));
        }
    }
}
