// SPDX-License-Identifier: GPL-2.0
//! What an engine tells of.

use vmem_source::{Lane, SourceError};

use crate::error::Error;

/// What happens, for who watches.
#[derive(Debug)]
pub enum Event {
    /// A connection was lost, and is being made again.
    Disconnected {
        /// Which.
        lane: Lane,
        /// Why.
        error: SourceError,
    },
    /// It has been made again.
    Reconnected {
        /// Which.
        lane: Lane,
    },
    /// There is no memory for pages of a region: they are tried again, and others go on.
    NoMemory {
        /// The region.
        name: String,
    },
    /// A lane has ended; with a failure, there is nothing left to hope for.
    Ended(Result<(), Error>),
    /// A signal asks to end.
    Signal,
}
