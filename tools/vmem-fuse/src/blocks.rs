// SPDX-License-Identifier: GPL-2.0-or-later
//! How much of a backend is no hole.

use std::time::{Duration, Instant};

use vmem_pages::{PAGE_SIZE, PageRange};
use vmem_store::{Image, PageError, PageState};

use crate::error::Error;

/// How long the index is read for this. What was not read by then counts as contents.
const LIMIT: Duration = Duration::from_secs(2);

/// Pages that are looked up at a time: those of a leaf of the index (64 MiB).
const LOOK_UP: u64 = 1 << 14;

/// Pages (16 GiB) after which the image is opened anew, so that what it keeps of the index does not grow with the memory.
const KEPT: u64 = 1 << 22;

/// Bytes of a backend's pages that are no holes. `open` opens the checkpoint. A part of the index that is damaged counts as contents: the rest
/// of the file can still be read.
///
/// # Errors
///
/// [`Error::Away`], and those of `open`.
pub(crate) fn stored(open: impl Fn() -> Result<Image, Error>, backend: usize, pages: u64) -> Result<u64, Error> {
    stored_within(LIMIT, open, backend, pages)
}

fn stored_within(limit: Duration, open: impl Fn() -> Result<Image, Error>, backend: usize, pages: u64) -> Result<u64, Error> {
    let until = Instant::now() + limit;
    let (mut count, mut rest) = (0, PageRange::of_pages(pages));
    while let Some((Some(part), after)) = rest.map(|rest| rest.split_at(KEPT)) {
        let image = open()?;
        let mut left = Some(part);
        while let Some((Some(leaf), after)) = left.map(|left| left.split_at(LOOK_UP)) {
            if Instant::now() >= until {
                return Ok((count + pages - leaf.first().get()) * PAGE_SIZE as u64);
            }
            count += match image.extents(backend, leaf).map_err(PageError::from) {
                Ok(extents) => {
                    let stored = extents.iter().filter(|extent| extent.state != PageState::Zero);
                    stored.map(|extent| extent.pages.count()).sum()
                }
                Err(PageError::Away(error)) => return Err(PageError::Away(error).into()),
                Err(_) => leaf.count(),
            };
            left = after;
        }
        rest = after;
    }
    Ok(count * PAGE_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PAGES, TestStore};

    #[test]
    fn pages_of_zeros_are_not_counted_and_what_was_not_looked_at_is() {
        let test = TestStore::new();
        let open = || test.store.image(&test.name(1)).map_err(|error| PageError::from(error).into());
        assert_eq!(stored(open, 0, PAGES), Ok(33 * PAGE_SIZE as u64));
        assert_eq!(stored(open, 1, 2), Ok(2 * PAGE_SIZE as u64));
        assert_eq!(stored(open, 0, 0), Ok(0));
        let unknown = stored_within(Duration::ZERO, open, 0, PAGES);
        assert_eq!(unknown, Ok(PAGES * PAGE_SIZE as u64));
    }
}
