// SPDX-License-Identifier: GPL-2.0-or-later
//! The region that an engine fills.
//!
//! [`Sink`] has the calls of a [`Region`] that the engine uses, so that tests can run the engine on private memory, without the module.

use std::os::fd::{AsFd, BorrowedFd};

use vmem::{Error, Fill, PageIndex, PageRange, Progress, Region};

/// A region, as the engine sees it.
pub trait Sink: Send + Sync {
    /// A descriptor that is readable when there are requests.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Takes up to `max` requests. Each is given once. [`Error::Plain`] once the region is plain memory.
    fn take(&self, max: usize) -> Result<Vec<PageIndex>, Error>;
    /// Fills those of the pages that are absent.
    fn fill(&self, fills: &[(PageIndex, &[u8])]) -> Progress;
    /// Puts contents of absent pages where [`mark_cached`](Self::mark_cached) finds them. They stay absent.
    fn stage(&self, fills: &[(PageIndex, &[u8])]) -> Progress;
    /// Marks staged pages as present.
    fn mark_cached(&self, ranges: &[PageRange]) -> Progress;
    /// Marks pages as zero.
    fn mark_zero(&self, ranges: &[PageRange]) -> Progress;
    /// Marks pages as unreadable.
    fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress;
    /// Puts present pages into the page tables of programs that map them.
    fn make_present(&self, ranges: &[PageRange]) -> Progress;
    /// Copies out what is in pages. What is in an absent page means nothing. `to` is as long as the pages are.
    fn read(&self, pages: PageRange, to: &mut [u8]) -> Result<(), Error>;
    /// Turns the region into plain memory.
    fn make_plain(&self) -> Result<(), Error>;
    /// Calls `each` with every run of those of `pages` that are absent, unreadable ones among them.
    fn absent(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Error>;
    /// The current state.
    fn state(&self) -> Result<RegionState, Error>;
}

/// The state of a region at one moment.
#[derive(Clone, Copy, Debug)]
pub struct RegionState {
    /// Pages present.
    pub present: u64,
    /// Pages marked unreadable.
    pub unreadable: u64,
    /// Pages that the kernel has read from a file by itself, since the region was created.
    pub backed: u64,
    /// Mappings that are not plain memory yet.
    pub mappings: u64,
    /// Whether the region has become plain memory, except for those mappings.
    pub plain: bool,
}

impl Sink for Region {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn take(&self, max: usize) -> Result<Vec<PageIndex>, Error> {
        self.try_next_requests(max)
    }

    fn fill(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        with(fills, |fills| Region::fill(self, fills))
    }

    fn stage(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        with(fills, |fills| Region::stage(self, fills))
    }

    fn mark_cached(&self, ranges: &[PageRange]) -> Progress {
        Region::mark_cached(self, ranges)
    }

    fn mark_zero(&self, ranges: &[PageRange]) -> Progress {
        Region::mark_zero(self, ranges)
    }

    fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress {
        Region::mark_unreadable(self, ranges)
    }

    fn make_present(&self, ranges: &[PageRange]) -> Progress {
        self.make_pages_present(ranges)
    }

    fn read(&self, pages: PageRange, to: &mut [u8]) -> Result<(), Error> {
        self.read_staging(pages, to)
    }

    fn make_plain(&self) -> Result<(), Error> {
        self.make_vma_anonymous()
    }

    fn absent(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Error> {
        self.present_map_around(pages)?.absent_of(pages).for_each(each);
        Ok(())
    }

    fn state(&self) -> Result<RegionState, Error> {
        let info = self.info()?;
        Ok(RegionState {
            present: info.present,
            unreadable: info.unreadable,
            backed: info.backed,
            mappings: info.mappings,
            plain: info.plain,
        })
    }
}

/// Makes a call with contents of pages, which must be whole pages.
fn with(fills: &[(PageIndex, &[u8])], call: impl FnOnce(&[Fill<'_>]) -> Progress) -> Progress {
    let fills: Result<Vec<_>, _> = fills.iter().map(|(first, contents)| Fill::new(*first, contents)).collect();
    match fills {
        Ok(fills) => call(&fills),
        Err(error) => Progress {
            ranges: 0,
            pages: 0,
            error: Some(error),
        },
    }
}
