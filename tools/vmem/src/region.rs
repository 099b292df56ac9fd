// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon's side of a region.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use vmem_sys::calls::{self, FillRange, Outcome};
use vmem_sys::{Errno, VMEM_MARK_UNREADABLE, VMEM_MARK_ZERO};

use crate::error::call;
use crate::sys_range::{to_sys, to_sys_range};
use crate::{Error, Info, MapHandle, Name, PageIndex, PageRange, PresentMap, map, node};

/// The most pages that one [`Region::next_requests`] returns.
pub const MAX_BATCH: usize = vmem_sys::VMEM_MAX_BATCH as usize;

/// A region that this process serves: it is the region's daemon as long as this value, or a duplicate of its descriptor, lives.
///
/// Several threads can use all methods at once.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    staging: File,
    id: u64,
    pages: PageRange,
}

/// The result of a call on several ranges. Without an error, all ranges are complete; with one, those from `ranges` on are not.
#[derive(Debug)]
#[must_use]
pub struct Progress {
    /// Ranges that are complete.
    pub ranges: usize,
    /// Pages that were changed (filled, staged, marked), or found mapped ([`Region::make_pages_present`]).
    pub pages: u64,
    /// The error that ended the call early.
    pub error: Option<Error>,
}

impl Progress {
    /// The number of pages, if all ranges are complete.
    ///
    /// # Errors
    ///
    /// The error that ended the call early.
    pub fn complete(self) -> Result<u64, Error> {
        match self.error {
            None => Ok(self.pages),
            Some(error) => Err(error),
        }
    }
}

/// Where the contents of pages lie in a file. [`Region::set_backing`] says what may be one.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    /// The file, open for reading.
    pub file: BorrowedFd<'a>,
    /// The position of the first page, a multiple of the page size.
    pub offset: u64,
    /// How many pages one touch reads: the page and those beside it. A power of two, up to 512; 0 is 16.
    pub around: u32,
}

/// The contents of a run of pages.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a>(FillRange<'a>);

impl<'a> Fill<'a> {
    /// `contents` for the pages from `first` on.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholePages`].
    pub fn new(first: PageIndex, contents: &'a [u8]) -> Result<Self, Error> {
        FillRange::new(first.get(), contents)
            .map(Self)
            .ok_or(Error::NotWholePages { len: contents.len() })
    }
}

impl Region {
    /// Takes over a region from its two descriptors, for example ones that came over a Unix socket.
    ///
    /// The region descriptor becomes `O_NONBLOCK`, which is the same for all its duplicates.
    ///
    /// # Errors
    ///
    /// [`Error::NotVmem`] if `vmem` is not a descriptor of a region.
    pub fn from_fds(vmem: OwnedFd, shmem: OwnedFd) -> Result<Self, Error> {
        let info = Info::get(vmem.as_fd())?;
        let pages = map::pages(vmem.as_fd())?;
        let nonblocking =
            rustix::fs::fcntl_getfl(&vmem).and_then(|flags| rustix::fs::fcntl_setfl(&vmem, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|errno| Error::from_errno(call::FCNTL, errno))?;
        Ok(Self {
            fd: vmem,
            staging: shmem.into(),
            id: info.id,
            pages,
        })
    }

    /// Goes on as the daemon of a region, by the region descriptor of a daemon that has died: another process has kept it, for example a service
    /// manager. The region has had a daemon all the time. Requests that the daemon before has taken and not answered come again. Returns the
    /// region, and its name if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::NotVmem`] if it is no descriptor of a region, or the module cannot do it ([`Features::resume`](crate::Features::resume));
    /// [`Error::MapOnly`] if the descriptor cannot serve a region.
    pub fn resume(vmem: OwnedFd) -> Result<(Self, Option<Name>), Error> {
        let resumed = calls::resume(vmem.as_fd()).map_err(|errno| Error::from_errno(call::RESUME, errno))?;
        let name = Name::from_sys(&resumed.name);
        Ok((Self::from_fds(vmem, resumed.shmem)?, name))
    }

    /// The region descriptor and the staging file, to pass to another process. When the last process closes them, the region has no daemon.
    pub fn into_fds(self) -> (OwnedFd, OwnedFd) {
        (self.fd, self.staging.into())
    }

    /// Number of the region; [`Control::attach_id`](crate::Control::attach_id) takes it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Size in bytes, whole pages.
    pub fn size(&self) -> u64 {
        self.pages.bytes().end
    }

    /// All pages of the region.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The staging file: the shmem file that is the region's memory. Programs do not see a page in it before the page is marked. Writes to it
    /// are charged to the memory cgroup of the writer; [`Region::fill`] charges the program that maps the region.
    pub fn staging(&self) -> &File {
        &self.staging
    }

    /// Copies pages out of the staging file into `to`, which is as long as they are. Of pages that are present, this is what programs see;
    /// what is staged of the others comes as it is. The copy neither waits for pages nor raises SIGBUS.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholePages`] if `to` is longer or shorter; an error of `pread(2)`, for example for a page that cannot be swapped in.
    pub fn read_staging(&self, pages: PageRange, to: &mut [u8]) -> Result<(), Error> {
        let bytes = pages.bytes();
        if to.len() as u64 != bytes.end - bytes.start {
            return Err(Error::NotWholePages { len: to.len() });
        }
        let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        self.staging
            .read_exact_at(to, bytes.start)
            .map_err(|error| Error::from_errno(call::PREAD, errno(error)))
    }

    /// A descriptor for programs that map the region and must not serve it.
    ///
    /// # Errors
    ///
    /// [`Error::NoDescriptors`], [`Error::NoMemory`].
    pub fn map_handle(&self) -> Result<MapHandle, Error> {
        calls::get_map_fd(self.fd.as_fd())
            .map(MapHandle::from)
            .map_err(|errno| Error::from_errno(call::GET_MAP_FD, errno))
    }

    /// Makes sure that programs which open `path` get this region: that it is the region's node. [`RegionBuilder::create`](crate::RegionBuilder::create)
    /// calls it. A daemon that attaches to a region decides what a missing node means for programs that map the region already.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignNode`]; [`Error::Open`] if nothing is there.
    pub fn check_node(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        node::check(path.as_ref(), self.id)
    }

    /// Declares that this daemon answers requests from now on: wakes the threads in [`MapHandle::wait_ready`].
    ///
    /// # Errors
    ///
    /// None on a region descriptor.
    pub fn ready(&self) -> Result<(), Error> {
        calls::ready(self.fd.as_fd()).map_err(|errno| Error::from_errno(call::READY, errno))
    }

    /// Waits for requests, and takes up to `max` of them (at most [`MAX_BATCH`]). Each absent page has one request, however many threads wait
    /// for it.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if a signal came first; [`Error::Plain`] once the region is plain memory; [`Error::Invalid`] if `max` is
    /// zero.
    pub fn next_requests(&self, max: usize) -> Result<Vec<PageIndex>, Error> {
        loop {
            let pages = self.try_next_requests(max)?;
            if !pages.is_empty() {
                return Ok(pages);
            }
            self.poll(None)?;
        }
    }

    /// As [`Region::next_requests`], but returns an empty vector if there is no request within `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`Region::next_requests`].
    pub fn next_requests_timeout(&self, max: usize, timeout: Duration) -> Result<Vec<PageIndex>, Error> {
        let since = Instant::now();
        loop {
            let pages = self.try_next_requests(max)?;
            let left = timeout.saturating_sub(since.elapsed());
            if !pages.is_empty() || left.is_zero() {
                return Ok(pages);
            }
            self.poll(Some(left))?;
        }
    }

    /// Takes up to `max` of the current requests, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Plain`] once the region is plain memory; [`Error::Invalid`] if `max` is zero.
    pub fn try_next_requests(&self, max: usize) -> Result<Vec<PageIndex>, Error> {
        let error = |errno| Error::from_errno(call::GET_PAGE_REQUEST, errno);
        let mut pgoffs = vec![0; max.min(MAX_BATCH)];
        match calls::get_page_request(self.fd.as_fd(), &mut pgoffs) {
            Ok(taken) => pgoffs.truncate(taken),
            Err(Errno::AGAIN) => pgoffs.clear(),
            Err(errno) => return Err(error(errno)),
        }
        pgoffs
            .into_iter()
            .map(|pgoff| PageIndex::new(pgoff).ok_or(error(Errno::OVERFLOW)))
            .collect()
    }

    /// Waits for a request, at most for `timeout`.
    fn poll(&self, timeout: Option<Duration>) -> Result<(), Error> {
        // A duration that the kernel cannot take is longer than anybody waits.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref())
            .map_err(|errno| Error::from_errno(call::POLL, errno))?;
        Ok(())
    }

    /// Marks pages whose contents are in the staging file as present, and wakes the threads that wait for them. Pages that are present are not
    /// changed. A signal does not interrupt the call.
    pub fn mark_cached(&self, ranges: &[PageRange]) -> Progress {
        self.mark(ranges, 0)
    }

    /// Marks pages as present and zero, and wakes the threads that wait for them. Pages that are present are not changed. A signal does not
    /// interrupt the call.
    pub fn mark_zero(&self, ranges: &[PageRange]) -> Progress {
        self.mark(ranges, VMEM_MARK_ZERO)
    }

    /// Marks pages as unreadable: a touch gets SIGBUS. Pages that are present are not changed. A signal does not interrupt the call.
    pub fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress {
        self.mark(ranges, VMEM_MARK_UNREADABLE)
    }

    fn mark(&self, ranges: &[PageRange], flags: u32) -> Progress {
        let ranges = to_sys(ranges);
        batches(call::MARK_PAGE_CACHED, Signals::GoOn, &ranges, |batch| {
            calls::mark_page_cached(self.fd.as_fd(), batch, flags)
        })
    }

    /// Fills those of the pages that are absent, and marks them as present. A page that is present keeps its contents. A signal does not
    /// interrupt the call.
    pub fn fill(&self, fills: &[Fill<'_>]) -> Progress {
        let ranges: Vec<_> = fills.iter().map(|fill| fill.0).collect();
        batches(call::FILL_PAGES, Signals::GoOn, &ranges, |batch| {
            calls::fill_pages(self.fd.as_fd(), batch)
        })
    }

    /// Copies contents of pages that are not present into the staging file, and marks no page: programs see nothing of them, and requests stay
    /// as they are. The memory is charged as that of [`Region::fill`]. Staging a page again replaces its contents. A page that is present
    /// keeps its contents and is not counted; an unreadable one is staged and stays unreadable. A signal does not interrupt the call.
    ///
    /// [`Region::mark_cached`] makes staged pages present with what was staged last; [`Region::mark_zero`] and [`Region::fill`] drop or replace
    /// it. Pages of the ranges that are not complete after an error have undefined contents: stage them again before they are marked. The same
    /// is true of a page that is marked while another thread stages it.
    ///
    /// [`Error::Invalid`] if the module cannot do it ([`Features::stage`](crate::Features::stage)).
    pub fn stage(&self, fills: &[Fill<'_>]) -> Progress {
        let ranges: Vec<_> = fills.iter().map(|fill| fill.0).collect();
        batches(call::STAGE_PAGES, Signals::GoOn, &ranges, |batch| {
            calls::stage_pages(self.fd.as_fd(), batch)
        })
    }

    /// Has the module itself read absent pages from a local file when they are touched. Pages that have backing get this one in its place. It
    /// stays when the daemon ends, and goes when the region is plain memory. The daemon can fill and mark these pages as before: what comes
    /// first stays. A page that cannot be read is requested, or is unreadable while no daemon is attached. The file should not be changed.
    ///
    /// After the call, the file that the pages had before is not read any more.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the file is not a regular one that can be read in this way, or `offset` or `around` is not right;
    /// [`Error::Other`] if it is not open for reading (`EACCES`), on hugetlbfs or on a file system that a program may serve
    /// (`EOPNOTSUPP`), or memory of a region (`ELOOP`), and if there are too many pieces (`ENOSPC`). [`Error::Plain`].
    pub fn set_backing(&self, pages: PageRange, backing: Backing<'_>) -> Result<(), Error> {
        let Backing { file, offset, around } = backing;
        calls::set_backing(self.fd.as_fd(), to_sys_range(pages), file, offset, around)
            .map_err(|errno| Error::from_errno(call::SET_BACKING, errno))
    }

    /// Pages have no backing any more: a touch of an absent one is a request. After the call, no file is read for them.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the region does not have all of `pages`; [`Error::NoMemory`].
    pub fn withdraw_backing(&self, pages: PageRange) -> Result<(), Error> {
        calls::withdraw_backing(self.fd.as_fd(), to_sys_range(pages)).map_err(|errno| Error::from_errno(call::SET_BACKING, errno))
    }

    /// Puts present pages into the page tables of all mappings of the region, so that touches of them do not fault. Absent pages are skipped, and
    /// zeros that nobody has touched, which take no memory. A signal interrupts the call ([`Error::Interrupted`]).
    pub fn make_pages_present(&self, ranges: &[PageRange]) -> Progress {
        let ranges = to_sys(ranges);
        batches(call::MAKE_PAGES_PRESENT, Signals::Stop, &ranges, |batch| {
            calls::make_pages_present(self.fd.as_fd(), batch)
        })
    }

    /// Turns all mappings of the region into plain memory, for good. A second call does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::PagesAbsent`]; [`Error::Interrupted`] (some mappings are left: call again).
    pub fn make_vma_anonymous(&self) -> Result<(), Error> {
        calls::make_vma_anonymous(self.fd.as_fd()).map_err(|errno| Error::from_errno(call::MAKE_VMA_ANONYMOUS, errno))
    }

    /// Which pages are present.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn present_map(&self) -> Result<PresentMap, Error> {
        PresentMap::get(self.fd.as_fd(), self.pages)
    }

    /// Which pages of the blocks of 64 pages that `pages` touches are present.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`]; [`Error::Invalid`] if the region does not have all of `pages`.
    pub fn present_map_around(&self, pages: PageRange) -> Result<PresentMap, Error> {
        let first = pages.first().get() / 64 * 64;
        let end = pages.end().next_multiple_of(64).min(self.pages.end());
        let around = end.checked_sub(first).and_then(|count| PageRange::from_pgoff(first, count));
        let around = around.ok_or_else(|| Error::from_errno(call::GET_PRESENT, Errno::INVAL))?;
        PresentMap::get(self.fd.as_fd(), around)
    }

    /// State and counters.
    ///
    /// # Errors
    ///
    /// None on a region descriptor.
    pub fn info(&self) -> Result<Info, Error> {
        Info::get(self.fd.as_fd())
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Region {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// How a signal affects a call on several ranges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signals {
    GoOn,
    Stop,
}

/// Makes a call on all of `entries`, in batches as large as the kernel accepts.
fn batches<T>(call: &'static str, signals: Signals, entries: &[T], make: impl Fn(&[T]) -> Outcome) -> Progress {
    let mut progress = Progress {
        ranges: 0,
        pages: 0,
        error: None,
    };
    while progress.ranges < entries.len() {
        let left = &entries[progress.ranges..];
        let batch = &left[..left.len().min(MAX_BATCH)];
        let outcome = make(batch);
        progress.ranges += outcome.done.min(batch.len());
        progress.pages += outcome.pages;
        match outcome.error {
            None if outcome.done >= batch.len() => (),
            // A kernel that neither finishes nor says why would be asked again without end.
            None => progress.error = Some(Error::from_errno(call, Errno::IO)),
            Some(Errno::INTR) if signals == Signals::GoOn => continue,
            Some(errno) => progress.error = Some(Error::from_errno(call, errno)),
        }
        if progress.error.is_some() {
            break;
        }
    }
    progress
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A kernel that answers with these outcomes, in turn, and keeps the lengths of the batches that it got.
    fn run(signals: Signals, entries: usize, outcomes: &[(usize, u64, Option<Errno>)]) -> (Progress, Vec<usize>) {
        let answers = RefCell::new(outcomes.iter());
        let lengths = RefCell::new(Vec::new());
        let progress = batches("CALL", signals, &vec![(); entries], |batch| {
            lengths.borrow_mut().push(batch.len());
            let &(done, pages, error) = answers.borrow_mut().next().unwrap();
            Outcome { done, pages, error }
        });
        (progress, lengths.into_inner())
    }

    #[test]
    fn array_longer_than_a_batch_is_split_and_summed() {
        let (progress, lengths) = run(Signals::Stop, MAX_BATCH + 5, &[(MAX_BATCH, 7, None), (5, 2, None)]);
        assert_eq!(lengths, [MAX_BATCH, 5]);
        assert_eq!((progress.ranges, progress.pages), (MAX_BATCH + 5, 9));
        assert_eq!(progress.complete().unwrap(), 9);
    }

    #[test]
    fn progress_before_an_error_is_returned() {
        let (progress, _) = run(Signals::GoOn, 10, &[(4, 6, Some(Errno::NOMEM))]);
        assert_eq!((progress.ranges, progress.pages), (4, 6));
        assert!(matches!(progress.error, Some(Error::NoMemory { call: "CALL" })));
    }

    #[test]
    fn signal_stops_only_interruptible_calls() {
        let (progress, lengths) = run(Signals::GoOn, 10, &[(4, 6, Some(Errno::INTR)), (6, 1, None)]);
        assert_eq!((progress.ranges, progress.pages, lengths), (10, 7, vec![10, 6]));
        let (progress, _) = run(Signals::Stop, 10, &[(4, 6, Some(Errno::INTR))]);
        assert_eq!(progress.ranges, 4);
        assert!(matches!(progress.error, Some(Error::Interrupted { .. })));
    }

    #[test]
    fn empty_array_makes_no_call() {
        let (progress, lengths) = run(Signals::Stop, 0, &[]);
        assert_eq!((progress.complete().unwrap(), lengths.len()), (0, 0));
    }

    #[test]
    fn call_without_progress_or_error_is_an_error() {
        let (progress, _) = run(Signals::Stop, 3, &[(2, 2, None)]);
        assert_eq!(progress.ranges, 2);
        assert!(progress.error.is_some());
    }

    #[test]
    fn contents_that_are_not_whole_pages_are_refused() {
        let page = PageIndex::new(0).unwrap();
        assert!(Fill::new(page, &[0; 4096]).is_ok());
        assert!(matches!(Fill::new(page, &[0; 4095]), Err(Error::NotWholePages { len: 4095 })));
    }

    #[test]
    fn descriptor_that_is_not_a_region_is_refused() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(matches!(Region::from_fds(null(), null()), Err(Error::NotVmem { .. })));
    }
}
