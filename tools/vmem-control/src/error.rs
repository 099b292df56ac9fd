// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a control connection cannot be made or used.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a control connection cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be bound.
    #[error("cannot listen on the control socket {}", path.display())]
    Bind {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program listens on the socket.
    #[error("the control socket {} is in use: another vmemd, or another program, listens there; end it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// Nobody can be reached at the socket.
    #[error("cannot connect to the control socket {}", path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A descriptor is no Unix stream socket that listens.
    #[error("{0} is no Unix stream socket that listens")]
    NotListening(String),
    /// The connection failed.
    #[error("the control connection failed")]
    Io(#[source] io::Error),
    /// The peer has closed the connection.
    #[error("the peer has closed the control connection")]
    Closed,
    /// The peer has not answered in time.
    #[error("no answer on the control connection within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The peer is a process of another user.
    #[error("the peer of the control connection is a process of user {uid}; only user {owner} and root may be")]
    Stranger {
        /// The peer's user.
        uid: u32,
        /// Whose process it may be, beside root's.
        owner: u32,
    },
    /// The peer says that it is another process than the one that has sent this.
    #[error("the peer of the control connection says that it is process {said}, but it is process {found}")]
    Impostor {
        /// What it says.
        said: i32,
        /// What the kernel says.
        found: i32,
    },
    /// The kernel does not say which process has answered.
    #[error("the kernel does not say which process has answered on the control connection")]
    Nameless,
    /// The peer sends a longer line than a message may be.
    #[error("the peer of the control connection sends a line of more than {longest} bytes, which begins with: {beginning}")]
    TooLong {
        /// As long a message may be.
        longest: usize,
        /// How the line begins.
        beginning: String,
    },
    /// What has come is no message of this protocol.
    #[error("the peer does not speak the control protocol: {0}")]
    Foreign(String),
    /// The daemon answers a request with an error.
    #[error("the request is refused ({kind}): {text}")]
    Refused {
        /// Which error.
        kind: ErrorKind,
        /// For people.
        text: String,
    },
    /// What the kernel says of a process cannot be read.
    #[error("cannot read which process this is")]
    Identity(#[source] io::Error),
}

impl Error {
    /// Whether nobody listens at the socket, or there is none.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

/// Why a request is not obeyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The line is no request.
    Malformed,
    /// The line is longer than a request may be. The connection ends.
    TooLong,
    /// This version does not know such a request.
    UnknownRequest,
    /// The daemon speaks no version that the client speaks. The connection ends.
    Version,
    /// HELLO has not been said on this connection.
    NoHello,
    /// The client is a process of another user. The connection ends.
    NotAllowed,
    /// There are as many clients as there can be. The connection ends.
    Busy,
    /// This daemon does not do that, or not now.
    Refused,
    /// An error that a later daemon knows.
    #[serde(other)]
    Unknown,
}

impl Display for ErrorKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::UnknownRequest => "unknown_request",
            Self::Version => "version",
            Self::NoHello => "no_hello",
            Self::NotAllowed => "not_allowed",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}
