// SPDX-License-Identifier: GPL-2.0-or-later
//! A checkpoint store as a source of page contents: each page of a checkpoint's memory is read, and verified, when it is wanted.
//!
//! [`Location`] is where a store is, [`Selector`] names a checkpoint of a guest, and [`Address`] is both of them, as
//! `vmemd --source checkpoint:...` has it. [`KeyOptions`] is where the key of an encrypted store comes from. [`StoredPages`] opens the source, once
//! for each lane. [`Origin`] is how a vmemd makes known which checkpoint has the absent pages of its regions. [`backend_files`] names the files
//! of a checkpoint that is exported or mounted.
#![forbid(unsafe_code)]

mod address;
mod file_names;
mod key;
mod origin;
mod pages;
mod reader;

pub use address::{Address, Location, Selector};
pub use file_names::{MANIFEST_FILE, STATISTICS_FILE, backend_files};
pub use key::{KeyOptions, NewKeyOptions};
pub use origin::{Origin, OriginFile};
pub use pages::{Error, StoredPages};
pub use reader::{ImageSource, IsThere};
