// SPDX-License-Identifier: GPL-2.0-or-later
//! Mutual TLS: connections by TLS 1.3 with certificates on both sides.
//!
//! An [`Identity`] is a directory with `ca.pem`, `cert.pem` and `key.pem`. A peer with a certificate of that authority is accepted; the side
//! that connects also checks that the certificate is for the host that it connected to. Files that are renewed on disk are used by the next
//! connection.
//!
//! The user of a protected connection has an ordinary socket: a thread relays the bytes between that socket and the network. Code that
//! reads and writes a connection, in both directions at once and with time limits, need not know whether it is protected.
//!
//! ```no_run
//! use std::io::Write;
//! use std::net::TcpStream;
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use vmem_tls::Identity;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::load(Path::new("/etc/vmem"))?;
//! let network = TcpStream::connect("host1.example:8636")?;
//! let (mut socket, closed) = identity.connect(network, "host1.example", Duration::from_secs(10))?;
//! if let Err(error) = socket.write_all(b"hello") {
//!     // Why the connection was closed: the certificate of the peer, for example.
//!     return Err(closed.take().map_or(error.into(), Into::into));
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod allowed;
mod configs;
mod error;
mod identity;
mod relay;
mod renewal;
mod stamps;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use identity::{CloseReason, Identity};
