// SPDX-License-Identifier: GPL-2.0

//! The structures of the uapi header, which can be copied from and to user memory.
//!
//! Stands in for `kernel::uapi`, which has only the headers of the kernel tree.

use super::array_vec::ArrayVec;
pub(crate) use super::bindings::*;
use core::ops::Deref;
use kernel::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

macro_rules! plain_data {
    ($($name:ident: $size:literal,)*) => {$(
        // SAFETY: The structure has integers only, so every bit pattern is a value of it.
        unsafe impl FromBytes for $name {}
        // SAFETY: The structure has no padding: the sizes of its fields add up to its size, which is
        // asserted below and, with -Wpadded, of the header.
        unsafe impl AsBytes for $name {}
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    )*};
}

plain_data! {
    vmem_features: 64,
    vmem_create: 96,
    vmem_attach: 80,
    vmem_range: 16,
    vmem_page_request: 16,
    vmem_mark: 32,
    vmem_fill_range: 24,
    vmem_fill: 32,
    vmem_backing: 56,
    vmem_populate: 32,
    vmem_present: 32,
    vmem_map_fd: 8,
    vmem_resume: 72,
    vmem_info: 128,
    vmem_adopt: 48,
    vmem_track: 40,
    vmem_dirty: 64,
    vmem_tracking: 64,
    vmem_snapshot_member: 8,
    vmem_snapshot: 48,
    vmem_snapshot_info: 64,
}

/// Checks that the ioctl numbers of the header match the structures above.
macro_rules! same_number {
    ($($c:ident == $rust:expr;)*) => {$( const _: () = assert!($c == $rust); )*};
}

same_number! {
    VMEM_IOCTL_GET_FEATURES == kernel::ioctl::_IOR::<vmem_features>(VMEM_IOC_MAGIC, 0x00);
    VMEM_IOCTL_CREATE_VMEM == kernel::ioctl::_IOWR::<vmem_create>(VMEM_IOC_MAGIC, 0x01);
    VMEM_IOCTL_ATTACH == kernel::ioctl::_IOWR::<vmem_attach>(VMEM_IOC_MAGIC, 0x02);
    VMEM_IOCTL_ADOPT == kernel::ioctl::_IOWR::<vmem_adopt>(VMEM_IOC_MAGIC, 0x03);
    VMEM_IOCTL_WAIT_READY == kernel::ioctl::_IO(VMEM_IOC_MAGIC, 0x10);
    VMEM_IOCTL_READY == kernel::ioctl::_IO(VMEM_IOC_MAGIC, 0x11);
    VMEM_IOCTL_GET_PAGE_REQUEST == kernel::ioctl::_IOWR::<vmem_page_request>(VMEM_IOC_MAGIC, 0x12);
    VMEM_IOCTL_MARK_PAGE_CACHED == kernel::ioctl::_IOWR::<vmem_mark>(VMEM_IOC_MAGIC, 0x13);
    VMEM_IOCTL_MAKE_PAGES_PRESENT == kernel::ioctl::_IOWR::<vmem_populate>(VMEM_IOC_MAGIC, 0x14);
    VMEM_IOCTL_MAKE_VMA_ANONYMOUS == kernel::ioctl::_IO(VMEM_IOC_MAGIC, 0x15);
    VMEM_IOCTL_FILL_PAGES == kernel::ioctl::_IOWR::<vmem_fill>(VMEM_IOC_MAGIC, 0x16);
    VMEM_IOCTL_GET_PRESENT == kernel::ioctl::_IOWR::<vmem_present>(VMEM_IOC_MAGIC, 0x17);
    VMEM_IOCTL_GET_INFO == kernel::ioctl::_IOR::<vmem_info>(VMEM_IOC_MAGIC, 0x18);
    VMEM_IOCTL_GET_MAP_FD == kernel::ioctl::_IOWR::<vmem_map_fd>(VMEM_IOC_MAGIC, 0x19);
    VMEM_IOCTL_SET_BACKING == kernel::ioctl::_IOW::<vmem_backing>(VMEM_IOC_MAGIC, 0x1a);
    VMEM_IOCTL_RESUME == kernel::ioctl::_IOWR::<vmem_resume>(VMEM_IOC_MAGIC, 0x1b);
    VMEM_IOCTL_TRACK == kernel::ioctl::_IOWR::<vmem_track>(VMEM_IOC_MAGIC, 0x20);
    VMEM_IOCTL_UNTRACK == kernel::ioctl::_IO(VMEM_IOC_MAGIC, 0x21);
    VMEM_IOCTL_DIRTY == kernel::ioctl::_IOWR::<vmem_dirty>(VMEM_IOC_MAGIC, 0x22);
    VMEM_IOCTL_GET_TRACKING == kernel::ioctl::_IOR::<vmem_tracking>(VMEM_IOC_MAGIC, 0x23);
    VMEM_IOCTL_SNAPSHOT == kernel::ioctl::_IOWR::<vmem_snapshot>(VMEM_IOC_MAGIC, 0x24);
    VMEM_IOCTL_SNAPSHOT_DONE == kernel::ioctl::_IOW::<vmem_range>(VMEM_IOC_MAGIC, 0x30);
    VMEM_IOCTL_GET_SNAPSHOT == kernel::ioctl::_IOR::<vmem_snapshot_info>(VMEM_IOC_MAGIC, 0x31);
}

/// The argument of an ioctl: one structure in user memory.
#[derive(Clone, Copy)]
pub(crate) struct UserArg(UserPtr);

impl UserArg {
    /// The argument of an ioctl, as the VFS passes it.
    pub(crate) fn new(arg: usize) -> Self {
        Self(UserPtr::from_addr(arg))
    }

    /// Reads the structure, once.
    pub(crate) fn read<T: FromBytes>(self) -> Result<T> {
        UserSlice::new(self.0, core::mem::size_of::<T>())
            .reader()
            .read()
    }

    /// Writes the structure.
    pub(crate) fn write<T: AsBytes>(self, value: &T) -> Result {
        UserSlice::new(self.0, core::mem::size_of::<T>())
            .writer()
            .write(value)
    }
}

/// An array in user memory. A structure has its address and length.
pub(crate) struct UserArray {
    at: UserPtr,
    nr: usize,
}

impl UserArray {
    /// `nr` entries at `addr`; `EINVAL` unless there are 1 to [`VMEM_MAX_BATCH`].
    pub(crate) fn new(addr: u64, nr: u32) -> Result<Self> {
        if nr == 0 || nr > VMEM_MAX_BATCH {
            return Err(EINVAL);
        }
        Ok(Self {
            at: UserPtr::from_addr(usize::try_from(addr).map_err(|_| EFAULT)?),
            nr: nr as usize,
        })
    }

    /// How many entries.
    pub(crate) fn len(&self) -> usize {
        self.nr
    }

    /// Reads all entries, once, into `entries`, which is empty.
    pub(crate) fn read<T: FromBytes + Copy>(&self, entries: &mut Entries<T>) -> Result {
        let mut reader = UserSlice::new(self.at, self.nr * core::mem::size_of::<T>()).reader();
        if self.nr > INLINE_ENTRIES {
            entries.heap_entries.reserve(self.nr, GFP_KERNEL)?;
        }
        for _ in 0..self.nr {
            let entry = reader.read()?;
            if self.nr > INLINE_ENTRIES {
                entries.heap_entries.push(entry, GFP_KERNEL)?;
            } else {
                entries.inline_entries.push(entry);
            }
        }
        Ok(())
    }

    /// Writes the first entries.
    pub(crate) fn write<T: AsBytes>(&self, entries: &[T]) -> Result {
        let mut writer = UserSlice::new(self.at, self.nr * core::mem::size_of::<T>()).writer();
        for entry in entries {
            writer.write(entry)?;
        }
        Ok(())
    }
}

/// Up to this many entries need no allocation.
const INLINE_ENTRIES: usize = 8;

/// Entries that have been read from user memory.
pub(crate) struct Entries<T> {
    inline_entries: ArrayVec<T, INLINE_ENTRIES>,
    /// All entries, if there are more than [`INLINE_ENTRIES`].
    heap_entries: KVVec<T>,
}

impl<T: Copy> Entries<T> {
    /// No entries.
    pub(crate) fn new() -> Self {
        Self {
            inline_entries: ArrayVec::new(),
            heap_entries: KVVec::new(),
        }
    }
}

impl<T: Copy> Deref for Entries<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        if self.heap_entries.is_empty() {
            self.inline_entries.as_slice()
        } else {
            &self.heap_entries
        }
    }
}

/// A bitmap in user memory, written from its beginning to its end.
pub(crate) struct UserBits(kernel::uaccess::UserSliceWriter);

impl UserBits {
    /// `words` words at `addr`.
    pub(crate) fn new(addr: u64, words: usize) -> Result<Self> {
        let at = UserPtr::from_addr(usize::try_from(addr).map_err(|_| EFAULT)?);
        let bytes = words.checked_mul(8).ok_or(EINVAL)?;
        Ok(Self(UserSlice::new(at, bytes).writer()))
    }

    /// Writes the next word.
    pub(crate) fn write(&mut self, word: u64) -> Result {
        self.0.write(&word)
    }
}
