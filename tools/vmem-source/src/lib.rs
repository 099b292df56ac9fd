// SPDX-License-Identifier: GPL-2.0
//! Sources of page contents, and the page protocol that carries them.
//!
//! The daemon fetches pages through a [`PageSource`]. [`peer`] is a source at the other end of a TCP connection, [`local`] a source that
//! reads files of this host. [`serve`] is the server that a peer connects to: it exports memory that is a file, a memfd or a region.
//!
//! `Documentation/protocol.rst` describes the bytes between [`peer`] and [`serve`].
#![forbid(unsafe_code)]

pub mod answer;
pub mod endpoint;
mod error;
pub mod export;
mod link;
pub mod local;
pub mod memory;
pub mod peer;
pub mod serve;
pub mod source;
pub mod wire;

pub use answer::{Answer, Contents};
pub use error::Error;
pub use export::{Export, Lane};
pub use source::{PageSource, Readiness};
