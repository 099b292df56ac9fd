// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmem region.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use vmem::{Backing, Control, Region, RegionBuilder};
use vmem_bench_sys::Memory;
use vmem_sys::calls::{self, FillRange, Outcome as Called};
use vmem_sys::{Errno, PAGE_SIZE, vmem_range};

use super::{Peer, map, shmem_file};
use crate::contents::{Contents, POOL};
use crate::failure::{During, Failure, Outcome};

/// How many requests are taken at once.
const BATCH: usize = 256;

/// A vmem region.
pub(crate) struct RegionPeer {
    /// The region, whose descriptor waits.
    pub(crate) region: Region,
    /// The program's mapping of it.
    pub(crate) memory: Memory,
    /// Whether pages that are brought in the background go into the page tables.
    mapped: bool,
}

impl RegionPeer {
    /// A region of so many pages, all absent.
    pub(crate) fn new(pages: u64) -> Outcome<Self> {
        Self::create(RegionBuilder::new(bytes(pages)), false)
    }

    /// One whose pages go into the page tables if they are brought in the background.
    pub(crate) fn mapped(pages: u64) -> Outcome<Self> {
        Self::create(RegionBuilder::new(bytes(pages)), true)
    }

    /// One whose memory is huge pages.
    pub(crate) fn huge(pages: u64) -> Outcome<Self> {
        Self::create(RegionBuilder::new(bytes(pages)).huge(), false)
    }

    /// One whose pages lie in a file in memory. A touch reads `around` of them.
    pub(crate) fn backed(pages: u64, contents: &Contents, around: u32) -> Outcome<Self> {
        let this = Self::new(pages)?;
        let file = shmem_file(pages)?;
        for page in 0..pages {
            let written = file.write_all_at(contents.of(page, 1), bytes(page));
            written.during("write to a memfd")?;
        }
        let backing = Backing {
            file: file.as_fd(),
            offset: 0,
            around,
        };
        this.region.set_backing(this.region.pages(), backing)?;
        Ok(this)
    }

    fn create(builder: RegionBuilder, mapped: bool) -> Outcome<Self> {
        let region = builder.create(&Control::open()?)?;
        region.ready()?;
        // The library waits with poll(), which programs with an event loop need; a thread of its own waits in the call.
        let flags = rustix::fs::fcntl_getfl(&region).during("fcntl(F_GETFL)")?;
        rustix::fs::fcntl_setfl(&region, flags - OFlags::NONBLOCK).during("fcntl(F_SETFL)")?;
        let memory = map(&region.map_handle()?, region.pages().count())?;
        Ok(Self { region, memory, mapped })
    }

    /// Brings all pages.
    pub(crate) fn fill_all(&self, contents: &Contents) -> Outcome {
        let pages = self.region.pages().count();
        (0..pages).step_by(POOL).try_for_each(|first| {
            let run = (pages - first).min(POOL as u64);
            self.bring_run(first, run as usize, contents)
        })
    }

    fn fill(&self, ranges: &[FillRange<'_>]) -> Outcome {
        complete(calls::fill_pages(self.region.as_fd(), ranges), "FILL_PAGES")
    }

    /// Puts pages into the page tables, if that is wanted.
    fn populate(&self, ranges: &[vmem_range]) -> Outcome {
        if !self.mapped {
            return Ok(());
        }
        complete(calls::make_pages_present(self.region.as_fd(), ranges), "MAKE_PAGES_PRESENT")
    }
}

fn bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

fn complete(called: Called, what: &'static str) -> Outcome {
    match called.error {
        None => Ok(()),
        Some(source) => Err(Failure::System { what, source }),
    }
}

fn range(page: u64, contents: &Contents, pages: usize) -> Outcome<FillRange<'_>> {
    FillRange::new(page, contents.of(page, pages))
        .ok_or(Errno::INVAL)
        .during("FILL_PAGES")
}

impl Peer for RegionPeer {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn take(&self, pages: &mut Vec<u64>) -> Outcome {
        pages.resize(BATCH, 0);
        let taken = calls::get_page_request(self.region.as_fd(), pages).during("GET_PAGE_REQUEST")?;
        pages.truncate(taken);
        Ok(())
    }

    fn bring(&self, pages: &[u64], contents: &Contents) -> Outcome {
        let ranges: Outcome<Vec<_>> = pages.iter().map(|page| range(*page, contents, 1)).collect();
        self.fill(&ranges?)
    }

    fn bring_run(&self, first: u64, pages: usize, contents: &Contents) -> Outcome {
        self.fill(&[range(first, contents, pages)?])
    }

    fn finish(&self) -> Outcome {
        let pages = self.region.pages();
        self.populate(&[vmem_range {
            pgoff: pages.first().get(),
            nr_pages: pages.count(),
        }])
    }

    fn requests(&self) -> Option<u64> {
        self.region.info().ok().map(|info| info.requests)
    }
}
