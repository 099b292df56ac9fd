// SPDX-License-Identifier: GPL-2.0
//! Why a command on a region fails. None of these errors harms a guest.

use std::io;

use vmem_cli::Stopped;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Vmem {
        what: String,
        #[source]
        source: vmem::Error,
    },
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// A failed access to `what`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// A failed call on `what`.
    pub(super) fn vmem(what: impl Into<String>) -> impl FnOnce(vmem::Error) -> Self {
        let what = what.into();
        |source| Self::Vmem { what, source }
    }

    pub(super) fn other(what: impl Into<String>) -> Self {
        Self::Other(what.into())
    }
}
