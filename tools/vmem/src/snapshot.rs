// SPDX-License-Identifier: GPL-2.0-or-later
//! Snapshots: the contents of memory at one instant.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::seek;
use vmem_sys::{Errno, VMEM_SNAPSHOT_CLEAN, VMEM_SNAPSHOT_ONCE, calls, vmem_snapshot_info};

use crate::dirty::{self, DirtyLog, DirtyMap};
use crate::error::call;
use crate::{Error, PAGE_SIZE, PageIndex, PageRange, PresentMap, Tracking};

/// Options of a [`Snapshot`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct SnapshotOptions {
    clean: bool,
    once: bool,
    limit: u64,
}

/// The contents of tracked memory at one instant, for as long as this value lives. Programs continue: the first write to each page copies the
/// old contents.
///
/// It is read as a file of the size of the memory, in any order, by several threads at once; holes are zeros. Reading it does not change the
/// memory or its log.
///
/// A read of a page that was absent at the instant requests the page, and waits until the daemon has filled it. [`Snapshot::present_map`] has
/// the pages whose reads do not wait.
///
/// A snapshot and all that were taken with it **fail** if there is no memory for a copy, if the copies of one memory reach the
/// [limit](SnapshotOptions::limit), or if the log of one of the memories ends: calls return [`Error::SnapshotFailed`] from then on. Programs
/// that write are not affected.
///
/// # Examples
///
/// An image of a program's memory, in which holes stay holes:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::unix::fs::FileExt;
/// # let (memory, image) = (std::fs::File::open("/dev/shm/ram")?, std::fs::File::create("/tmp/image")?);
/// # let adopted = vmem::Control::open()?.adopt(&memory)?;
///
/// let tracking = adopted.track()?;
/// let snapshot = tracking.snapshot(vmem::SnapshotOptions::default().once(true))?;
/// image.set_len(snapshot.size())?;
/// for data in snapshot.data() {
///     for page in data?.iter() {
///         let mut contents = [0; vmem::PAGE_SIZE];
///         snapshot.read_exact_at(&mut contents, page.offset())?;
///         image.write_all_at(&contents, page.offset())?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Incremental checkpoints: a base, and each minute what has been written since the checkpoint before. A checkpoint that fails half-way loses
/// nothing. What is not [done](Snapshot::done) when its snapshot is dropped is in the next increment:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::unix::fs::FileExt;
/// use vmem::{PAGE_SIZE, PageRange, Snapshot, SnapshotOptions, Tracking};
///
/// fn write(snapshot: &Snapshot, pages: &[PageRange], path: &str) -> Result<(), Box<dyn std::error::Error>> {
///     let file = std::fs::File::create(path)?;
///     for page in pages.iter().flat_map(|range| range.iter()) {
///         let mut contents = [0; PAGE_SIZE];
///         snapshot.read_exact_at(&mut contents, page.offset())?; // this frees the copy of the page
///         file.write_all_at(&contents, page.offset())?;
///     }
///     file.sync_all()?;
///     snapshot.done(snapshot.pages())?; // only now: the file is complete
///     Ok(())
/// }
///
/// fn checkpoints(tracking: &Tracking) -> Result<(), Box<dyn std::error::Error>> {
///     let options = SnapshotOptions::default().clean(true).once(true).limit(1 << 30);
///     let base = tracking.snapshot(options)?;
///     let data: Vec<PageRange> = base.data().collect::<Result<_, _>>()?;
///     write(&base, &data, "/srv/checkpoint.0")?;
///     drop(base); // there is one at a time
///     for number in 1.. {
///         std::thread::sleep(std::time::Duration::from_secs(60));
///         let next = tracking.snapshot(options)?;
///         let written = next.increment(next.pages()).complete()?;
///         if let Err(error) = write(&next, &written, &format!("/srv/checkpoint.{number}")) {
///             eprintln!("no checkpoint {number}, its pages are in the next one: {error}");
///         }
///     }
///     Ok(())
/// }
/// # let memory = std::fs::File::open("/dev/shm/ram")?;
/// # let adopted = vmem::Control::open()?.adopt(&memory)?;
/// # checkpoints(&adopted.track()?)
/// # }
/// ```
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    pages: PageRange,
    closed: Duration,
}

/// State and counters of a snapshot at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Size in bytes.
    pub size: u64,
    /// Pages that were in the log at the instant, and are not done.
    pub dirty: u64,
    /// Pages whose contents are still in the memory itself.
    pub pending: u64,
    /// Pages that were copied: by writers, by touches of a mapping, and at the instant itself.
    pub copied: u64,
    /// Pages that the copies take now.
    pub kept: u64,
    /// Pages that are done, or have been read with [`SnapshotOptions::once`], or were discarded by a program before they came.
    pub done: u64,
    /// Whether the snapshot has failed.
    pub failed: bool,
}

impl SnapshotOptions {
    /// Moves the log of each memory into the snapshot at its instant ([`Snapshot::increment`]): the next such snapshot has the pages written in
    /// between. Without this option, the logs are unchanged.
    pub fn clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    /// Each page can be read once: a read of the whole page frees its copy, and later reads are [`Error::PageDone`]. A read of a part of a page,
    /// as `read_to_end` does, keeps it: read whole pages at their offsets. For the log, only [`Snapshot::done`] makes a page done.
    pub fn once(mut self, once: bool) -> Self {
        self.once = once;
        self
    }

    /// The limit of the copies of one memory, in bytes. The snapshot fails when they need more. 0, the default, is no limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    fn flags(self) -> u32 {
        (if self.clean { VMEM_SNAPSHOT_CLEAN } else { 0 }) | (if self.once { VMEM_SNAPSHOT_ONCE } else { 0 })
    }
}

impl Tracking {
    /// Takes a snapshot of the memory; [`Snapshot::take`] takes one of several memories at the same instant. Writers wait until all pages are
    /// protected ([`Snapshot::closed`]), then continue.
    ///
    /// The snapshot fails when this `Tracking` is stopped or dropped. Memory has one snapshot at a time.
    ///
    /// # Errors
    ///
    /// After an error, the memory and its log are as before. [`Error::HasSnapshot`], [`Error::NeverAtRest`] (try again), [`Error::NotTracked`],
    /// [`Error::NoDescriptors`], [`Error::NoMemory`]; [`Error::NotVmem`] if the module does not have this call
    /// ([`Features::snapshot`](crate::Features::snapshot)).
    pub fn snapshot(&self, options: SnapshotOptions) -> Result<Snapshot, Error> {
        let mut taken = Snapshot::take(&[self], options)?;
        // The call gives one for each memory.
        taken.pop().ok_or(Error::Invalid { call: call::SNAPSHOT })
    }
}

impl Snapshot {
    /// Takes a snapshot of several memories at one instant, 1 to 64, each tracked: one for each of them, in their order. See
    /// [`Tracking::snapshot`].
    ///
    /// # Errors
    ///
    /// As for [`Tracking::snapshot`]; [`Error::Invalid`] if there are none or too many of them, or one is there twice.
    pub fn take(memories: &[&Tracking], options: SnapshotOptions) -> Result<Vec<Self>, Error> {
        let members: Vec<BorrowedFd<'_>> = memories.iter().map(|memory| memory.as_fd()).collect();
        let taken = calls::snapshot(&members, options.flags(), options.limit)
            .map_err(|errno| Error::from_errno(call::SNAPSHOT, errno))?;
        let closed = Duration::from_nanos(taken.closed_ns);
        let images = taken.images.into_iter().zip(memories);
        Ok(images
            .map(|(image, memory)| Self {
                file: File::from(image),
                pages: memory.pages(),
                closed,
            })
            .collect())
    }

    /// All pages of the memory.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Size in bytes, whole pages.
    pub fn size(&self) -> u64 {
        self.pages.bytes().end
    }

    /// For how long writers were held up while it was taken.
    pub fn closed(&self) -> Duration {
        self.closed
    }

    /// Reads at an offset, as far as there is room in `to`. Less is read in front of a page that cannot be read, and at the end. Waits for
    /// absent pages.
    ///
    /// # Errors
    ///
    /// [`Error::SnapshotFailed`]. Of the first page: [`Error::PageDone`] if it is done, or was absent, and a program has discarded it;
    /// [`Error::PageUnreadable`] if it is absent and cannot be had; [`Error::Interrupted`] by a signal while it is waited for, unless the
    /// signal's handler restarts calls (`SA_RESTART`).
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Error> {
        rustix::io::pread(&self.file, to, offset).map_err(|errno| Error::from_errno(call::READ, errno))
    }

    /// Fills `to` from an offset on.
    ///
    /// # Errors
    ///
    /// As for [`Snapshot::read_at`]; [`Error::Invalid`] if the memory ends before.
    pub fn read_exact_at(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < to.len() {
            match self.read_at(&mut to[done..], offset.saturating_add(done as u64)) {
                Ok(0) => return Err(Error::from_errno(call::READ, Errno::INVAL)),
                Ok(read) => done += read,
                Err(Error::Interrupted { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The pages that have contents, in order, in the longest runs; those that are absent have some. All others are zeros, or done, or were
    /// discarded by a program before they came. It moves the position of [`Read`].
    ///
    /// # Errors
    ///
    /// [`Error::SnapshotFailed`], after which there is nothing more.
    pub fn data(&self) -> impl Iterator<Item = Result<PageRange, Error>> + '_ {
        let mut at = Some(0);
        std::iter::from_fn(move || {
            let next = next_data(&self.file, at?).map_err(|errno| Error::from_errno(call::SEEK, errno));
            at = next.as_ref().ok().and_then(|found| found.as_ref()).map(|found| found.end);
            next.transpose().map(|found| found.and_then(|bytes| pages_of(&bytes)))
        })
    }

    /// Which of `pages` were in the log at the instant, in runs, in order: with [`SnapshotOptions::clean`], what was written since the
    /// snapshot before. Pages that are [done](Snapshot::done) are left out.
    ///
    /// [`DirtyLog::error`] may be [`Error::Invalid`] (the memory does not have all of `pages`), [`Error::SnapshotFailed`].
    pub fn increment(&self, pages: PageRange) -> DirtyLog<Vec<PageRange>> {
        dirty::ranges(pages, |pgoff, nr_pages, room| {
            calls::dirty_ranges(self.as_fd(), pgoff, nr_pages, false, room)
        })
    }

    /// As [`Snapshot::increment`], with a bit a page: better for memory that is written here and there. `pages` begin at a multiple of 64, or it
    /// is [`Error::Invalid`].
    pub fn increment_map(&self, pages: PageRange) -> DirtyLog<DirtyMap> {
        dirty::map(pages, |pgoff, nr_pages, words| {
            calls::dirty_bitmap(self.as_fd(), pgoff, nr_pages, false, words)
        })
    }

    /// Which pages are present, so that to read them does not wait. Of memory that is no region all are.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`]; [`Error::NotVmem`] if the module does not have this call for snapshots.
    pub fn present_map(&self) -> Result<PresentMap, Error> {
        PresentMap::get(self.as_fd(), self.pages)
    }

    /// Ends the use of these pages: their copies are freed, writers do not copy them any more, and they cannot be read again. With [`SnapshotOptions::clean`], pages of the increment that are not done come back into the log when the snapshot is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::SnapshotFailed`]; [`Error::Invalid`] if the memory does not have all of `pages`; [`Error::Interrupted`] if this process is
    /// being killed, after some of them.
    pub fn done(&self, pages: PageRange) -> Result<(), Error> {
        calls::snapshot_done(self.as_fd(), pages.first().get(), pages.count())
            .map_err(|errno| Error::from_errno(call::SNAPSHOT_DONE, errno))
    }

    /// State and counters of the snapshot, also of one that has failed.
    ///
    /// # Errors
    ///
    /// None on a snapshot descriptor.
    pub fn info(&self) -> Result<SnapshotInfo, Error> {
        let info = calls::get_snapshot(self.as_fd()).map_err(|errno| Error::from_errno(call::GET_SNAPSHOT, errno))?;
        Ok(SnapshotInfo::from_sys(&info))
    }
}

impl SnapshotInfo {
    fn from_sys(info: &vmem_snapshot_info) -> Self {
        Self {
            size: info.size,
            dirty: info.dirty,
            pending: info.pending,
            copied: info.copied,
            kept: info.kept,
            done: info.done,
            failed: info.failed != 0,
        }
    }
}

/// The next run of data from `at` on. `None` if only a hole follows.
fn next_data(file: &File, mut at: u64) -> Result<Option<Range<u64>>, Errno> {
    loop {
        let data = match seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        match seek(file, rustix::fs::SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => return Ok(Some(data..hole)),
            // Another reader has said in between that the page is done.
            Ok(_) => at = data.saturating_add(PAGE_SIZE as u64),
            Err(errno) => return Err(errno),
        }
    }
}

fn pages_of(bytes: &Range<u64>) -> Result<PageRange, Error> {
    PageIndex::holding(bytes.start)
        .and_then(|first| PageRange::new(first, (bytes.end - first.offset()).div_ceil(PAGE_SIZE as u64)))
        .ok_or(Error::Invalid { call: call::SEEK })
}

/// Converts an error for the traits of the standard library. Their callers recognize an interruption by its kind, and retry.
fn io_error(error: Error) -> io::Error {
    match error {
        Error::Interrupted { .. } => io::ErrorKind::Interrupted.into(),
        Error::Other { source, .. } => source.into(),
        error => io::Error::other(error),
    }
}

impl Read for &Snapshot {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        rustix::io::read(&self.file, to).map_err(|errno| io_error(Error::from_errno(call::READ, errno)))
    }
}

impl Read for Snapshot {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        (&*self).read(to)
    }
}

impl Seek for &Snapshot {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&self.file).seek(to)
    }
}

impl Seek for Snapshot {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl AsFd for Snapshot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Snapshot> for OwnedFd {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.file.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// A file as long as `pages`, in which `data` are no holes.
    fn snapshot(pages: u64, data: &[u64]) -> Snapshot {
        let file = File::from(memfd_create("snapshot", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(pages * PAGE).unwrap();
        for page in data {
            file.write_all_at(&[*page as u8 + 1; PAGE_SIZE], page * PAGE).unwrap();
        }
        Snapshot {
            file,
            pages: PageRange::of_len(pages * PAGE).unwrap(),
            closed: Duration::ZERO,
        }
    }

    fn data(snapshot: &Snapshot) -> Vec<(u64, u64)> {
        let runs: Vec<PageRange> = snapshot.data().collect::<Result<_, _>>().unwrap();
        runs.iter().map(|run| (run.first().get(), run.count())).collect()
    }

    #[test]
    fn data_runs_are_between_holes() {
        assert_eq!(data(&snapshot(10, &[0, 1, 4, 8, 9])), [(0, 2), (4, 1), (8, 2)]);
        assert_eq!(data(&snapshot(10, &[5])), [(5, 1)]);
        assert_eq!(data(&snapshot(10, &[])), []);
        assert_eq!(data(&snapshot(3, &[0, 1, 2])), [(0, 3)]);
    }

    #[test]
    fn data_iterator_ends_after_an_error() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let snapshot = Snapshot {
            file: File::from(OwnedFd::from(socket)),
            ..snapshot(1, &[])
        };
        let mut data = snapshot.data();
        assert!(matches!(
            data.next(),
            Some(Err(Error::Other {
                call: call::SEEK,
                source: Errno::SPIPE
            }))
        ));
        assert!(data.next().is_none());
    }

    #[test]
    fn read_exact_beyond_the_end_is_an_error() {
        let snapshot = snapshot(2, &[1]);
        let mut bytes = [0; 3];
        snapshot.read_exact_at(&mut bytes, PAGE - 1).unwrap();
        assert_eq!(bytes, [0, 2, 2]);
        assert!(matches!(
            snapshot.read_exact_at(&mut bytes, 2 * PAGE - 2),
            Err(Error::Invalid { call: call::READ })
        ));
        assert_eq!(snapshot.read_at(&mut bytes, 2 * PAGE - 2).unwrap(), 2);
    }

    #[test]
    fn snapshot_reads_and_seeks_as_a_file() {
        let mut snapshot = snapshot(2, &[0, 1]);
        let mut rest = Vec::new();
        assert_eq!(snapshot.seek(SeekFrom::End(-1)).unwrap(), 2 * PAGE - 1);
        snapshot.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [2]);
        assert_eq!((&snapshot).seek(SeekFrom::Start(PAGE - 1)).unwrap(), PAGE - 1);
        (&snapshot).read_exact(&mut rest).unwrap();
        assert_eq!(rest, [1]);
    }

    #[test]
    fn io_errors_keep_kind_errno_and_cause() {
        let of = |errno| io_error(Error::from_errno(call::READ, errno));
        assert_eq!(of(Errno::INTR).kind(), io::ErrorKind::Interrupted);
        assert_eq!(of(Errno::FAULT).raw_os_error(), Some(Errno::FAULT.raw_os_error()));
        let failed = of(Errno::STALE).downcast::<Error>().unwrap();
        assert!(matches!(failed, Error::SnapshotFailed));
    }

    #[test]
    fn options_map_to_the_flags_of_the_header() {
        let options = SnapshotOptions::default();
        assert_eq!(options.flags(), 0);
        assert_eq!(options.clean(true).flags(), 1);
        assert_eq!(options.once(true).flags(), 2);
        assert_eq!(options.clean(true).once(true).clean(false).flags(), 2);
    }

    #[test]
    fn info_maps_to_the_fields_of_the_header() {
        let sys = vmem_snapshot_info {
            size: 1,
            dirty: 2,
            pending: 3,
            copied: 4,
            kept: 5,
            done: 6,
            failed: 1,
            reserved: 0,
        };
        let info = SnapshotInfo {
            size: 1,
            dirty: 2,
            pending: 3,
            copied: 4,
            kept: 5,
            done: 6,
            failed: true,
        };
        assert_eq!(SnapshotInfo::from_sys(&sys), info);
    }
}
