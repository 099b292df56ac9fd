// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared memory that exists already: of programs that know nothing of vmem, and of regions.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vmem_sys::calls;

use crate::error::call;
use crate::{Error, Info, PageRange, PresentMap, TrackOptions, Tracking};

/// Adopted shared memory, whose writes can be logged.
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
///
/// A copy of a region whose daemon is still filling it. Pages that the daemon fills while the region is tracked are copied, too:
///
/// ```no_run
/// use vmem::{Access, Control, MapHandle, PageRange, TrackOptions};
///
/// # fn copy(_: PageRange) -> Result<(), vmem::Error> { Ok(()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let region = MapHandle::open("guest0", Access::ReadWrite)?;
/// let adopted = Control::open()?.adopt(&region)?;
/// let tracking = adopted.track_with(TrackOptions::default().fills(true))?;
/// for pages in adopted.present_map()?.runs() {
///     copy(pages)?;
/// }
/// for _round in 0..10 {
///     std::thread::sleep(std::time::Duration::from_secs(1));
///     for pages in tracking.clean(adopted.pages()).complete()? {
///         copy(pages)?; // what was written, and what came
///     }
/// }
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

    /// Number of the region; for an existing region, its [`Region::id`](crate::Region::id). `/proc/PID/fdinfo` shows it as `vmem-id`.
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

    /// State and counters of the region. Of other memory all pages are present, and the counters are zero.
    ///
    /// # Errors
    ///
    /// None on an adopted descriptor.
    pub fn info(&self) -> Result<Info, Error> {
        Info::get(self.fd.as_fd())
    }

    /// Which pages of the region are present. Of other memory all are, holes too.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn present_map(&self) -> Result<PresentMap, Error> {
        PresentMap::get(self.fd.as_fd(), self.pages)
    }

    /// Begins to log writes. Every write that begins after this call has returned is in the log: writes of processes that map the memory, of
    /// virtual CPUs, of the kernel for a process, and `write` and `fallocate` on the file. The call takes about a tenth of a second.
    ///
    /// While the memory is tracked its size cannot be changed, `userfaultfd` cannot be registered for it, and it cannot be pinned for long
    /// (VFIO, buffers that are registered with io_uring).
    ///
    /// The daemon of a region continues to serve it, and the region can become plain memory. A page that the daemon fills is not logged, unless
    /// [`Adopted::track_with`] asks for it.
    ///
    /// # Errors
    ///
    /// After an error, the memory is as before. [`Error::AlreadyTracked`], [`Error::MappingsInUse`], [`Error::NeverAtRest`] (try again),
    /// [`Error::NoMemory`].
    pub fn track(&self) -> Result<Tracking, Error> {
        self.track_with(TrackOptions::default())
    }

    /// As [`Adopted::track`], with options.
    ///
    /// # Errors
    ///
    /// As for [`Adopted::track`]; [`Error::Invalid`] if the module does not know an option.
    pub fn track_with(&self, options: TrackOptions) -> Result<Tracking, Error> {
        Tracking::begin(&self.fd, self.pages, options)
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
