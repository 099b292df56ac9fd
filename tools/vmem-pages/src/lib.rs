// SPDX-License-Identifier: GPL-2.0
//! Pages, runs of pages and sets of pages: pure data, without a call on anything.
//!
//! A [`PageIndex`] is a page's place in a memory, a [`PageRange`] a run of one page or more, and a [`PageSet`] any pages of a run. None of
//! them can name a byte whose offset does not fit in 64 bits.
//!
//! ```
//! use vmem_pages::{PageSet, range};
//!
//! let memory = range(0, 1000).expect("pages");
//! let mut absent = PageSet::all_of(memory);
//! absent.remove(range(10, 2).expect("pages"));
//! let question = absent.take(8, 5, 2); // from page 8 on, five pages, two runs
//! assert_eq!(question, [range(8, 2).expect("pages"), range(12, 3).expect("pages")]);
//! assert_eq!(absent.runs().count(), 2);
//! ```
#![forbid(unsafe_code)]

mod page;
mod range;
mod set;

pub use page::{PAGE_SIZE, PageIndex};
pub use range::{PageRange, end, join, push, range, split};
pub use set::PageSet;
