// SPDX-License-Identifier: GPL-2.0-or-later
//! A client that reads an export.
//!
//! A [`Session`] is a connection. Each [`Client`] of it asks for bytes and for extents, any number at a time, and takes the replies as they
//! come. Urgent requests are sent before others, and on a connection that both kinds share only so much of the others is outstanding that an urgent one
//! waits little.
//!
//! A thread sends and another one receives, so that neither side of the connection ever waits for the other to read. A server is not trusted: what it
//! sends is checked against what was asked for before room is made for it, and it has time limits for the handshake and for each answer.

mod assembly;
mod covered;
mod description;
mod error;
mod handshake;
mod inbox;
mod question;
mod receiver;
mod requests;
mod session;
#[cfg(test)]
mod tests;

pub use crate::extent::Extent;
pub use description::Description;
pub use error::Error;
pub use handshake::Protect;
pub use inbox::{Bytes, Failure, Outcome};
pub use question::Question;
pub use requests::Priority;
pub use session::{Client, Session};
