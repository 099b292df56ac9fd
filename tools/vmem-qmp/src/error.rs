// SPDX-License-Identifier: GPL-2.0
//! Errors of a connection to QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A command failed, or its result is unknown: after all errors but [`Error::Refused`] and [`Error::Connect`], QEMU may have executed it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot connect to QEMU at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of `connect(2)`.
        #[source]
        source: io::Error,
    },
    /// A read or a write of the connection failed.
    #[error("the connection to QEMU failed")]
    Io(#[source] io::Error),
    /// The peer closed the connection. Most likely QEMU has ended.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer arrived in time. The connection can still be used.
    #[error("QEMU did not answer {what} within {} s", .limit.as_secs_f32())]
    TimedOut {
        /// The command, or what else was waited for.
        what: String,
        /// The time limit.
        limit: Duration,
    },
    /// The peer sent something that is not QMP.
    #[error("the peer does not speak QMP; it sent: {0}")]
    NotQmp(String),
    /// The peer sent these bytes without an end of line, more than a line may have.
    #[error("the peer sent {} bytes without an end of line", .0.len())]
    TooLong(Vec<u8>),
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description of the error.
        reason: String,
    },
}
