// SPDX-License-Identifier: GPL-2.0-or-later
//! The checkpoint store: memory images of guests, in a directory or in an object store.
//!
//! A checkpoint is written page by page ([`Store::begin`], [`Writer`]), exists from its commit on, and is read page by page, in any order
//! ([`Store::image`], [`Store::hold`], [`Image`]). Pages that are zero, or as in the checkpoint before, are not stored again; still every
//! checkpoint is complete by itself. The format is described in `Documentation/checkpoint-format.rst`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use vmem_pages::{PAGE_SIZE, PageIndex};
//! use vmem_store::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions, objects::Directory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let place = tempfile::tempdir()?;
//! let place = Arc::new(Directory::new(place.path().join("store")));
//! let store = Store::init(place, &InitOptions::default(), OpenOptions::default())?;
//! let guest = "guest0".parse()?;
//! let memories = [("ram".to_owned(), 2 * PAGE_SIZE as u64)];
//! let page = |pgoff| PageIndex::new(pgoff).expect("a page");
//!
//! let writer = store.begin(&guest, None, &memories, &WriteOptions::default())?;
//! writer.put_pages(0, page(0), &[7; 2 * PAGE_SIZE])?;
//! let first = writer.commit(CommitOptions::default())?.checkpoint;
//!
//! let writer = store.begin(&guest, Some(&first), &memories, &WriteOptions::default())?;
//! writer.put_pages(0, page(1), &[8; PAGE_SIZE])?;
//! let second = writer.commit(CommitOptions::default())?.checkpoint;
//!
//! let image = store.hold(&second, "this example")?;
//! let mut contents = [0; PAGE_SIZE];
//! image.read_page(0, page(0), &mut contents)?;
//! assert_eq!(contents, [7; PAGE_SIZE]);
//! # Ok(())
//! # }
//! ```
//!
//! # Threads, and no tasks
//!
//! The interface is synchronous. Its users are: a daemon whose threads wait for the kernel's requests and fill pages; FUSE and NBD servers with
//! threads of their own; programs that do one thing. A page fault that is served from a local directory is one `pread` in the thread that
//! has the request; to hand it to a task and back would take longer than the read. Hashing and compressing want threads, too. Only a store
//! on a network profits from tasks: `objects::Remote` keeps a small runtime to itself, and a caller that wants several requests under
//! way has several threads call.
#![forbid(unsafe_code)]

mod base;
mod cache;
mod codec;
mod crypto;
mod diff;
mod encoding;
mod envelope;
mod error;
mod gc;
mod hex;
mod holder;
mod image;
mod keys;
mod leaf;
mod lease;
mod manifest;
mod names;
pub mod objects;
mod order;
mod pack;
mod prune;
mod random;
mod record;
mod removal;
mod removal_mark;
mod retention;
mod rewrite;
mod squash;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod verify;
mod writer;

pub use base::{Clock, Config};
pub use codec::Compression;
pub use diff::BackendDiff;
pub use error::{Error, PageError};
pub use gc::{GcOptions, GcReport};
pub use holder::Reader;
pub use image::{BlobReader, Extent, Fragmentation, Image, PageState, Touch};
pub use keys::UserKey;
pub use manifest::{Backend, BackendKind, Manifest, Parent, Statistics};
pub use names::{CheckpointName, GuestName, NameError, WriterId};
pub use order::AccessOrder;
pub use retention::{Decision, Item, Policy};
pub use rewrite::Rewritten;
pub use squash::{SquashOptions, SquashReport};
pub use store::{InitOptions, Listed, OpenOptions, Store};
pub use verify::VerifyReport;
pub use writer::{CommitOptions, WriteOptions, Writer};
