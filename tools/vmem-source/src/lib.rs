// SPDX-License-Identifier: GPL-2.0
//! Where page contents come from.
//!
//! [`PageSource`] is what the daemon fetches pages through. [`peer`] is such a source at the other end
//! of a TCP connection, [`local`] one that reads files of this machine. [`serve`] is what a peer talks
//! to: it exports memory that exists as a file, a memfd or a vmem region.
//!
//! The bytes between [`peer`] and [`serve`] are described in `Documentation/protocol.rst`.
#![forbid(unsafe_code)]

pub mod answer;
pub mod endpoint;
pub mod export;
mod link;
pub mod local;
pub mod memory;
pub mod peer;
pub mod serve;
pub mod source;
pub mod stop;
pub mod wire;

pub use answer::{Answer, Contents};
pub use export::{Export, Lane};
pub use source::{PageSource, Readiness, SourceError};
