// SPDX-License-Identifier: GPL-2.0-or-later
//! Ranges of pages as Python has them: pairs of an offset and a length in bytes.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vmem::{PAGE_SIZE, PageRange};

/// The pairs of ranges.
pub(crate) fn pairs(ranges: impl IntoIterator<Item = PageRange>) -> Vec<(u64, u64)> {
    ranges
        .into_iter()
        .map(|range| (range.bytes().start, range.bytes().end - range.bytes().start))
        .collect()
}

/// The whole pages of `length` bytes at `offset`, up to the end of `all` if there is no length. `None` if these are no bytes.
pub(crate) fn whole_pages(all: PageRange, offset: u64, length: Option<u64>) -> PyResult<Option<PageRange>> {
    let end = match length {
        Some(length) => offset.checked_add(length),
        None => Some(all.bytes().end),
    };
    let page = PAGE_SIZE as u64;
    match end {
        Some(end) if offset <= end && end <= all.bytes().end && offset % page == 0 && end % page == 0 => {
            Ok(PageRange::from_pgoff(offset / page, (end - offset) / page))
        }
        _ => Err(PyValueError::new_err(format!(
            "the range is not whole pages of {PAGE_SIZE} bytes inside of the memory, which has {} bytes",
            all.bytes().end
        ))),
    }
}

/// A length in bytes, if `length` bytes at `offset` are inside of `size` bytes.
pub(crate) fn inside(size: u64, offset: u64, length: u64) -> PyResult<usize> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(usize::try_from(length)?),
        _ => Err(PyValueError::new_err(format!(
            "{length} bytes at {offset} are not inside of the memory, which has {size} bytes"
        ))),
    }
}
