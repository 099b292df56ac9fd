// SPDX-License-Identifier: GPL-2.0-or-later
//! Why an export cannot be a source.

use std::io;

use vmem_nbd::client;

/// An export cannot be a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be used.
    #[error(transparent)]
    Server(#[from] client::Error),
    /// No region has the size of the export.
    #[error("the export has {0} bytes; a region has 1 byte to 16 TiB")]
    Size(u64),
}

/// An error of a connection, as that of a source.
pub(crate) fn to_source_error(error: client::Error) -> vmem_source::Error {
    match error {
        client::Error::Closed => vmem_source::Error::Closed { mid_frame: false },
        client::Error::TimedOut { action, limit } => vmem_source::Error::TimedOut { action, limit },
        client::Error::Io(source) => vmem_source::Error::Io(io::Error::new(source.kind(), source)),
        error if error.is_transient() => vmem_source::Error::Io(io::Error::other(error)),
        error => vmem_source::Error::Nbd(Error::Server(error).into()),
    }
}
