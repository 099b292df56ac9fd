// SPDX-License-Identifier: GPL-2.0
//! Mutual TLS: connections by TLS 1.3 with certificates on both sides.
//!
//! An [`Identity`] is a directory with `ca.pem`, `cert.pem` and `key.pem`. A peer with a certificate of that authority is accepted; the side
//! that connects also checks that the certificate is for the host that it connected to.
//!
//! The user of a protected connection has an ordinary socket: a thread relays the bytes between that socket and the network. Code that
//! reads and writes a connection, in both directions at once and with time limits, need not know whether it is protected.
#![forbid(unsafe_code)]

mod allowed;
mod error;
mod identity;
mod relay;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use identity::{CloseReason, Identity};
