// SPDX-License-Identifier: GPL-2.0-or-later
//! Sources of page contents, and the page protocol that carries them.
//!
//! The daemon fetches pages through a [`PageSource`]. [`peer`] is a source at the other end of a TCP connection, [`local`] a source that
//! reads files of this host. [`serve`] is the server that a peer connects to: it exports memory that is a file, a memfd or a region.
//!
//! While the program still runs at the peer, its [`rounds`] choose the pages that are sent, and the destination takes them from a
//! [`StagingSource`].
//!
//! `Documentation/protocol.rst` describes the bytes between [`peer`] and [`serve`].
//!
//! ```no_run
//! use vmem_source::local::Local;
//! use vmem_source::{Contents, PageSource};
//!
//! # fn main() -> Result<(), vmem_source::Error> {
//! let mut source = Local::open(["guest0=/dev/shm/guest0"])?;
//! if let (Some(first), _) = source.exports()[0].pages.split_at(1) {
//!     source.fetch(0, &[first])?;
//!     for (pages, contents) in source.next_answer()?.contents() {
//!         match contents {
//!             Contents::Data(bytes) => println!("{pages}: {} bytes", bytes.len()),
//!             Contents::Zero => println!("{pages}: zero"),
//!             Contents::Unreadable => println!("{pages}: the source cannot read them"),
//!             // A source does that only for a caller that has announced contents, or stages pages.
//!             Contents::Known(_) | Contents::Same => println!("{pages}: left out"),
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod answer;
pub mod backing;
mod chunks;
pub mod compression;
pub mod digest;
pub mod endpoint;
mod error;
pub mod export;
pub mod holes;
mod link;
pub mod local;
pub mod memory;
pub mod peer;
pub mod rounds;
pub mod serve;
pub mod source;
pub mod staging;
pub mod wire;

pub use answer::{Answer, Contents};
pub use compression::Compression;
pub use error::Error;
pub use export::{Export, ExportRanges, Lane};
pub use holes::{ExportHoles, Holes};
pub use source::{PageSource, Readiness, Reply};
pub use staging::{StagingEvent, StagingSource};
