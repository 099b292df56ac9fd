// SPDX-License-Identifier: GPL-2.0
//! Connections whose ends know each other by certificate: TLS 1.3 with certificates on both sides.
//!
//! [`Identity`] is a directory with `ca.pem`, `cert.pem` and `key.pem`. Whoever has a certificate of that authority is let in; the side
//! that connects also checks that the certificate is for the name it has connected to.
//!
//! A protected connection is an ordinary socket for its user: a thread of its own carries the bytes between it and the network. So those
//! who speak on a connection, in both directions at once and with time limits, need not know whether it is protected.
#![forbid(unsafe_code)]

mod allowed;
mod carry;
mod identity;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;

pub use identity::{Identity, TlsError, Trouble};
