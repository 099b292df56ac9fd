// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of protected connections and of their certificates.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The files of an identity cannot be used, or a connection cannot be protected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read, or does not hold a certificate or a key.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        why: String,
    },
    /// The certificate, the key and the authority do not belong together.
    #[error("cert.pem, key.pem and ca.pem do not belong together")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate cannot have such a name.
    #[error("{0:?} is neither the name of a host nor an address")]
    Name(String),
    /// One side does not accept the certificate of the other, or the peer does not speak TLS 1.3.
    #[error("the TLS handshake failed")]
    Handshake(#[source] rustls::Error),
    /// After the handshake, something arrived that the peer did not send.
    #[error("the TLS connection is broken")]
    Broken(#[source] rustls::Error),
    /// The handshake did not end in time.
    #[error("the TLS handshake did not end within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The network connection failed before the handshake ended, or this process has no descriptor or thread for the connection.
    #[error("the connection failed before the TLS handshake ended")]
    Io(#[from] io::Error),
}
