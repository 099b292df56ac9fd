// SPDX-License-Identifier: GPL-2.0-or-later
//! A file that is open.

use std::sync::Arc;

use vmem_store::{Image, PageError};
use vmem_store_source::Location;

use crate::error::Error;

/// `whence` of lseek(2), as the kernel passes it on.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// An open file. A backend has its checkpoint under a lease.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// For messages: the checkpoint and the file.
    pub(crate) label: String,
    pub(crate) contents: OpenContents,
}

#[derive(Debug)]
pub(crate) enum OpenContents {
    /// Bytes that are here.
    Text(Vec<u8>),
    /// A backend of a checkpoint.
    Backend {
        image: Arc<Image>,
        location: Location,
        number: usize,
        bytes: u64,
    },
}

impl OpenFile {
    fn bytes(&self) -> u64 {
        match &self.contents {
            OpenContents::Text(text) => text.len() as u64,
            OpenContents::Backend { bytes, .. } => *bytes,
        }
    }

    /// All bytes that were asked for and that the file has. The kernel would fill the rest of a short answer with zeros.
    pub(crate) fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
        let left = self.bytes().saturating_sub(offset);
        let count = left.min(size.into()) as usize;
        match &self.contents {
            OpenContents::Text(text) => {
                let part = text.get(offset as usize..).and_then(|rest| rest.get(..count));
                Ok(part.unwrap_or_default().to_vec())
            }
            OpenContents::Backend {
                image, location, number, ..
            } => {
                let mut out = vec![0; count];
                match location.read_there(|| image.read_at(*number, offset, &mut out))? {
                    read if read == count => Ok(out),
                    read => Err(Error::Lost(format!("{read} bytes are there, and not {count}"))),
                }
            }
        }
    }

    /// lseek(2) for data and holes; the kernel itself does the other kinds.
    pub(crate) fn seek(&self, offset: i64, whence: i32) -> Result<i64, Error> {
        let offset = u64::try_from(offset).map_err(|_| Error::NothingThere)?;
        let found = match (&self.contents, whence) {
            (_, SEEK_DATA | SEEK_HOLE) if offset >= self.bytes() => None,
            (OpenContents::Text(_), SEEK_DATA) => Some(offset),
            (OpenContents::Text(text), SEEK_HOLE) => Some(text.len() as u64),
            (
                OpenContents::Backend {
                    image, location, number, ..
                },
                SEEK_DATA | SEEK_HOLE,
            ) => location.read_there(|| {
                let found = match whence {
                    SEEK_DATA => image.seek_data(*number, offset),
                    _ => image.seek_hole(*number, offset),
                };
                found.map_err(PageError::from)
            })?,
            _ => return Err(Error::Seek),
        };
        found.and_then(|found| found.try_into().ok()).ok_or(Error::NothingThere)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vmem_pages::PAGE_SIZE;

    use super::*;
    use crate::testing::{BLOB, PAGES, TestStore, contents};

    const PAGE: u64 = PAGE_SIZE as u64;

    fn backend(test: &TestStore, number: usize, bytes: u64) -> OpenFile {
        let image = test.store.image(&test.name(1)).expect("a checkpoint");
        OpenFile {
            label: "a file".to_owned(),
            contents: OpenContents::Backend {
                image: Arc::new(image),
                location: test.location.clone(),
                number,
                bytes,
            },
        }
    }

    #[test]
    fn answer_is_short_only_at_the_end() {
        let test = TestStore::new();
        let file = backend(&test, 0, PAGES * PAGE);
        assert_eq!(file.read(0, 16 * PAGE_SIZE as u32), Ok(contents()));
        assert_eq!(file.read(16 * PAGE, 9000), Ok(vec![0; 9000]));
        assert_eq!(file.read(PAGES * PAGE - 100, 9000).map(|bytes| bytes.len()), Ok(100));
        for beyond in [PAGES * PAGE, u64::MAX] {
            assert_eq!(file.read(beyond, 9000), Ok(vec![]));
        }
        assert_eq!(backend(&test, 1, BLOB).read(4096, 4096), Ok(vec![7; 904]));
        let text = OpenFile {
            label: String::new(),
            contents: OpenContents::Text(b"text".to_vec()),
        };
        assert_eq!(text.read(1, 2), Ok(b"ex".to_vec()));
        assert_eq!((text.read(2, 9), text.read(9, 9)), (Ok(b"xt".to_vec()), Ok(vec![])));
    }

    #[test]
    fn unreadable_page_is_an_error_and_not_a_hole() {
        let test = TestStore::new();
        let file = backend(&test, 0, PAGES * PAGE);
        assert!(matches!(file.read(999 * PAGE, 8192), Err(Error::Lost(_))));
        assert_eq!(file.read(1001 * PAGE, 8192), Ok(vec![0; 8192]));
        for (offset, whence, found) in [
            (0, SEEK_DATA, Ok(0)),
            (0, SEEK_HOLE, Ok(16 * PAGE)),
            (16 * PAGE + 5, SEEK_DATA, Ok(1000 * PAGE)),
            (1000 * PAGE, SEEK_HOLE, Ok(1001 * PAGE)),
            (1001 * PAGE, SEEK_DATA, Ok((PAGES - 16) * PAGE)),
            (PAGES * PAGE - 1, SEEK_HOLE, Ok(PAGES * PAGE)),
            (PAGES * PAGE, SEEK_HOLE, Err(Error::NothingThere)),
            (0, 0, Err(Error::Seek)),
        ] {
            let found = found.map(|found| found as i64);
            assert_eq!(file.seek(offset as i64, whence), found, "{offset} {whence}");
        }
        assert_eq!(file.seek(-1, SEEK_DATA), Err(Error::NothingThere));
    }

    #[test]
    fn damaged_page_is_lost_and_a_store_that_is_not_there_is_away() {
        let test = TestStore::new();
        let pack = vmem_store::testing::packs(&test.path()).remove(0);
        let mut bytes = fs::read(&pack).expect("a pack");
        bytes[40] ^= 1;
        fs::remove_file(&pack).expect("a pack");
        fs::write(&pack, bytes).expect("a pack");
        let file = backend(&test, 0, PAGES * PAGE);
        assert!(matches!(file.read(0, 4096), Err(Error::Lost(_))));
        let file = backend(&test, 0, PAGES * PAGE);
        fs::rename(test.path(), test.directory.path().join("away")).expect("a directory");
        assert!(matches!(file.read(0, 4096), Err(Error::Away(_))));
    }
}
