// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a server cannot be used (any more).

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A server cannot be used, or a connection to it cannot be used any more. All clients of a session get the same error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection failed, or a thread of this side.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server was too slow.
    #[error("the server did not {action} within {} s", .limit.as_secs_f32())]
    TimedOut {
        /// What the server was to do.
        action: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The server is about to end.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The server gives the export only over TLS.
    #[error("the server demands TLS (NBD_REP_ERR_TLS_REQD): connect to nbds:// or nbds+unix://, with certificates")]
    TlsRequired,
    /// The server does not have TLS, and the connection must be protected.
    #[error("the server does not protect the connection by TLS: {0}")]
    NoTls(String),
    /// The connection cannot be protected.
    #[error("cannot use TLS with the server: {0}")]
    Tls(String),
    /// The server does not give the export.
    #[error("the server refuses export {export:?}: {why}")]
    Refused {
        /// Name of the export.
        export: String,
        /// The error of the protocol, and what the server says about it.
        why: String,
    },
    /// The server speaks another dialect.
    #[error("the server has {0}, which this client does not: it needs the fixed newstyle handshake")]
    Dialect(&'static str),
    /// The server violates the protocol.
    #[error("the server violates the NBD protocol: {0}")]
    Violation(String),
}

impl Error {
    /// Whether another connection to the server may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Closed | Self::TimedOut { .. } | Self::ShuttingDown)
    }

    /// Wraps the error of a read or a write, which had so much time.
    pub(crate) fn of(action: &'static str, limit: Duration) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::TimedOut => Self::TimedOut { action, limit },
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// The error for what the protocol does not allow.
pub(crate) fn violation(what: impl Into<String>) -> Error {
    Error::Violation(what.into())
}

/// What a server says, for people: no control characters, and not too much of it.
pub(crate) fn shown(text: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}
