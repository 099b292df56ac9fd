// SPDX-License-Identifier: GPL-2.0-or-later
//! An authority that issues the certificates with which vmem's hosts authenticate each other.
//!
//! An [`Authority`] is a directory. It has the authority's certificate `ca.pem`, its private key `ca-key.pem`, and a directory for each host: what
//! `--tls` of `vmemd` and `vmemctl` reads, `ca.pem`, `cert.pem` and `key.pem`, to be copied to that host. The directory itself stays where it is.
//!
//! ```no_run
//! use std::path::Path;
//! use vmem_authority::{Authority, HostName};
//!
//! # fn main() -> Result<(), vmem_authority::Error> {
//! let authority = Authority::create(Path::new("/root/authority"), "vmem authority", 3650)?;
//! let names: Vec<HostName> = ["alpha", "alpha.example.org", "192.0.2.1"].map(str::parse).into_iter().collect::<Result<_, _>>()?;
//! let certificate = authority.add_host("alpha", &names, 365)?;
//! println!("/root/authority/alpha is for {:?}, until {}", certificate.names(), certificate.not_after());
//! # Ok(())
//! # }
//! ```
//!
//! The certificates are of X.509 version 3 (RFC 5280), with keys for ECDSA on P-256. That of a host is for both sides of a TLS connection.
#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod error;
mod files;
mod host_name;
#[cfg(test)]
mod tests;

pub use authority::{Authority, Host};
pub use certificate::Certificate;
pub use error::Error;
pub use host_name::HostName;
