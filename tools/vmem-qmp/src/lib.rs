// SPDX-License-Identifier: GPL-2.0
//! A client of QEMU's machine protocol (QMP), as far as a migration needs it.
//!
//! [`Qmp`] is a connection: commands, and events, with a time limit for everything. Values stay JSON: types made from one QEMU's schema
//! would refuse what the next QEMU adds to it. The protocol: `docs/interop/qmp-spec.rst` of QEMU.
#![forbid(unsafe_code)]

mod connection;
mod error;
#[cfg(test)]
mod tests;

pub use connection::{Event, Qmp};
pub use error::QmpError;
