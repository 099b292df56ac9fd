// SPDX-License-Identifier: GPL-2.0-or-later
//! The dirty log of shared memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vmem_sys::{VMEM_TRACK_ALL, VMEM_TRACK_FILLS, calls, vmem_tracking};

use crate::dirty::{self, DirtyLog, DirtyMap};
use crate::error::call;
use crate::{Error, PageRange};

/// Options of a [`Tracking`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct TrackOptions {
    fills: bool,
    all: bool,
}

/// Adopted memory whose writes are logged, for as long as this value lives.
///
/// All methods can be used by several threads at once. Each page that is cleaned is reported to one caller.
///
/// # Example
///
/// A copy of memory that its programs go on writing to. Each round copies what was written during the one before:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::unix::fs::FileExt;
/// # let (memory, copy) = (std::fs::File::open("/dev/shm/ram")?, std::fs::File::open("/tmp/copy")?);
/// # let adopted = vmem::Control::open()?.adopt(&memory)?;
///
/// let tracking = adopted.track()?;
/// let mut left = vec![adopted.pages()]; // first all of it
/// for _round in 0..10 {
///     for range in left {
///         for page in range.iter() {
///             let mut contents = [0; vmem::PAGE_SIZE];
///             memory.read_exact_at(&mut contents, page.offset())?;
///             copy.write_all_at(&contents, page.offset())?;
///         }
///     }
///     left = tracking.clean(adopted.pages()).complete()?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tracking {
    fd: Arc<OwnedFd>,
    pages: PageRange,
    mappings: u64,
    held: u64,
    begins_with_all: bool,
    /// Whether there is a log to end.
    is_on: bool,
}

/// State and counters of a dirty log at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackingInfo {
    /// Whether the memory is tracked. While it is not, all counters are zero.
    pub tracked: bool,
    /// Mappings that are tracked, in all processes; 4096 is that many or more.
    pub mappings: u64,
    /// Pages in the log.
    pub dirty: u64,
    /// First writes to protected pages since the log began.
    pub faults: u64,
    /// Calls of `write` and `fallocate` that were logged since then.
    pub written: u64,
    /// Pages that [`Tracking::clean`] and [`Tracking::clean_map`] have reported since then.
    pub cleaned: u64,
    /// How many of those have stayed in the log, because they were held.
    pub held: u64,
}

impl TrackOptions {
    /// Pages of a region come into the log also when its daemon fills them or marks them present, once they are present. Without it they
    /// do not: a program that copies the memory has their source, or reads from [`Adopted::present_map`](crate::Adopted::present_map) which
    /// they are. Other memory has no such pages.
    pub fn fills(mut self, fills: bool) -> Self {
        self.fills = fills;
        self
    }

    /// The log begins with all pages. Writes to a page cause no faults until it is cleaned for the first time: for a program that has to take
    /// each page once in any case, and cleans it just before it reads it. Needs [`Features::track_all`](crate::Features::track_all).
    pub fn all(mut self, all: bool) -> Self {
        self.all = all;
        self
    }

    fn flags(self) -> u32 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.fills, VMEM_TRACK_FILLS) | flag(self.all, VMEM_TRACK_ALL)
    }
}

impl TrackingInfo {
    pub(crate) fn get(fd: BorrowedFd<'_>) -> Result<Self, Error> {
        let info = calls::get_tracking(fd).map_err(|errno| Error::from_errno(call::GET_TRACKING, errno))?;
        Ok(Self::from_sys(&info))
    }

    /// State and counters from the named numbers of a text.
    pub(crate) fn from_fields(field: impl Fn(&str) -> u64) -> Self {
        Self::from_sys(&vmem_tracking {
            tracked: field("tracked"),
            mappings: field("mappings"),
            dirty: field("dirty"),
            faults: field("faults"),
            written: field("written"),
            cleaned: field("cleaned"),
            held: field("held"),
            reserved: 0,
        })
    }

    fn from_sys(info: &vmem_tracking) -> Self {
        Self {
            tracked: info.tracked != 0,
            mappings: info.mappings,
            dirty: info.dirty,
            faults: info.faults,
            written: info.written,
            cleaned: info.cleaned,
            held: info.held,
        }
    }
}

impl Tracking {
    pub(crate) fn begin(fd: &Arc<OwnedFd>, pages: PageRange, options: TrackOptions) -> Result<Self, Error> {
        let track = calls::track(fd.as_fd(), options.flags()).map_err(|errno| Error::from_errno(call::TRACK, errno))?;
        Ok(Self {
            fd: Arc::clone(fd),
            pages,
            mappings: track.mappings,
            held: track.held,
            begins_with_all: options.all,
            is_on: true,
        })
    }

    /// All pages of the memory.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Shared mappings of the memory, in all processes, that were there when tracking began.
    pub fn mappings(&self) -> u64 {
        self.mappings
    }

    /// Pages that are in the log from the beginning: they are pinned (O_DIRECT, RDMA, VFIO) and may be written without being
    /// seen, or the kernel has just allocated or moved them. Zero with [`TrackOptions::all`]: nobody has looked.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Whether the log began with all pages ([`TrackOptions::all`]).
    pub fn begins_with_all(&self) -> bool {
        self.begins_with_all
    }

    /// How many pages are in the log.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`] if another holder of the descriptor has ended the log.
    pub fn dirty(&self) -> Result<u64, Error> {
        match self.info()? {
            TrackingInfo {
                tracked: true, dirty, ..
            } => Ok(dirty),
            _ => Err(Error::NotTracked),
        }
    }

    /// Which of `pages` are in the log, in runs, in order. The log stays as it is.
    ///
    /// [`DirtyLog::error`] may be [`Error::Invalid`] (the memory does not have all of `pages`), [`Error::NotTracked`].
    pub fn peek(&self, pages: PageRange) -> DirtyLog<Vec<PageRange>> {
        dirty::ranges(pages, |pgoff, nr_pages, room| {
            calls::dirty_ranges(self.fd.as_fd(), pgoff, nr_pages, false, room)
        })
    }

    /// Takes those of `pages` that are in the log out of it, in runs, in order, and protects them again: the next write to one of them is
    /// logged anew. A page that is read after this has returned has the contents that were logged up to then, or later ones, which the
    /// next call reports.
    ///
    /// Errors as for [`Tracking::peek`]. What was taken out of the log before an error is in the answer, and only there.
    pub fn clean(&self, pages: PageRange) -> DirtyLog<Vec<PageRange>> {
        dirty::ranges(pages, |pgoff, nr_pages, room| {
            calls::dirty_ranges(self.fd.as_fd(), pgoff, nr_pages, true, room)
        })
    }

    /// As [`Tracking::peek`], with a bit a page: better for memory that is written here and there. `pages` begin at a multiple of 64, or it
    /// is [`Error::Invalid`].
    pub fn peek_map(&self, pages: PageRange) -> DirtyLog<DirtyMap> {
        dirty::map(pages, |pgoff, nr_pages, words| {
            calls::dirty_bitmap(self.fd.as_fd(), pgoff, nr_pages, false, words)
        })
    }

    /// As [`Tracking::clean`], with a bit a page: better for memory that is written here and there. `pages` begin at a multiple of 64, or it
    /// is [`Error::Invalid`].
    pub fn clean_map(&self, pages: PageRange) -> DirtyLog<DirtyMap> {
        dirty::map(pages, |pgoff, nr_pages, words| {
            calls::dirty_bitmap(self.fd.as_fd(), pgoff, nr_pages, true, words)
        })
    }

    /// State and counters of the log.
    ///
    /// # Errors
    ///
    /// None on an adopted descriptor.
    pub fn info(&self) -> Result<TrackingInfo, Error> {
        TrackingInfo::get(self.fd.as_fd())
    }

    /// Ends the log: the mappings are as they were before. A `Tracking` that is dropped does the same, and cannot say that it failed.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if this process is being killed. The log ends by itself some time later.
    pub fn stop(mut self) -> Result<(), Error> {
        self.is_on = false;
        calls::untrack(self.fd.as_fd()).map_err(|errno| Error::from_errno(call::UNTRACK, errno))
    }
}

impl AsFd for Tracking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        if self.is_on {
            // If it fails the kernel ends the log some time later, or with the descriptor.
            let _ = calls::untrack(self.fd.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_map_to_the_flags_of_the_header() {
        let options = TrackOptions::default();
        assert_eq!((options.flags(), options.fills(true).flags()), (0, 1));
        assert_eq!((options.all(true).flags(), options.fills(true).all(true).flags()), (2, 3));
        assert_eq!(options.fills(true).fills(false).flags(), 0);
    }

    #[test]
    fn info_maps_to_the_fields_of_the_header() {
        let sys = vmem_tracking {
            tracked: 1,
            mappings: 2,
            dirty: 3,
            faults: 4,
            written: 5,
            cleaned: 6,
            held: 7,
            reserved: 0,
        };
        let info = TrackingInfo {
            tracked: true,
            mappings: 2,
            dirty: 3,
            faults: 4,
            written: 5,
            cleaned: 6,
            held: 7,
        };
        assert_eq!(TrackingInfo::from_sys(&sys), info);
    }
}
