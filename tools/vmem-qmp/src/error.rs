// SPDX-License-Identifier: GPL-2.0
//! What goes wrong with a QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A command was not carried out, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The socket cannot be connected to.
    #[error("cannot connect to QEMU at {}", path.display())]
    Connect {
        /// Which socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to QEMU failed")]
    Io(#[source] io::Error),
    /// QEMU closed the connection: it has ended, most likely.
    #[error("QEMU closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("QEMU did not answer {what} within {} s", .limit.as_secs_f32())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// What came is not the protocol.
    #[error("this does not speak QMP: {0}")]
    NotQmp(String),
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// Which command.
        command: String,
        /// Why, in QEMU's words.
        reason: String,
    },
}
