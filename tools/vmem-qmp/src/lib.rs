// SPDX-License-Identifier: GPL-2.0
//! A client of QEMU's machine protocol (QMP), as far as a migration needs it.
//!
//! [`Qmp`] is a connection: commands, and events, with a time limit for everything. Values stay JSON: types made from one QEMU's schema
//! would refuse what the next QEMU adds to it. The protocol: `docs/interop/qmp-spec.rst` of QEMU.
//!
//! [`Lines`] is what is below it, for other protocols with a message on each line.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod lines;
#[cfg(test)]
mod tests;

pub use connection::{Event, Qmp};
pub use error::QmpError;
pub use lines::{LineError, Lines};
