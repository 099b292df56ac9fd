// SPDX-License-Identifier: GPL-2.0-or-later
//! Events of an engine.

use vmem_source::Lane;

use crate::error::Error;

/// An event, for the caller of the engine.
#[derive(Debug)]
pub enum Event {
    /// A connection was lost, and the engine reconnects.
    Disconnected {
        /// The lane of the connection.
        lane: Lane,
        /// Why.
        error: vmem_source::Error,
    },
    /// The engine has reconnected.
    Reconnected {
        /// The lane of the connection.
        lane: Lane,
    },
    /// There is no memory for pages of a region. They are retried; other regions are not affected.
    NoMemory {
        /// Name of the region.
        name: String,
    },
    /// A lane has ended. After an error, the engine makes no more progress.
    Ended(Result<(), Error>),
    /// The process received a signal to end; the caller sends this event.
    Signal,
}
