// SPDX-License-Identifier: GPL-2.0-or-later
//! A checkpoint store as a file system, over FUSE: `GUEST/N/` has the files of checkpoint N of a guest.
//!
//! Each memory is a sparse file `ID.raw`, and `device-state`, `manifest.json` and `stats.json` are beside it. All of it is read-only, and each
//! page is verified when it is read: a page that cannot be had is EIO, never zeros.
//!
//! # Who waits for whom
//!
//! One thread reads the kernel's requests, and never waits for the store: it hands them to a bounded number of workers ([`Mounted`] starts
//! them). Each request has a deadline, after which its answer is EIO, so that a store that is away keeps nobody for ever: a process that
//! waits for an answer in the kernel can be killed only when it comes.
#![forbid(unsafe_code)]

mod attributes;
mod blocks;
mod catalog;
mod checkpoint;
mod error;
mod filesystem;
mod handles;
mod images;
mod mount;
mod open_file;
#[cfg(test)]
mod testing;
mod tree;
mod view;
mod workers;

pub use error::MountError;
pub use mount::{Mounted, Options};
