// SPDX-License-Identifier: GPL-2.0-or-later
//! What most tests begin with: a region, something to map it with, and contents for its pages.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmem::{Access, Control, Fill, MapHandle, Mapping, PAGE_SIZE, PageIndex, PageRange, Region, RegionBuilder, Sharing};
use vmem_functional_sys::{Area, AreaBuilder};

use crate::failure::{Outcome, ensure, equal};
use crate::program::Program;
use crate::world::wait_until;

/// Words in a page.
pub(crate) const WORDS: usize = PAGE_SIZE / 8;

/// What page `pgoff` shall hold: each word tells the page and itself, and none is zero.
pub(crate) fn contents(pgoff: u64) -> Vec<u64> {
    (0..WORDS as u64)
        .map(|word| ((pgoff + 1) << 32) | 0xabc0_0000 | word)
        .collect()
}

/// Words as bytes.
pub(crate) fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A page by its number.
pub(crate) fn page(pgoff: usize) -> PageIndex {
    PageIndex::new(pgoff as u64).expect("the tests' pages have small numbers")
}

/// `count` pages from `first` on.
pub(crate) fn pages(first: usize, count: usize) -> PageRange {
    PageRange::new(page(first), count as u64).expect("the tests' ranges have pages")
}

/// A region, which the test serves.
pub(crate) struct Setting {
    pub(crate) region: Arc<Region>,
    pub(crate) map: MapHandle,
}

impl Setting {
    /// A region of so many pages, all absent, without a name.
    pub(crate) fn new(pages: usize) -> Outcome<Self> {
        Self::create(RegionBuilder::new((pages * PAGE_SIZE) as u64))
    }

    /// A region as the builder says.
    pub(crate) fn create(builder: RegionBuilder) -> Outcome<Self> {
        let region = builder.create(&Control::open()?)?;
        let map = region.map_handle()?;
        Ok(Self {
            region: Arc::new(region),
            map,
        })
    }

    /// Pages of the region.
    pub(crate) fn pages(&self) -> usize {
        self.region.pages().count() as usize
    }

    /// Maps all of it, shared and writable.
    pub(crate) fn area(&self) -> Outcome<Area> {
        self.area_as(AreaBuilder::default())
    }

    /// Maps all of it.
    pub(crate) fn area_as(&self, builder: AreaBuilder) -> Outcome<Area> {
        Ok(builder.map(&self.map, 0, self.pages())?)
    }

    /// Fills these pages with their contents.
    pub(crate) fn fill(&self, pages: impl IntoIterator<Item = usize>) -> Outcome {
        for pgoff in pages {
            let bytes = bytes_of(&contents(pgoff as u64));
            let changed = self.region.fill(&[Fill::new(page(pgoff), &bytes)?]).complete()?;
            ensure!(changed == 1, "page {pgoff} was not absent");
        }
        Ok(())
    }

    /// Fills all pages with their contents.
    pub(crate) fn fill_all(&self) -> Outcome {
        let bytes: Vec<u8> = (0..self.pages() as u64)
            .flat_map(|pgoff| bytes_of(&contents(pgoff)))
            .collect();
        let changed = self.region.fill(&[Fill::new(page(0), &bytes)?]).complete()?;
        equal!(changed, self.pages() as u64);
        Ok(())
    }

    /// A program that maps the region, reads a page, and returns what it reads.
    pub(crate) fn reader(&self, pgoff: usize) -> Outcome<Program> {
        Program::start(|| Ok(self.area()?.page(pgoff)))
    }

    /// A program that maps the region and finds that these pages hold their contents.
    pub(crate) fn checker(&self, pages: impl IntoIterator<Item = usize>) -> Outcome<Program> {
        Program::start(|| {
            let area = self.area()?;
            for pgoff in pages {
                check_page(&area, pgoff, pgoff)?;
            }
            Ok(vec![])
        })
    }

    /// Waits until so many threads wait for pages.
    pub(crate) fn wait_waiters(&self, waiters: u64) -> Outcome {
        wait_until("as many threads wait as shall", || Ok(self.region.info()?.waiters == waiters))
    }

    /// Takes the one request that there must be.
    pub(crate) fn take_request(&self) -> Outcome<usize> {
        let taken = self.region.next_requests(64)?;
        ensure!(taken.len() == 1, "{} requests and not one: {taken:?}", taken.len());
        Ok(taken[0].get() as usize)
    }

    /// Fails if a page is wanted.
    pub(crate) fn no_request(&self) -> Outcome {
        let taken = self.region.try_next_requests(64)?;
        ensure!(taken.is_empty(), "requests where none should be: {taken:?}");
        Ok(())
    }
}

/// Fails unless page `at` of the area holds the contents of the region's page `pgoff`.
pub(crate) fn check_page(area: &Area, at: usize, pgoff: usize) -> Outcome {
    check_words(&area.page(at), pgoff)
}

/// Fails unless these words are the contents of the region's page `pgoff`.
pub(crate) fn check_words(words: &[u64], pgoff: usize) -> Outcome {
    let expected = contents(pgoff as u64);
    equal!(words.len(), expected.len());
    for (word, (found, expected)) in words.iter().zip(&expected).enumerate() {
        ensure!(
            found == expected,
            "word {word} of page {pgoff} is {found:#x} and not {expected:#x}"
        );
    }
    Ok(())
}

/// Fails unless page `at` of the area is all zero.
pub(crate) fn check_zero(area: &Area, at: usize) -> Outcome {
    let words = area.page(at);
    ensure!(words.iter().all(|word| *word == 0), "page {at} is not zero: {:#x}…", words[0]);
    Ok(())
}

/// Numbers that a test and its programs share, to agree on who is how far.
pub(crate) struct Board(Mapping);

impl Board {
    /// All numbers are zero.
    pub(crate) fn new() -> Outcome<Self> {
        let file = memfd_create("board", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, PAGE_SIZE as u64)?;
        Ok(Self(Mapping::new(&file, 0, PAGE_SIZE, Access::ReadWrite, Sharing::Shared)?))
    }

    /// Writes a number.
    pub(crate) fn set(&self, slot: usize, value: u64) -> Outcome {
        Ok(self.0.write_at(slot * 8, &value.to_ne_bytes())?)
    }

    /// Reads a number.
    pub(crate) fn get(&self, slot: usize) -> Outcome<u64> {
        let mut value = [0; 8];
        self.0.read_at(slot * 8, &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    /// Waits until a number is at least this.
    #[track_caller]
    pub(crate) fn wait(&self, slot: usize, value: u64) -> Outcome {
        wait_until("the other side is so far", || Ok(self.get(slot)? >= value))
    }
}

/// Which pages of an area are in this process's page table now.
pub(crate) fn mapped_pages(area: &Area) -> Outcome<Vec<bool>> {
    Ok(pagemap(area)?.into_iter().map(|entry| entry >> 63 != 0).collect())
}

/// Entries of `/proc/self/pagemap`: bit 63 is that the page is mapped, bit 62 that it is swapped out.
pub(crate) fn pagemap(area: &Area) -> Outcome<Vec<u64>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; area.pages() * 8];
    fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut bytes, (area.address() / PAGE_SIZE * 8) as u64)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|entry| entry.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)))
        .collect())
}

/// Minor faults of this process so far.
pub(crate) fn minor_faults() -> Outcome<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(") ").ok_or("no command in stat")?.1;
    Ok(rest.split_whitespace().nth(7).ok_or("too few fields in stat")?.parse()?)
}

/// The part of `/proc/PID/smaps` about the area at this address, without its first line.
pub(crate) fn smaps(pid: u32, address: usize) -> Outcome<String> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let begin = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin)).skip(1);
    let entry: Vec<&str> = lines
        .by_ref()
        .take_while(|line| line.split_once(':').is_some_and(|(name, _)| !name.contains('-')))
        .collect();
    ensure!(!entry.is_empty(), "nothing is mapped at {address:#x}");
    Ok(entry.join("\n"))
}

/// The `VmFlags` of the area at this address.
pub(crate) fn vm_flags(pid: u32, address: usize) -> Outcome<Vec<String>> {
    let smaps = smaps(pid, address)?;
    let flags = smaps
        .lines()
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .ok_or("no VmFlags")?;
    Ok(flags.split_whitespace().map(str::to_owned).collect())
}

/// Whether a descriptor is closed on exec.
pub(crate) fn close_on_exec(fd: impl AsFd) -> Outcome<bool> {
    Ok(rustix::io::fcntl_getfd(fd)?.contains(rustix::io::FdFlags::CLOEXEC))
}
