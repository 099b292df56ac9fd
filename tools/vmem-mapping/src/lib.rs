// SPDX-License-Identifier: GPL-2.0
//! Memory mappings that others write: copied in and out, never borrowed.
//!
//! A [`Mapping`] is memory that another process, a daemon or a device may change at any time. Rust's references promise that it does
//! not, so there are none into it here: [`Mapping::read_at`] and [`Mapping::write_at`] copy.
//!
//! Two things can happen in such a copy that cannot happen with memory of one's own:
//!
//! - it can **wait**: a touch of an absent page of a vmem region returns when the region's daemon has filled it;
//! - it can end the process with **SIGBUS**: when the mapped file has become shorter, or when a page of a region is unreadable, has no
//!   daemon or was not there in time (as the region's creator chose).

mod copy;
mod mapping;

pub use mapping::{Access, Mapping, MappingError, Sharing};

/// Size of a page in bytes: mappings begin at multiples of it in their file.
pub const PAGE_SIZE: usize = 4096;
