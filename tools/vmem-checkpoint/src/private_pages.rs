// SPDX-License-Identifier: GPL-2.0-or-later
//! The pages that a clone has for itself, copied while its guest stands still.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vmem::{PAGE_SIZE, PageIndex, PageRange, PageSet, available_memory};
use vmem_store::Image;

use crate::clone_memory::CloneMemory;
use crate::error::Error;
use crate::pages::{bytes_of, count};
use crate::write;

/// Copies of pages, in their order.
pub(crate) struct PrivatePages {
    /// Which pages.
    pub(crate) set: PageSet,
    /// Runs of them, each with its place in the contents.
    runs: Vec<(PageRange, usize)>,
    contents: Vec<u8>,
}

impl PrivatePages {
    fn copy(from: &File, address: u64, set: PageSet) -> Result<Self, Error> {
        let mut contents = vec![0; bytes_of(count(&set)) as usize];
        let (mut runs, mut at) = (Vec::new(), 0);
        for run in set.runs() {
            let bytes = run.bytes();
            let end = at + (bytes.end - bytes.start) as usize;
            let part = &mut contents[at..end];
            from.read_exact_at(part, address + bytes.start)
                .map_err(vmem_cli::Error::call("cannot read the clone's memory"))?;
            runs.push((run, at));
            at = end;
        }
        Ok(Self { set, runs, contents })
    }

    /// The contents of a page, if it is one of these.
    fn page(&self, page: PageIndex) -> Option<&[u8]> {
        let after = self.runs.partition_point(|(run, _)| run.first() <= page);
        let (run, at) = self.runs.get(after.checked_sub(1)?)?;
        let number = page.get() - run.first().get();
        let begin = at + (number < run.count()).then(|| bytes_of(number))? as usize;
        self.contents.get(begin..begin + PAGE_SIZE)
    }
}

/// Copies the pages of each backend that the clone has for itself. `limit` is the most bytes; 0 is what the host has to spare.
///
/// # Errors
///
/// There are more, and none is copied; a page cannot be read.
pub(crate) fn copy(memory: &CloneMemory, limit: u64) -> Result<Vec<PrivatePages>, Error> {
    let sets = memory.private()?;
    check(sets.iter().map(count).sum(), limit)?;
    let copies = memory.memories.iter().zip(sets);
    copies
        .map(|(backend, set)| PrivatePages::copy(&memory.contents, backend.address, set))
        .collect()
}

/// Refuses more pages than there may be copies of.
pub(crate) fn check(pages: u64, limit: u64) -> Result<(), Error> {
    let bytes = bytes_of(pages);
    if limit != 0 && bytes > limit {
        return Err(Error::TooManyPrivate { bytes, limit });
    }
    // Without a number from the host, the copy itself shows whether there is room.
    match available_memory() {
        Ok(limit) if bytes > limit => Err(Error::TooManyPrivate { bytes, limit }),
        _ => Ok(()),
    }
}

/// A memory of a clone at one instant, as far as it may differ from the parent.
pub(crate) struct CloneImage {
    pub(crate) private: PrivatePages,
    /// All pages that are to be written: also those that the parent has otherwise than the base, and the clone has as the base.
    pub(crate) set: PageSet,
    /// The base's checkpoint, and the number of the memory in it.
    pub(crate) base: Arc<Image>,
    pub(crate) backend: usize,
}

impl write::Image for CloneImage {
    fn data(&self) -> Result<Vec<PageRange>, Error> {
        Ok(self.set.runs().collect())
    }

    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), Error> {
        for (number, to) in to.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let page = PageIndex::new(offset / PAGE_SIZE as u64 + number as u64);
            let page = page.ok_or_else(|| Error::other("there is no such page"))?;
            match self.private.page(page) {
                Some(contents) => to.copy_from_slice(contents),
                None => {
                    let mut contents = [0; PAGE_SIZE];
                    self.base
                        .read_page(self.backend, page, &mut contents)
                        .map_err(vmem_cli::Error::call(format!(
                            "cannot read page {} of checkpoint {}",
                            page.get(),
                            self.base.manifest().checkpoint
                        )))?;
                    to.copy_from_slice(&contents);
                }
            }
        }
        Ok(())
    }

    fn skip(&self, _pages: PageRange) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn copied_pages_are_found_by_their_numbers_and_no_others() {
        let mut file = tempfile::tempfile().expect("a file");
        for page in 0..20_u8 {
            file.write_all(&[page; PAGE_SIZE]).expect("room");
        }
        let range = |first, count| PageRange::from_pgoff(first, count).expect("pages");
        let mut set = PageSet::none_of(range(0, 19));
        for run in [range(0, 1), range(5, 3), range(18, 1)] {
            set.insert(run);
        }
        // The memory begins at the second page of the file.
        let copied = PrivatePages::copy(&file, PAGE_SIZE as u64, set).expect("pages");
        let byte = |page| {
            copied
                .page(PageIndex::new(page).expect("a page"))
                .map(|page| page[PAGE_SIZE - 1])
        };
        let found: Vec<_> = (0..19).filter_map(|page| byte(page).map(|byte| (page, byte))).collect();
        assert_eq!(found, [(0, 1), (5, 6), (6, 7), (7, 8), (18, 19)]);
    }

    #[test]
    fn more_pages_than_copies_are_refused() {
        check(4, 4 * PAGE_SIZE as u64).expect("as many");
        let refused = check(5, 4 * PAGE_SIZE as u64);
        assert!(matches!(refused, Err(Error::TooManyPrivate { .. })), "{refused:?}");
        check(1 << 40, 0).expect_err("no host has so much");
    }
}
