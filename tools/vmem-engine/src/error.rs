// SPDX-License-Identifier: GPL-2.0
//! Why an engine cannot go on.

use std::io;

use vmem_source::SourceError;

/// Why an engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source cannot be used, or not any more.
    #[error("no source")]
    Source(#[source] SourceError),
    /// A source that came back has not the memory that it had.
    #[error("the source came back with other memory as {0}; the region must not mix the two")]
    OtherMemory(vmem::Name),
    /// A call on a region failed.
    #[error("{what}")]
    Region {
        /// What was tried, and of which region.
        what: String,
        /// Why it failed.
        #[source]
        source: vmem::Error,
    },
    /// Something of this process failed.
    #[error("{what}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The engine was halted while it tried to reach the source.
    #[error("the engine was halted before the source was back")]
    Halted,
}

impl Error {
    /// Wraps what `what` failed with.
    pub(crate) fn region(what: impl Into<String>) -> impl FnOnce(vmem::Error) -> Self {
        let what = what.into();
        |source| Self::Region { what, source }
    }

    /// Wraps what `what` failed with.
    pub(crate) fn local(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Local { what, source }
    }
}
