// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages, ranges of pages and sets of pages: pure data, without system calls.
//!
//! A [`PageIndex`] is the number of a page in a memory, a [`PageRange`] one page or more in a row, and a [`PageSet`] any pages of a range.
//! The offset in bytes of each page, and of its end, fits in 64 bits.
//!
//! ```
//! use vmem_pages::{PageRange, PageSet};
//!
//! let range = |first, count| PageRange::from_pgoff(first, count).expect("pages");
//! let mut absent = PageSet::all_of(range(0, 1000));
//! absent.remove(range(10, 2));
//! let wanted = absent.take(8, 5, 2); // from page 8 on, at most five pages in at most two runs
//! assert_eq!(wanted, [range(8, 2), range(12, 3)]);
//! assert_eq!(absent.runs().count(), 2);
//! ```
#![forbid(unsafe_code)]

mod page;
mod range;
mod set;

pub use page::{PAGE_SIZE, PageIndex};
pub use range::PageRange;
pub use set::PageSet;
