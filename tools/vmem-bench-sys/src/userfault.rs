// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd: what vmem is measured against.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Memory, PAGE_SIZE};
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, uffd_msg, uffdio_api, uffdio_continue,
    uffdio_copy, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// Which faults are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those on pages that are not there; [`Userfault::copy`] brings them.
    Missing,
    /// Those on pages of a shmem file that are not in the page tables, in the file or not. The daemon writes them to the file, and
    /// [`Userfault::resume`] puts them into the page tables.
    Minor,
    /// Writes to pages that [`Userfault::protect`] has protected; the same call ends the wait.
    WriteProtect,
    /// Writes to pages that [`Userfault::protect`] has protected. The kernel ends the protection by itself, and
    /// [`Pagemap::protect_written`](crate::Pagemap::protect_written) tells of which pages it has.
    WriteProtectAsync,
}

/// The faults on one mapping.
///
/// A child that a fork made and that was given the descriptor of another process cannot use this: it is bound to the address space that
/// opened it. [`Userfault::from_other`] is for the daemon of another process's mapping.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    /// Address of the mapping in the process whose faults these are, and its length, in bytes.
    start: u64,
    len: u64,
}

/// How many messages one read takes.
const BATCH: usize = 256;

impl Userfault {
    /// Takes the faults on `memory`. The descriptor blocks.
    ///
    /// # Errors
    ///
    /// What the kernel gives: `EPERM` without the right to handle faults of the kernel, `EINVAL` for memory that `mode` does not fit.
    pub fn new(memory: &Memory, mode: Mode) -> Result<Self, Errno> {
        // SAFETY: faults of this process wait for whoever reads the descriptor: that is the caller's wish. No memory is changed.
        let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        let (features, mode) = match mode {
            Mode::Missing => (0, UFFDIO_REGISTER_MODE_MISSING),
            Mode::Minor => (
                UFFD_FEATURE_MINOR_SHMEM,
                // Without MISSING, a touch of a page that the file does not have is a page of zeros.
                UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_MISSING,
            ),
            Mode::WriteProtect => (UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFDIO_REGISTER_MODE_WP),
            Mode::WriteProtectAsync => (
                UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC,
                UFFDIO_REGISTER_MODE_WP,
            ),
        };
        let mut api = uffdio_api {
            api: UFFD_API.into(),
            features: features.into(),
            ioctls: 0,
        };
        // SAFETY: the argument of this call is a `uffdio_api`, without addresses.
        unsafe { call::<{ UFFDIO_API as Opcode }, _>(fd.as_fd(), &mut api) }?;
        let this = Self::from_other(fd, memory);
        let mut register = uffdio_register {
            range: this.range(0, memory.pages()),
            mode: mode.into(),
            ioctls: 0,
        };
        // SAFETY: the argument of this call is a `uffdio_register`; its range is a mapping; a touch of it may wait from now on.
        unsafe { call::<{ UFFDIO_REGISTER as Opcode }, _>(this.fd.as_fd(), &mut register) }?;
        Ok(this)
    }

    /// The faults of another process, which has the mapping `memory` at the same address as this one, by the descriptor that it made.
    pub fn from_other(fd: OwnedFd, memory: &Memory) -> Self {
        Self {
            fd,
            start: memory.address() as u64,
            len: (memory.pages() * PAGE_SIZE) as u64,
        }
    }

    /// Waits for faults, and puts their pages (offsets in the mapping, in pages) into `pages`, instead of what is there.
    ///
    /// # Errors
    ///
    /// `EPROTO` for a message that is no fault on the mapping; what `read(2)` gives.
    pub fn take(&self, pages: &mut Vec<u64>) -> Result<(), Errno> {
        // Nothing is written there before the kernel does: this is on the way of each fault that is measured.
        let mut messages = [const { MaybeUninit::<uffd_msg>::uninit() }; BATCH];
        // SAFETY: `messages` is that many bytes, borrowed mutably, which need not be initialized.
        let room =
            unsafe { std::slice::from_raw_parts_mut(messages.as_mut_ptr().cast::<MaybeUninit<u8>>(), size_of_val(&messages)) };
        let (read, _) = rustix::io::read(&self.fd, room)?;
        let len = read.len();
        pages.clear();
        for message in messages.iter().take(len / size_of::<uffd_msg>()) {
            // SAFETY: so many were read, and any bytes are a message: it is numbers.
            let message = unsafe { message.assume_init_ref() };
            if u32::from(message.event) != UFFD_EVENT_PAGEFAULT {
                return Err(Errno::PROTO);
            }
            let arg = message.arg;
            // SAFETY: the event is a fault, so this is the field that the kernel wrote.
            let address = unsafe { arg.pagefault.address };
            let offset = address.checked_sub(self.start).filter(|offset| *offset < self.len);
            pages.push(offset.ok_or(Errno::PROTO)? / PAGE_SIZE as u64);
        }
        Ok(())
    }

    /// `UFFDIO_COPY`: puts `contents` at the pages from `page` on, and wakes who waits for them. `EEXIST` if a page is there.
    ///
    /// # Errors
    ///
    /// What the kernel gives.
    pub fn copy(&self, page: u64, contents: &[u8]) -> Result<(), Errno> {
        let range = self.range(page, contents.len() / PAGE_SIZE);
        let mut copy = uffdio_copy {
            dst: range.start,
            src: contents.as_ptr() as u64,
            len: range.len,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the argument of this call is a `uffdio_copy`; it reads `contents`, and writes to the mapping, to which no reference
        // exists, if the range is inside; else it fails.
        unsafe { call::<{ UFFDIO_COPY as Opcode }, _>(self.fd.as_fd(), &mut copy) }
    }

    /// `UFFDIO_CONTINUE`: puts `nr` pages from `page` on into the page tables, and wakes who waits for them. `EEXIST` if one is in.
    ///
    /// # Errors
    ///
    /// What the kernel gives.
    pub fn resume(&self, page: u64, nr: usize) -> Result<(), Errno> {
        let mut resume = uffdio_continue {
            range: self.range(page, nr),
            mode: 0,
            mapped: 0,
        };
        // SAFETY: the argument of this call is a `uffdio_continue`; it changes page tables alone, of registered memory alone.
        unsafe { call::<{ UFFDIO_CONTINUE as Opcode }, _>(self.fd.as_fd(), &mut resume) }
    }

    /// `UFFDIO_WRITEPROTECT`: protects `nr` pages from `page` on against writes, or ends that and wakes who waits to write to them.
    ///
    /// # Errors
    ///
    /// What the kernel gives.
    pub fn protect(&self, page: u64, nr: usize, protect: bool) -> Result<(), Errno> {
        let mut protect = uffdio_writeprotect {
            range: self.range(page, nr),
            // UFFDIO_WRITEPROTECT_MODE_WP.
            mode: protect.into(),
        };
        // SAFETY: the argument of this call is a `uffdio_writeprotect`; it changes page tables alone, of registered memory alone.
        unsafe { call::<{ UFFDIO_WRITEPROTECT as Opcode }, _>(self.fd.as_fd(), &mut protect) }
    }

    /// `UFFDIO_WAKE`: wakes who waits for these pages, for a message that came too late.
    ///
    /// # Errors
    ///
    /// What the kernel gives.
    pub fn wake(&self, page: u64, nr: usize) -> Result<(), Errno> {
        let mut range = self.range(page, nr);
        // SAFETY: the argument of this call is a `uffdio_range`; it changes no memory.
        unsafe { call::<{ UFFDIO_WAKE as Opcode }, _>(self.fd.as_fd(), &mut range) }
    }

    fn range(&self, page: u64, nr: usize) -> uffdio_range {
        uffdio_range {
            start: self.start + page * PAGE_SIZE as u64,
            len: (nr * PAGE_SIZE) as u64,
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a call with an argument that the kernel reads and writes.
///
/// # Safety
///
/// `T` is the argument that `NUMBER` stands for, and the addresses in it are right.
unsafe fn call<const NUMBER: Opcode, T>(fd: BorrowedFd<'_>, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: number and argument belong together by the contract of this function.
    let call = unsafe { Updater::<NUMBER, T>::new(argument) };
    // SAFETY: the addresses are right by the contract of this function.
    unsafe { ioctl(fd, call) }
}
