// SPDX-License-Identifier: GPL-2.0
//! Shared memory that exists already, of programs that know nothing of vmem.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vmem_sys::calls;

use crate::error::call;
use crate::{Error, PageRange, Tracking};

/// Shared memory that is adopted: that its writes can be logged.
///
/// It stays adopted as long as this value, a [`Tracking`] of it, or a duplicate of its descriptor lives. Nothing about the memory changes
/// before [`Adopted::track`].
///
/// # Example
///
/// How many pages of a program's memory are written in a second:
///
/// ```no_run
/// use std::time::Duration;
/// use vmem::{Control, ProcessMemory};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = ProcessMemory::open(812, "/dev/shm/ram")?;
/// let adopted = Control::open()?.adopt(&memory)?;
/// let tracking = adopted.track()?;
/// std::thread::sleep(Duration::from_secs(1));
/// println!("{} pages", tracking.dirty()?);
/// tracking.stop()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Adopted {
    fd: Arc<OwnedFd>,
    id: u64,
    pages: PageRange,
}

impl Adopted {
    pub(crate) fn new(control: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Self, Error> {
        let adopted = calls::adopt(control, memory).map_err(|errno| Error::from_errno(call::ADOPT, errno))?;
        let pages = PageRange::of_len(adopted.size).ok_or(Error::NotSharedMemory)?;
        Ok(Self {
            fd: Arc::new(adopted.vmem),
            id: adopted.id,
            pages,
        })
    }

    /// Number of the region; `/proc/PID/fdinfo` shows it as `vmem-id`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Size in bytes, whole pages.
    pub fn size(&self) -> u64 {
        self.pages.bytes().end
    }

    /// All pages of the memory.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Begins to log writes. Every write that is begun after this call has returned is in the log, whoever makes it: processes that map
    /// the memory, virtual CPUs, the kernel for a process, `write` and `fallocate` on its file. It takes about a tenth of a second.
    ///
    /// While the memory is tracked its size cannot be changed, `userfaultfd` cannot be registered for it, and it cannot be pinned for long
    /// (VFIO, buffers that are registered with io_uring).
    ///
    /// # Errors
    ///
    /// The memory is as before. [`Error::AlreadyTracked`], [`Error::MappingsInUse`], [`Error::NeverAtRest`] (try again),
    /// [`Error::NoMemory`].
    pub fn track(&self) -> Result<Tracking, Error> {
        Tracking::begin(&self.fd, self.pages)
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
