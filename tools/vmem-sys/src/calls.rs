// SPDX-License-Identifier: GPL-2.0-or-later
//! One safe function for each ioctl.
//!
//! A descriptor of another driver gives `ENOTTY`: the ioctl numbers are unique, and each encodes the size of its argument.

use std::ffi::c_char;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::bindings::*;
use crate::ioctl::{call, call_plain};
use crate::{Errno, PAGE_SIZE};

/// The result of a call on several ranges.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Ranges that are complete.
    pub done: usize,
    /// The number of pages that the call counts (`changed` or `pages` in the header).
    pub pages: u64,
    /// The error, if the call is not complete.
    pub error: Option<Errno>,
}

/// The descriptors that make the caller the daemon of a region.
#[derive(Debug)]
pub struct Served {
    /// The region descriptor.
    pub vmem: OwnedFd,
    /// The staging file.
    pub shmem: OwnedFd,
    /// Size of the region in bytes.
    pub size: u64,
    /// Number of the region.
    pub id: u64,
}

/// Shared memory that is adopted.
#[derive(Debug)]
pub struct Adopted {
    /// The adopted descriptor.
    pub vmem: OwnedFd,
    /// Size of the memory in bytes.
    pub size: u64,
    /// Number of the region.
    pub id: u64,
}

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// A snapshot descriptor for each member, in their order.
    pub images: Vec<OwnedFd>,
    /// How long writers had to wait, in nanoseconds.
    pub closed_ns: u64,
}

/// The result of a call on the dirty log.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Pages examined.
    pub done: u64,
    /// Pages of them that are reported.
    pub dirty: u64,
    /// Pages of those that stay in the log with `VMEM_DIRTY_CLEAN`.
    pub held: u64,
    /// Entries in the array of ranges.
    pub ranges: usize,
    /// The error, if the call failed.
    pub error: Option<Errno>,
}

/// The contents of a run of pages, for [`fill_pages`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct FillRange<'a> {
    raw: vmem_fill_range,
    contents: PhantomData<&'a [u8]>,
}

impl<'a> FillRange<'a> {
    /// `contents` for the pages from `pgoff` on. `None` unless it is whole pages.
    pub fn new(pgoff: u64, contents: &'a [u8]) -> Option<Self> {
        (contents.len() % PAGE_SIZE == 0).then_some(Self {
            raw: vmem_fill_range {
                pgoff,
                nr_pages: (contents.len() / PAGE_SIZE) as u64,
                addr: contents.as_ptr() as u64,
            },
            contents: PhantomData,
        })
    }
}

/// `VMEM_GET_FEATURES`: the features of the module.
pub fn get_features(fd: BorrowedFd<'_>) -> Result<vmem_features, Errno> {
    let mut features = vmem_features::default();
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut features) }?;
    Ok(features)
}

/// `VMEM_CREATE_VMEM`: a new region, as `create` describes it.
pub fn create_vmem(fd: BorrowedFd<'_>, mut create: vmem_create) -> Result<Served, Errno> {
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut create) }?;
    Ok(Served {
        vmem: take(create.vmem_fd)?,
        shmem: take(create.shmem_fd)?,
        size: create.size,
        id: create.id,
    })
}

/// `VMEM_ATTACH`: the caller becomes the daemon of the region that `attach` names. The name is used if it is not empty.
pub fn attach(fd: BorrowedFd<'_>, mut attach: vmem_attach) -> Result<Served, Errno> {
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut attach) }?;
    Ok(Served {
        vmem: take(attach.vmem_fd)?,
        shmem: take(attach.shmem_fd)?,
        size: attach.size,
        id: attach.id,
    })
}

/// A region whose daemon the caller has become by a descriptor.
#[derive(Debug)]
pub struct Resumed {
    /// The staging file.
    pub shmem: OwnedFd,
    /// Size of the region in bytes.
    pub size: u64,
    /// Number of the region.
    pub id: u64,
    /// Name of the region, padded with NUL bytes.
    pub name: [c_char; VMEM_NAME_MAX as usize],
}

/// `VMEM_RESUME`: the caller, who has got the region descriptor `fd` from another process, goes on as the daemon.
pub fn resume(fd: BorrowedFd<'_>) -> Result<Resumed, Errno> {
    let mut resume = vmem_resume {
        shmem_fd: -1,
        ..Default::default()
    };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut resume) }?;
    Ok(Resumed {
        shmem: take(resume.shmem_fd)?,
        size: resume.size,
        id: resume.id,
        name: resume.name,
    })
}

/// `VMEM_ADOPT`: a region of shared memory that exists. `memory` is a descriptor of it that is open for writing.
pub fn adopt(fd: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Adopted, Errno> {
    let mut adopt = vmem_adopt {
        fd: memory.as_raw_fd(),
        vmem_fd: -1,
        ..Default::default()
    };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut adopt) }?;
    Ok(Adopted {
        vmem: take(adopt.vmem_fd)?,
        size: adopt.size,
        id: adopt.id,
    })
}

/// `VMEM_WAIT_READY`: waits until the daemon has called [`ready`].
pub fn wait_ready(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    call_plain::<VMEM_WAIT_READY>(fd)
}

/// `VMEM_READY`: wakes the threads in [`wait_ready`].
pub fn ready(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    call_plain::<VMEM_READY>(fd)
}

/// `VMEM_GET_PAGE_REQUEST`: takes requests into `pgoffs`, and returns their number. Room beyond `VMEM_MAX_BATCH` is not used.
pub fn get_page_request(fd: BorrowedFd<'_>, pgoffs: &mut [u64]) -> Result<usize, Errno> {
    let room = pgoffs.len().min(VMEM_MAX_BATCH as usize);
    let mut request = vmem_page_request {
        pgoffs: pgoffs.as_mut_ptr() as u64,
        nr: room as u32,
        flags: 0,
    };
    // SAFETY: `pgoffs` is borrowed mutably and has room for `nr` numbers.
    unsafe { call(fd, &mut request) }?;
    Ok(room.min(request.nr as usize))
}

/// `VMEM_MARK_PAGE_CACHED`: sets the state `flags` (`VMEM_MARK_*`) of the pages of `ranges`; `pages` counts those it changed.
pub fn mark_page_cached(fd: BorrowedFd<'_>, ranges: &[vmem_range], flags: u32) -> Outcome {
    let mut mark = vmem_mark {
        ranges: ranges.as_ptr() as u64,
        nr: count(ranges),
        flags,
        done: 0,
        changed: 0,
    };
    // SAFETY: the call only reads `ranges`, of which it knows the length.
    let result = unsafe { call(fd, &mut mark) };
    outcome(result, mark.done, mark.changed)
}

/// `VMEM_FILL_PAGES`: fills absent pages and marks them as present; `pages` counts those it changed.
pub fn fill_pages(fd: BorrowedFd<'_>, ranges: &[FillRange<'_>]) -> Outcome {
    fill_with(fd, ranges, 0)
}

/// `VMEM_FILL_PAGES` with `VMEM_FILL_STAGE`: copies the contents of absent pages and marks none; `pages` counts those it staged.
pub fn stage_pages(fd: BorrowedFd<'_>, ranges: &[FillRange<'_>]) -> Outcome {
    fill_with(fd, ranges, VMEM_FILL_STAGE)
}

fn fill_with(fd: BorrowedFd<'_>, ranges: &[FillRange<'_>], flags: u32) -> Outcome {
    let mut fill = vmem_fill {
        ranges: ranges.as_ptr() as u64,
        nr: count(ranges),
        flags,
        done: 0,
        changed: 0,
    };
    // SAFETY: a `FillRange` is a `vmem_fill_range`, the contents that it names are borrowed, and the call only reads them.
    let result = unsafe { call(fd, &mut fill) };
    outcome(result, fill.done, fill.changed)
}

/// `VMEM_SET_BACKING`: the `nr_pages` pages from `pgoff` on lie in `file`, from position `offset` on. A touch of an absent one reads up to
/// `around` pages, a power of two; 0 is the module's default.
pub fn set_backing(fd: BorrowedFd<'_>, pages: vmem_range, file: BorrowedFd<'_>, offset: u64, around: u32) -> Result<(), Errno> {
    let mut backing = vmem_backing {
        fd: file.as_raw_fd(),
        offset,
        pgoff: pages.pgoff,
        nr_pages: pages.nr_pages,
        around,
        ..Default::default()
    };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut backing) }
}

/// `VMEM_SET_BACKING` with `VMEM_BACKING_NONE`: the pages have no backing any more.
pub fn withdraw_backing(fd: BorrowedFd<'_>, pages: vmem_range) -> Result<(), Errno> {
    let mut backing = vmem_backing {
        fd: -1,
        flags: VMEM_BACKING_NONE,
        pgoff: pages.pgoff,
        nr_pages: pages.nr_pages,
        ..Default::default()
    };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut backing) }
}

/// `VMEM_MAKE_PAGES_PRESENT`: puts present pages of `ranges` into the page tables of all mappings of the region; `pages` counts
/// the pages found mapped, once per mapping.
pub fn make_pages_present(fd: BorrowedFd<'_>, ranges: &[vmem_range]) -> Outcome {
    let mut populate = vmem_populate {
        ranges: ranges.as_ptr() as u64,
        nr: count(ranges),
        flags: 0,
        done: 0,
        pages: 0,
    };
    // SAFETY: the call only reads `ranges`, of which it knows the length.
    let result = unsafe { call(fd, &mut populate) };
    outcome(result, populate.done, populate.pages)
}

/// `VMEM_MAKE_VMA_ANONYMOUS`: turns all mappings into plain anonymous memory.
pub fn make_vma_anonymous(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    call_plain::<VMEM_MAKE_VMA_ANONYMOUS>(fd)
}

/// `VMEM_GET_PRESENT`: the present map of the `nr_pages` pages from `pgoff` on, a bit a page in `bitmap`. Returns how many are
/// present; `EINVAL` if `bitmap` has no room for them.
pub fn get_present(fd: BorrowedFd<'_>, pgoff: u64, nr_pages: u64, bitmap: &mut [u64]) -> Result<u64, Errno> {
    if nr_pages.div_ceil(u64::BITS.into()) > bitmap.len() as u64 {
        return Err(Errno::INVAL);
    }
    let mut present = vmem_present {
        pgoff,
        nr_pages,
        bitmap: bitmap.as_mut_ptr() as u64,
        present: 0,
    };
    // SAFETY: `bitmap` is borrowed mutably and has a bit for each page, as was just checked.
    unsafe { call(fd, &mut present) }?;
    Ok(present.present)
}

/// `VMEM_GET_INFO`: state and counters of a region.
pub fn get_info(fd: BorrowedFd<'_>) -> Result<vmem_info, Errno> {
    let mut info = vmem_info::default();
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut info) }?;
    Ok(info)
}

/// `VMEM_GET_MAP_FD`: a descriptor that can map the region and cannot serve it.
pub fn get_map_fd(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut map = vmem_map_fd { flags: 0, fd: -1 };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut map) }?;
    take(map.fd)
}

/// `VMEM_TRACK`: begins to log writes to adopted memory; `flags` are `VMEM_TRACK_` bits. Returns the numbers of tracked mappings and of held
/// pages.
pub fn track(fd: BorrowedFd<'_>, flags: u32) -> Result<vmem_track, Errno> {
    let mut track = vmem_track {
        flags,
        ..Default::default()
    };
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut track) }?;
    Ok(track)
}

/// `VMEM_UNTRACK`: ends the log.
pub fn untrack(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    call_plain::<VMEM_UNTRACK>(fd)
}

/// `VMEM_DIRTY`: the log of the `nr_pages` pages from `pgoff` on, a bit a page in `bitmap`; with `clean`, what is reported is taken out of
/// the log. `EINVAL` if `bitmap` has no room for them.
pub fn dirty_bitmap(fd: BorrowedFd<'_>, pgoff: u64, nr_pages: u64, clean: bool, bitmap: &mut [u64]) -> Logged {
    if nr_pages.div_ceil(u64::BITS.into()) > bitmap.len() as u64 {
        return logged(Err(Errno::INVAL), &vmem_dirty::default());
    }
    let mut dirty = vmem_dirty {
        pgoff,
        nr_pages,
        out: bitmap.as_mut_ptr() as u64,
        flags: if clean { VMEM_DIRTY_CLEAN } else { 0 },
        ..Default::default()
    };
    // SAFETY: `bitmap` is borrowed mutably and has a bit for each page, as was just checked.
    let result = unsafe { call(fd, &mut dirty) };
    logged(result, &vmem_dirty { nr: 0, ..dirty })
}

/// `VMEM_DIRTY` with `VMEM_DIRTY_RANGES`: the log of the `nr_pages` pages from `pgoff` on, as runs of pages in `ranges`; with `clean`, what
/// is reported is taken out of the log. Room beyond `VMEM_MAX_BATCH` is not used.
pub fn dirty_ranges(fd: BorrowedFd<'_>, pgoff: u64, nr_pages: u64, clean: bool, ranges: &mut [vmem_range]) -> Logged {
    let room = ranges.len().min(VMEM_MAX_BATCH as usize);
    let mut dirty = vmem_dirty {
        pgoff,
        nr_pages,
        out: ranges.as_mut_ptr() as u64,
        nr: room as u32,
        flags: VMEM_DIRTY_RANGES | if clean { VMEM_DIRTY_CLEAN } else { 0 },
        ..Default::default()
    };
    // SAFETY: `ranges` is borrowed mutably and has room for `nr` ranges, which are numbers of any value.
    let result = unsafe { call(fd, &mut dirty) };
    let logged = logged(result, &dirty);
    Logged {
        ranges: logged.ranges.min(room),
        ..logged
    }
}

/// `VMEM_GET_TRACKING`: state and counters of the log.
pub fn get_tracking(fd: BorrowedFd<'_>) -> Result<vmem_tracking, Errno> {
    let mut tracking = vmem_tracking::default();
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut tracking) }?;
    Ok(tracking)
}

/// `VMEM_SNAPSHOT`: takes a snapshot of the memories of these adopted descriptors at one instant. `flags` are `VMEM_SNAPSHOT_CLEAN` and
/// `VMEM_SNAPSHOT_ONCE`; copies of one memory take `limit` bytes at most, 0 is no limit. `EINVAL` if there is no member.
pub fn snapshot(members: &[BorrowedFd<'_>], flags: u32, limit: u64) -> Result<Snapshot, Errno> {
    let fd = members.first().ok_or(Errno::INVAL)?;
    let mut array: Vec<_> = members
        .iter()
        .map(|member| vmem_snapshot_member {
            vmem_fd: member.as_raw_fd(),
            snapshot_fd: -1,
        })
        .collect();
    let mut snapshot = vmem_snapshot {
        members: array.as_mut_ptr() as u64,
        nr: count(&array),
        flags,
        limit,
        ..Default::default()
    };
    // SAFETY: `array` is borrowed mutably and has `nr` entries, which are numbers of any value.
    unsafe { call(*fd, &mut snapshot) }?;
    let images = array
        .iter()
        .map(|member| take(member.snapshot_fd))
        .collect::<Result<_, _>>()?;
    Ok(Snapshot {
        images,
        closed_ns: snapshot.closed_ns,
    })
}

/// `VMEM_SNAPSHOT_DONE`: ends the use of the `nr_pages` pages of a snapshot from `pgoff` on.
pub fn snapshot_done(fd: BorrowedFd<'_>, pgoff: u64, nr_pages: u64) -> Result<(), Errno> {
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut vmem_range { pgoff, nr_pages }) }
}

/// `VMEM_GET_SNAPSHOT`: state and counters of a snapshot.
pub fn get_snapshot(fd: BorrowedFd<'_>) -> Result<vmem_snapshot_info, Errno> {
    let mut info = vmem_snapshot_info::default();
    // SAFETY: this argument holds no address.
    unsafe { call(fd, &mut info) }?;
    Ok(info)
}

/// Owns a descriptor that a call has just returned.
fn take(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not negative, and the kernel has just created it for this caller: nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The length of an array for the kernel. A length that does not fit in 32 bits becomes the largest one, which is far beyond
/// `VMEM_MAX_BATCH`, too.
fn count<T>(entries: &[T]) -> u32 {
    u32::try_from(entries.len()).unwrap_or(u32::MAX)
}

fn outcome(result: Result<(), Errno>, done: u64, pages: u64) -> Outcome {
    Outcome {
        done: usize::try_from(done).unwrap_or(usize::MAX),
        pages,
        error: result.err(),
    }
}

fn logged(result: Result<(), Errno>, dirty: &vmem_dirty) -> Logged {
    Logged {
        done: dirty.done,
        dirty: dirty.dirty,
        held: dirty.held,
        // A call that fails before it has begun leaves the room here that it was given.
        ranges: if dirty.done == 0 { 0 } else { dirty.nr as usize },
        error: result.err(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn failed_dirty_call_reports_no_page() {
        let null = File::open("/dev/null").expect("a file");
        let fd = null.as_fd();
        let failed = |error| Logged {
            done: 0,
            dirty: 0,
            held: 0,
            ranges: 0,
            error: Some(error),
        };
        assert_eq!(
            dirty_ranges(fd, 0, 8, true, &mut [vmem_range::default(); 4]),
            failed(Errno::NOTTY)
        );
        assert_eq!(dirty_bitmap(fd, 0, 64, true, &mut [0]), failed(Errno::NOTTY));
        // The kernel is not asked: it would write behind the bitmap.
        assert_eq!(dirty_bitmap(fd, 0, 65, true, &mut [0]), failed(Errno::INVAL));
    }

    #[test]
    fn interrupted_call_reports_the_ranges_done() {
        let dirty = vmem_dirty {
            done: 8,
            dirty: 3,
            held: 1,
            nr: 2,
            ..Default::default()
        };
        let stopped = logged(Err(Errno::INTR), &dirty);
        assert_eq!((stopped.done, stopped.ranges, stopped.error), (8, 2, Some(Errno::INTR)));
    }
}
