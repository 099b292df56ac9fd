// SPDX-License-Identifier: GPL-2.0
//! A client of QEMU's machine protocol (QMP), as far as a migration needs it.
//!
//! [`Qmp`] is a connection: commands and events, each with a time limit. Values stay JSON, because types generated from the schema of one
//! QEMU would refuse what the next QEMU adds. QEMU's `docs/interop/qmp-spec.rst` describes the protocol.
//!
//! [`Lines`] reads lines with a deadline, also for other protocols with one message per line.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod lines;
#[cfg(test)]
mod tests;

pub use connection::{Event, Qmp};
pub use error::Error;
pub use lines::Lines;
