// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of sources, of exported memory, and of servers.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::rounds::RoundsError;
use crate::wire::{ErrorCode, MAX_EXPORTS, ProtocolError};

/// A source cannot be used (any more), memory cannot be exported, or a server cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the source cannot be found.
    #[error("cannot find the address of {address}")]
    Resolve {
        /// The source, `HOST:PORT`.
        address: String,
        /// The error of the resolver.
        #[source]
        source: io::Error,
    },
    /// No address of the source can be connected to.
    #[error("cannot connect to {address}")]
    Connect {
        /// The source, `HOST:PORT`.
        address: String,
        /// The error of the last address that was tried.
        #[source]
        source: io::Error,
    },
    /// The connection would leave this host in clear text, and the user has not allowed that.
    #[error(
        "{0} is not a loopback address: the memory would come from there in clear text, from whatever host answers; --insecure allows \
         it, and --tls protects it (an NBD server is nbds:// then)"
    )]
    ClearText(SocketAddr),
    /// The connection cannot be protected, or the protection broke.
    #[error("cannot use TLS with the peer")]
    Tls(#[source] vmem_tls::Error),
    /// A read or a write of the connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The peer was too slow.
    #[error("the peer did not {action} within {} s", .limit.as_secs_f32())]
    TimedOut {
        /// What the peer was to do.
        action: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The peer closed the connection, without a GOODBYE if it is a destination.
    #[error("the peer closed the connection{}", if *.mid_frame { " in the middle of a frame" } else { "" })]
    Closed {
        /// Whether a frame was incomplete.
        mid_frame: bool,
    },
    /// The peer violated the page protocol.
    #[error("the peer violated the page protocol")]
    Protocol(#[from] ProtocolError),
    /// The peer sent an ERROR frame.
    #[error("the peer refused: {text} ({code})")]
    Refused {
        /// The code of the error.
        code: ErrorCode,
        /// The peer's description of the error.
        text: String,
    },
    /// The source does not send pages while its program runs.
    #[error("the source sends no pages while its program runs: it does not track the memory, or its rounds have ended")]
    NoRounds,
    /// A server cannot choose the pages of the next round, or those that remain.
    #[error("the rounds cannot go on")]
    Rounds(#[from] RoundsError),
    /// The server has as many connections as it may have.
    #[error("refused the peer: there are too many connections")]
    TooManyConnections,
    /// Another connection stages the pages of the rounds.
    #[error("refused the peer: another connection stages pages")]
    StagingBusy,
    /// A checkpoint cannot be a source, whenever it is tried again: it does not exist, is damaged, or needs a newer version.
    #[error("cannot use the checkpoint")]
    Checkpoint(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An NBD server cannot be a source, whenever it is tried again: it refuses the export, or violates the protocol.
    #[error("cannot use the NBD server")]
    Nbd(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The caller asked for pages that no source gives: outside of the export, none, or too many at once.
    #[error("cannot fetch {0}")]
    InvalidFetch(String),

    /// The description of exported memory is not `NAME=PATH`.
    #[error("{0:?} is not NAME=PATH")]
    Spec(String),
    /// An export cannot have such a name.
    #[error(transparent)]
    Name(#[from] vmem::Error),
    /// A file of exported memory, or the record of its released pages, cannot be opened or read.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The file is not memory.
    #[error("cannot export {}: it is {found}", path.display())]
    NotMemory {
        /// The file.
        path: PathBuf,
        /// What the file is instead.
        found: &'static str,
    },
    /// Another server exports the memory, and one of the two releases pages of it.
    #[error("cannot export {}: another server exports it, and one of the two releases pages (--free)", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Pages of the memory have been released: a page of zeros in it may have had other contents.
    #[error("cannot export {}: pages of it have been released; export it with the record of them (--free)", path.display())]
    PagesReleased {
        /// The file.
        path: PathBuf,
    },
    /// A region cannot have the size of the memory.
    #[error("cannot export {}: it has {size} bytes; a region has 1 byte to 16 TiB", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Size of the memory in bytes.
        size: u64,
    },

    /// The release of pages cannot be recorded. The memory keeps them.
    #[error("cannot record the release of pages; they are kept")]
    ReleaseRecord(#[source] io::Error),
    /// This kind of memory cannot have holes. The memory keeps all of its pages from now on.
    #[error("cannot make holes in this kind of memory; all of its pages are kept from now on")]
    HolesUnsupported(#[source] io::Error),
    /// A hole could not be made, or only in part. Its pages stay unreadable.
    #[error("cannot make a hole")]
    PunchHole(#[source] io::Error),

    /// A server cannot have that many exports.
    #[error("cannot serve {0} exports: a source has 1 to {MAX_EXPORTS}")]
    ExportCount(usize),
    /// Two exports have the same name.
    #[error("cannot serve two exports with the name {0}")]
    DuplicateName(vmem::Name),
    /// The server cannot listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of `bind(2)` or `listen(2)`.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether another connection to the source may succeed. A source that is gone can come back, and a frame that was damaged can arrive
    /// whole the next time; a source that violates the protocol will do so again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Io(_) | Self::TimedOut { .. } | Self::Closed { .. } => true,
            Self::Tls(source) => matches!(
                source,
                vmem_tls::Error::Io(_) | vmem_tls::Error::TimedOut(_) | vmem_tls::Error::Broken(_)
            ),
            Self::Protocol(error) => matches!(error, ProtocolError::Checksum { .. }),
            Self::Refused { code, .. } => *code == ErrorCode::Busy,
            _ => false,
        }
    }

    /// Whether the source is absent or refuses to serve; false if it serves, but cannot be trusted to be correct.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::ClearText(_) | Self::Protocol(_) | Self::InvalidFetch(_) | Self::Checkpoint(_) | Self::Nbd(_) => false,
            Self::Refused { code, .. } => *code != ErrorCode::Protocol,
            _ => true,
        }
    }
}
