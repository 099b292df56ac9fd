// SPDX-License-Identifier: GPL-2.0-or-later
//! A backend as bytes: what a program reads that wants a file or a disk.

use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};

use super::{Image, PageState};
use crate::error::{Error, PageError};
use crate::leaf::LEAF_PAGES;

impl Image {
    /// Reads bytes from `offset` on, as many as `out` has room for and the backend has, and returns their number. Every page is verified.
    ///
    /// # Errors
    ///
    /// The first page that fails. What `out` has then is of no use: an answer in part could be taken for the end of the backend.
    pub fn read_at(&self, backend: usize, offset: u64, out: &mut [u8]) -> Result<usize, PageError> {
        let bytes = self.backend(backend)?.bytes;
        let count = out.len().min(bytes.saturating_sub(offset).try_into().unwrap_or(usize::MAX));
        let mut rest = out.get_mut(..count).unwrap_or_default();
        let mut at = offset;
        let mut whole = [0; PAGE_SIZE];
        while !rest.is_empty() {
            let page = PageIndex::holding(at).ok_or_else(|| self.too_far(at))?;
            let within = (at - page.offset()) as usize;
            let (part, after) = rest.split_at_mut((PAGE_SIZE - within).min(rest.len()));
            match part.first_chunk_mut::<PAGE_SIZE>() {
                Some(page_of_out) => self.read_page(backend, page, page_of_out)?,
                None => {
                    self.read_page(backend, page, &mut whole)?;
                    part.copy_from_slice(&whole[within..within + part.len()]);
                }
            }
            at += part.len() as u64;
            rest = after;
        }
        Ok(count)
    }

    /// The first offset from `offset` on that is not in a hole: `SEEK_DATA` of lseek(2). `None` if only a hole follows, or nothing. Pages of
    /// zeros are holes; pages that cannot be read are none.
    pub fn seek_data(&self, backend: usize, offset: u64) -> Result<Option<u64>, Error> {
        self.seek(backend, offset, |state| state != PageState::Zero)
    }

    /// The first offset from `offset` on that is in a hole, or the end of the backend: `SEEK_HOLE` of lseek(2). `None` after the end.
    pub fn seek_hole(&self, backend: usize, offset: u64) -> Result<Option<u64>, Error> {
        let bytes = self.backend(backend)?.bytes;
        let found = self.seek(backend, offset, |state| state == PageState::Zero)?;
        Ok(found.or((offset < bytes).then_some(bytes)))
    }

    fn seek(&self, backend: usize, offset: u64, wanted: impl Fn(PageState) -> bool) -> Result<Option<u64>, Error> {
        let known = self.backend(backend)?;
        let (bytes, pages) = (known.bytes, known.pages());
        if offset >= bytes {
            return Ok(None);
        }
        let mut at = PageIndex::holding(offset).ok_or_else(|| self.too_far(offset))?.get();
        while at < pages {
            let count = (LEAF_PAGES - at % LEAF_PAGES).min(pages - at);
            let leaf = PageRange::from_pgoff(at, count).ok_or_else(|| self.too_far(offset))?;
            let extents = self.extents(backend, leaf)?;
            if let Some(found) = extents.into_iter().find(|extent| wanted(extent.state)) {
                return Ok(Some(found.pages.bytes().start.max(offset)));
            }
            at += count;
        }
        Ok(None)
    }

    fn too_far(&self, offset: u64) -> Error {
        Error::Range {
            backend: self.object_name(),
            what: format!("no page has the offset {offset}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::objects::Memory;
    use crate::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};

    const PAGE: u64 = PAGE_SIZE as u64;

    fn page(pgoff: u64) -> PageIndex {
        PageIndex::new(pgoff).unwrap()
    }

    /// A memory of 2000 pages, of which 3, 4 and 1500 have contents and 1600 could not be read; and a blob of 5000 bytes.
    fn image() -> (Arc<Memory>, Image) {
        let objects = Arc::new(Memory::new());
        let store = Store::init(objects.clone(), &InitOptions::default(), OpenOptions::default()).unwrap();
        let guest = "guest0".parse().unwrap();
        let memories = [("ram".to_owned(), 2000 * PAGE)];
        let writer = store.begin(&guest, None, &memories, &WriteOptions::default()).unwrap();
        let contents: Vec<u8> = (0..3 * PAGE_SIZE).map(|at| (at / 16) as u8 | 1).collect();
        writer.put_pages(0, page(3), &contents[..2 * PAGE_SIZE]).unwrap();
        writer.put_pages(0, page(1500), &contents[2 * PAGE_SIZE..]).unwrap();
        for (first, count) in [(0, 3), (5, 1495), (1501, 99), (1601, 399)] {
            writer.put_zero(0, PageRange::from_pgoff(first, count).unwrap()).unwrap();
        }
        writer.put_unreadable(0, page(1600).into()).unwrap();
        writer.put_blob("device-state", &mut &contents[..5000], 5000).unwrap();
        let checkpoint = writer.commit(CommitOptions::default()).unwrap().checkpoint;
        (objects, store.image(&checkpoint).unwrap())
    }

    #[test]
    fn bytes_are_read_from_any_offset_and_end_with_the_backend() {
        let (_objects, image) = image();
        let mut all = vec![0; 1600 * PAGE_SIZE];
        assert_eq!(image.read_at(0, 0, &mut all).unwrap(), all.len());
        assert!(all[3 * PAGE_SIZE..5 * PAGE_SIZE].iter().all(|byte| byte & 1 == 1));
        assert!(all[5 * PAGE_SIZE..1500 * PAGE_SIZE].iter().all(|byte| *byte == 0));
        for (offset, count) in [
            (0, 1),
            (3 * PAGE - 1, 2),
            (3 * PAGE + 5, 9000),
            (4 * PAGE, 4096),
            (1500 * PAGE + 7, 100),
        ] {
            let mut some = vec![0xaa; count];
            assert_eq!(image.read_at(0, offset, &mut some).unwrap(), count);
            assert_eq!(some, all[offset as usize..offset as usize + count], "{offset}");
        }
        let mut end = vec![0xaa; 100];
        assert_eq!(image.read_at(1, 4950, &mut end).unwrap(), 50);
        assert_eq!(image.read_at(1, 5000, &mut end).unwrap(), 0);
        assert_eq!(image.read_at(1, u64::MAX, &mut end).unwrap(), 0);
    }

    #[test]
    fn page_that_fails_fails_the_whole_read() {
        let (_objects, image) = image();
        let mut some = vec![0; 3 * PAGE_SIZE];
        assert!(matches!(image.read_at(0, 1599 * PAGE, &mut some), Err(PageError::Unreadable)));
        let part = image.read_at(0, 1600 * PAGE + 9, &mut some[..100]);
        assert!(matches!(part, Err(PageError::Unreadable)), "{part:?}");
        assert_eq!(image.read_at(0, 1601 * PAGE, &mut some).unwrap(), some.len());
    }

    #[test]
    fn holes_are_pages_of_zeros_and_nothing_else() {
        let (_objects, image) = image();
        for (offset, data, hole) in [
            (0, Some(3 * PAGE), Some(0)),
            (2 * PAGE + 9, Some(3 * PAGE), Some(2 * PAGE + 9)),
            (3 * PAGE + 9, Some(3 * PAGE + 9), Some(5 * PAGE)),
            (5 * PAGE, Some(1500 * PAGE), Some(5 * PAGE)),
            (1501 * PAGE, Some(1600 * PAGE), Some(1501 * PAGE)),
            (1600 * PAGE, Some(1600 * PAGE), Some(1601 * PAGE)),
            (1601 * PAGE, None, Some(1601 * PAGE)),
            (2000 * PAGE, None, None),
            (u64::MAX, None, None),
        ] {
            assert_eq!(image.seek_data(0, offset).unwrap(), data, "{offset}");
            assert_eq!(image.seek_hole(0, offset).unwrap(), hole, "{offset}");
        }
        // All of the blob has contents, and its end counts as a hole.
        assert_eq!(image.seek_hole(1, 10).unwrap(), Some(5000));
    }
}
