// SPDX-License-Identifier: GPL-2.0
//! Shared memory that is adopted, and its log: what the tests of the write side begin with.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vmem::{Control, PAGE_SIZE};
use vmem_functional_sys::{Area, AreaBuilder, drain_page_lists};
use vmem_sys::{calls, vmem_range, vmem_track, vmem_tracking};

use crate::failure::{Outcome, ensure, equal};
use crate::image::Image;
use crate::setting::{bytes_of, contents};
use crate::world::wait_until;

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
        calls::track(self.as_fd())
    }

    /// Ends it.
    pub(crate) fn untrack(&self) -> Result<(), Errno> {
        calls::untrack(self.as_fd())
    }

    /// Figures of the log.
    pub(crate) fn tracking(&self) -> Result<vmem_tracking, Errno> {
        calls::get_tracking(self.as_fd())
    }

    /// The log of these pages, as a bitmap. The first one is a multiple of 64.
    pub(crate) fn bitmap(&self, pages: Range<usize>, clean: bool) -> Outcome<Report> {
        // The call writes all of it: that nothing is left of these ones is part of each test.
        let mut bitmap = vec![u64::MAX; pages.len().div_ceil(64)];
        let logged = calls::dirty_bitmap(self.as_fd(), pages.start as u64, pages.len() as u64, clean, &mut bitmap);
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

/// A memfd of so many pages, none of which is there.
pub(crate) fn memfd(pages: usize) -> Outcome<File> {
    let file = memfd_create("tracked", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, (pages * PAGE_SIZE) as u64)?;
    Ok(OwnedFd::into(file))
}

/// Writes the contents of all pages into a file.
pub(crate) fn fill(file: &File, pages: usize) -> Outcome {
    let bytes: Vec<u8> = (0..pages as u64).flat_map(|pgoff| bytes_of(&contents(pgoff))).collect();
    Ok(file.write_all_at(&bytes, 0)?)
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

/// The line of a process's mapping at this address in `/proc/PID/maps`.
pub(crate) fn maps_line(pid: i32, address: usize) -> Outcome<String> {
    let begin = format!("{address:x}-");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.starts_with(&begin));
    Ok(line.ok_or(format!("nothing is mapped at {address:#x}"))?.to_owned())
}

/// Memory that is tracked: a file, and a mapping of it that is older than the log, with every page in the page table and written.
pub(crate) struct Tracked {
    /// The file.
    pub(crate) file: File,
    /// The mapping.
    pub(crate) area: Area,
    /// The log.
    pub(crate) log: Adopted,
}

impl Tracked {
    /// So many pages with their contents.
    pub(crate) fn new(pages: usize) -> Outcome<Self> {
        let file = memfd(pages)?;
        let area = AreaBuilder::default().map(&file, 0, pages)?;
        Self::begin(file, area)
    }

    /// Fills the file through its mapping, and then begins to track it.
    pub(crate) fn begin(file: File, area: Area) -> Outcome<Self> {
        for page in 0..area.pages() {
            area.write_page(page, &contents(page as u64));
        }
        let log = Adopted::new(&file)?;
        log.track()?;
        Ok(Self { file, area, log })
    }

    /// How many pages.
    pub(crate) fn pages(&self) -> usize {
        self.area.pages()
    }

    /// Another mapping of all of it, made now.
    pub(crate) fn map(&self) -> Outcome<Area> {
        Ok(AreaBuilder::default().map(&self.file, 0, self.pages())?)
    }

    /// What the memory holds, by a call that maps nothing.
    pub(crate) fn bytes(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; self.pages() * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Cleans the log until nothing is in it. Pages that the kernel has just allocated or moved are held until every processor has let go of
    /// them.
    pub(crate) fn settle(&self) -> Outcome {
        wait_until("no page is held", || {
            drain_page_lists()?;
            Ok(self.log.bitmap(0..self.pages(), true)?.held == 0)
        })?;
        self.check_log([])
    }

    /// Fails unless these pages are in the log and no others.
    pub(crate) fn check_log(&self, expected: impl IntoIterator<Item = usize>) -> Outcome {
        let expected: BTreeSet<_> = expected.into_iter().collect();
        let found = self.log.bitmap(0..self.pages(), false)?.pages;
        ensure!(
            found.iter().eq(&expected),
            "the log has the pages {} and not {}",
            runs(&found),
            runs(&expected)
        );
        Ok(())
    }

    /// Fails unless what `write` does changes exactly these pages, and brings exactly these into the log; and unless a snapshot that is taken
    /// before that has what was there.
    pub(crate) fn logs_once(&self, pages: impl IntoIterator<Item = usize>, write: impl FnOnce() -> Outcome) -> Outcome {
        self.logs_and_keeps(pages, true, write)
    }

    fn logs_and_keeps(&self, pages: impl IntoIterator<Item = usize>, keep: bool, write: impl FnOnce() -> Outcome) -> Outcome {
        let expected: BTreeSet<_> = pages.into_iter().collect();
        self.settle()?;
        let before = self.bytes()?;
        let image = keep.then(|| Image::take(&self.log, 0, 0)).transpose()?;
        write()?;
        if let Some(image) = image {
            image.check(&before)?;
        }
        let after = self.bytes()?;
        let changed: BTreeSet<_> = (0..self.pages())
            .filter(|page| before[page_bytes(*page)] != after[page_bytes(*page)])
            .collect();
        ensure!(
            changed == expected,
            "the pages {} were changed and not {}",
            runs(&changed),
            runs(&expected)
        );
        self.check_log(expected.iter().copied())?;
        let cleaned = self.log.ranges(0..self.pages(), true, 64)?.pages;
        ensure!(
            cleaned.iter().eq(&expected),
            "the pages {} were cleaned and not {}",
            runs(&cleaned),
            runs(&expected)
        );
        Ok(())
    }

    /// [`Tracked::logs_once`], three times: the second time `write` meets pages that were cleaned after it had written them, and the third
    /// time there is a snapshot. It is told which time it is.
    pub(crate) fn logs<I>(&self, pages: I, mut write: impl FnMut(u8) -> Outcome) -> Outcome
    where
        I: IntoIterator<Item = usize> + Clone,
    {
        for time in [1, 2, 3] {
            self.logs_and_keeps(pages.clone(), time == 3, || write(time))
                .map_err(|failure| format!("time {time}: {}", failure.text()))?;
        }
        Ok(())
    }

    /// Fails unless what `act` does changes nothing, and brings nothing into the log.
    pub(crate) fn logs_nothing(&self, act: impl FnOnce() -> Outcome) -> Outcome {
        self.settle()?;
        let before = self.bytes()?;
        act()?;
        ensure!(self.bytes()? == before, "the contents were changed");
        self.check_log([])
    }
}

/// Where a page is in a file.
pub(crate) fn page_bytes(page: usize) -> Range<usize> {
    page * PAGE_SIZE..(page + 1) * PAGE_SIZE
}
