// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared memory that is adopted, and what its log says.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vmem::{Control, PAGE_SIZE};
use vmem_sys::{calls, vmem_range, vmem_track, vmem_tracking};

use crate::failure::{Outcome, ensure, equal};
use crate::patience;

/// An adopted descriptor.
#[derive(Debug)]
pub(crate) struct Adopted {
    vmem: OwnedFd,
    /// Size of the memory in bytes.
    pub(crate) size: u64,
    /// Number of the region.
    pub(crate) id: u64,
}

/// What the log says of a range.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The pages in it.
    pub(crate) pages: Vec<usize>,
    /// How many of them stay although they were to be cleaned.
    pub(crate) held: u64,
}

impl Adopted {
    /// Adopts the memory of this descriptor.
    pub(crate) fn new(memory: impl AsFd) -> Result<Self, Errno> {
        let control = Control::open().map_err(|error| crate::failure::errno_of(&error).unwrap_or(Errno::NODEV))?;
        let adopted = calls::adopt(control.as_fd(), memory.as_fd())?;
        Ok(Self {
            vmem: adopted.vmem,
            size: adopted.size,
            id: adopted.id,
        })
    }

    /// Begins the log.
    pub(crate) fn track(&self) -> Result<vmem_track, Errno> {
        self.track_with(0)
    }

    /// Begins the log, with `VMEM_TRACK_` bits.
    pub(crate) fn track_with(&self, flags: u32) -> Result<vmem_track, Errno> {
        calls::track(self.as_fd(), flags)
    }

    /// Begins the log, when the end of the one before is over: after a failure it ends by itself.
    pub(crate) fn track_anew(&self) -> Result<(), Errno> {
        let since = Instant::now();
        loop {
            match self.track() {
                Err(Errno::ALREADY) if since.elapsed() < patience::of_a_state() => sleep(Duration::from_millis(1)),
                other => return other.map(drop),
            }
        }
    }

    /// Ends it.
    pub(crate) fn untrack(&self) -> Result<(), Errno> {
        calls::untrack(self.as_fd())
    }

    /// Figures of the log.
    pub(crate) fn tracking(&self) -> Result<vmem_tracking, Errno> {
        calls::get_tracking(self.as_fd())
    }

    /// [`bitmap`] of its log.
    pub(crate) fn bitmap(&self, pages: Range<usize>, clean: bool) -> Outcome<Report> {
        bitmap(self, pages, clean)
    }

    /// The log of these pages, as ranges, by as many calls as it takes with room for so many of them.
    pub(crate) fn ranges(&self, pages: Range<usize>, clean: bool, room: usize) -> Outcome<Report> {
        let mut report = Report {
            pages: Vec::new(),
            held: 0,
        };
        let mut next = pages.start;
        while next < pages.end {
            let mut ranges = vec![vmem_range::default(); room];
            let logged = calls::dirty_ranges(self.as_fd(), next as u64, (pages.end - next) as u64, clean, &mut ranges);
            logged.error.map_or(Ok(()), Err)?;
            let end = next + logged.done as usize;
            ensure!(logged.done > 0 && end <= pages.end, "{logged:?} of {next}..{}", pages.end);
            ensure!(end == pages.end || logged.ranges == room, "{logged:?} stopped with room left");
            let mut reported = 0;
            let mut free = next as u64;
            for range in &ranges[..logged.ranges] {
                let after = range.pgoff + range.nr_pages;
                ensure!(
                    range.nr_pages > 0 && range.pgoff >= free && after <= end as u64,
                    "{range:?} is not in {free}..{end}"
                );
                report.pages.extend(range.pgoff as usize..after as usize);
                reported += range.nr_pages;
                free = after;
            }
            equal!(logged.dirty, reported);
            report.held += logged.held;
            next = end;
        }
        Ok(report)
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vmem.as_fd()
    }
}

/// What the log of a descriptor says of these pages, as a bitmap. The first one is a multiple of 64.
pub(crate) fn bitmap(fd: impl AsFd, pages: Range<usize>, clean: bool) -> Outcome<Report> {
    // The call writes all of it: that nothing is left of these ones is part of each test.
    let mut bitmap = vec![u64::MAX; pages.len().div_ceil(64)];
    let logged = calls::dirty_bitmap(fd.as_fd(), pages.start as u64, pages.len() as u64, clean, &mut bitmap);
    logged.error.map_or(Ok(()), Err)?;
    equal!(logged.done, pages.len() as u64);
    let set = |index: &usize| (bitmap[index / 64] >> (index % 64)) & 1 == 1;
    ensure!(
        !(pages.len()..bitmap.len() * 64).any(|index| set(&index)),
        "a bit after the last page is set"
    );
    let found: Vec<_> = (0..pages.len()).filter(set).map(|index| pages.start + index).collect();
    equal!(logged.dirty, found.len() as u64);
    Ok(Report {
        pages: found,
        held: logged.held,
    })
}

/// Pages in ascending order, in few words.
pub(crate) fn runs<'a>(pages: impl IntoIterator<Item = &'a usize>) -> String {
    const SHOWN: usize = 12;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *page => *last = *page,
            _ => runs.push((*page, *page)),
        }
    }
    let shown = runs.iter().take(SHOWN).map(|(first, last)| match last - first {
        0 => format!("{first}"),
        _ => format!("{first}-{last}"),
    });
    let rest = if runs.len() > SHOWN { ", ..." } else { "" };
    format!("[{}{rest}]", shown.collect::<Vec<_>>().join(", "))
}

/// Where a page is in a file.
pub(crate) fn page_bytes(page: usize) -> Range<usize> {
    page * PAGE_SIZE..(page + 1) * PAGE_SIZE
}
