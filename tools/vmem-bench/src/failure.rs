// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a measurement cannot be made.

use vmem_bench_sys::Errno;

/// Why a measurement cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Vmem(#[from] vmem::Error),
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: Errno,
    },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// What was measured did not do its work: its time is worth nothing.
    #[error("{0}")]
    Wrong(String),
}

/// What can fail here.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Says what was tried when the kernel refused it.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Outcome<T>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, what: &'static str) -> Outcome<T> {
        self.map_err(|source| Failure::System { what, source })
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: &'static str) -> Outcome<T> {
        self.map_err(|source| Failure::Io {
            what: what.into(),
            source,
        })
    }
}
