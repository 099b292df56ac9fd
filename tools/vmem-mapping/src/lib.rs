// SPDX-License-Identifier: GPL-2.0-or-later
//! Mappings of memory that other processes write: copied in and out, never borrowed.
//!
//! A [`Mapping`] is memory that another process, a daemon or a device may change at any time. Rust references promise that it does
//! not, so this crate makes none into it: [`Mapping::read_at`] and [`Mapping::write_at`] copy.
//!
//! Such a copy can do two things that a copy of private memory cannot:
//!
//! - it can **wait**: a touch of an absent page of a vmem region returns when the region's daemon has filled the page;
//! - it can raise **SIGBUS**, which ends the process: if the mapped file has been truncated, or if a page of a region is unreadable, has no
//!   daemon, or did not arrive in time (as the region's creator chose).
//!
//! ```
//! use std::fs::File;
//! use vmem_mapping::{Access, Mapping, PAGE_SIZE, Sharing};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("memory");
//! let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
//! file.set_len(PAGE_SIZE as u64)?;
//! let memory = Mapping::new(&file, 0, PAGE_SIZE, Access::ReadWrite, Sharing::Shared)?;
//! memory.write_at(100, b"seen by all who map the file")?;
//! let mut four = [0; 4];
//! memory.read_at(100, &mut four)?;
//! assert_eq!(&four, b"seen");
//! # Ok(())
//! # }
//! ```

mod copy;
mod error;
mod mapping;

pub use error::Error;
pub use mapping::{Access, Mapping, Sharing};

/// Size of a page in bytes: mappings begin at multiples of it in their file.
pub const PAGE_SIZE: usize = 4096;
