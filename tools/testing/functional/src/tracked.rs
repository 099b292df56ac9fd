// SPDX-License-Identifier: GPL-2.0-or-later
//! Shared memory that is tracked: what the tests of the write side begin with.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmem::PAGE_SIZE;
use vmem_functional_sys::{Area, AreaBuilder, drain_page_lists};

use crate::adopted::{Adopted, page_bytes, runs};
use crate::failure::{Outcome, ensure};
use crate::image::Image;
use crate::setting::{bytes_of, contents};
use crate::world::wait_until;

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
