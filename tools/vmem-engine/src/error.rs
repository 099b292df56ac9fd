// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of an engine.

use std::io;
use std::time::Duration;

/// An engine cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source cannot be used (any more).
    #[error("cannot use the source")]
    Source(#[from] vmem_source::Error),
    /// After a reconnect, the source exports other memory under the same name.
    #[error("after a reconnect, the source has other memory as {0}; the region must not mix the two")]
    MemoryChanged(vmem::Name),
    /// The source's program has not stopped, or the source does not say which pages were written last.
    #[error(
        "the source has not sent the list of the pages that were written last within {} s: it has not got the request 'finish'",
        .0.as_secs_f64()
    )]
    NoRemainder(Duration),
    /// A call on a region failed.
    #[error("cannot {action} region {region}")]
    Region {
        /// What the engine was to do with the region.
        action: &'static str,
        /// Name of the region.
        region: String,
        /// The error of the call.
        #[source]
        source: vmem::Error,
    },
    /// A system call of this process failed.
    #[error("cannot {action}")]
    Local {
        /// What the engine was to do.
        action: &'static str,
        /// The error of the call.
        #[source]
        source: io::Error,
    },
    /// The engine was halted while it tried to reconnect to the source.
    #[error("the engine was halted before the source was reachable again")]
    Halted,
}

impl Error {
    /// Wraps the error of a call on `region`.
    pub(crate) fn region(action: &'static str, region: &str) -> impl FnOnce(vmem::Error) -> Self + use<> {
        let region = region.to_owned();
        move |source| Self::Region { action, region, source }
    }

    /// Wraps the error of a system call.
    pub(crate) fn local(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Local { action, source }
    }
}
