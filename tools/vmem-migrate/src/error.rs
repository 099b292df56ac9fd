// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a command has not done everything, and the exit code for that.

use crate::channel::ChannelError;
use crate::daemon::DaemonError;
use crate::record::RecordError;
use vmem_cli::Stopped;

/// What went wrong. What that means for the guest is not known at this level.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// QEMU, or the guest's memory as QEMU has it.
    #[error(transparent)]
    Qemu(#[from] vmem_qemu::Error),
    /// The guest's run state.
    #[error("the guest is {status}; it can be moved when it is running or paused")]
    Status {
        /// The run state.
        status: String,
    },
    /// vmemd.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The record of a move.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The connection to the other host's vmemctl: which peer, and why it failed.
    #[error("{0}")]
    Peer(String, #[source] ChannelError),
    /// This host's certificate and key.
    #[error("cannot load the certificate and the key of this host (--tls)")]
    Tls(#[source] vmem_tls::Error),
    /// A call that failed, a signal, or anything else.
    #[error(transparent)]
    Command(#[from] vmem_cli::Error),
}

impl Cause {
    /// For `map_err`: says what could not be done.
    pub(crate) fn call<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let call = vmem_cli::Error::call(what);
        |error| Self::Command(call(error))
    }

    /// Whether a signal is the cause.
    pub(crate) fn is_signal(&self) -> bool {
        matches!(self, Self::Command(error) if error.is_signal())
    }

    pub(crate) fn other(what: impl Into<String>) -> Self {
        Self::Command(vmem_cli::Error::other(what))
    }
}

impl From<Stopped> for Cause {
    fn from(stopped: Stopped) -> Self {
        Self::Command(stopped.into())
    }
}

/// How a command ended early. vmemctl(8) documents the exit codes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was begun.
    #[error(transparent)]
    Local(#[from] Cause),
    /// The guest has not moved.
    #[error("the guest has not moved, and continues at the source")]
    AtSource(#[source] Cause),
    /// The guest has moved, and its memory has not, or not all of it.
    #[error(
        "the guest runs at the destination, and its memory is not complete there; to continue, run 'vmemctl recover' at the source and \
         'vmemctl receive --resume' at the destination"
    )]
    Unfinished(#[source] Cause),
    /// A signal has ended this program while the guest was on its way.
    #[error(
        "the move is not over, and vmemd continues with it; to supervise it again, run 'vmemctl recover' at the source or 'vmemctl receive \
         --resume' at the destination"
    )]
    Detached(#[source] Cause),
    /// It is not known whether the guest runs at the destination.
    #[error(
        "it is not known whether the guest runs at the destination, so it must not run at the source; run 'vmemctl recover' to find out"
    )]
    Unknown(#[source] Cause),
    /// The guest has moved, and its QEMU has ended before its memory was complete.
    #[error("the guest has ended at the destination, so it must not continue at the source")]
    Gone(#[source] Cause),
    /// This host is done, and the source has not received the final message.
    #[error(
        "the source has not received the final message; run 'vmemctl receive --resume' to send it again, or 'vmemctl forget' if the source \
         is gone for good"
    )]
    Unheard(#[source] Cause),
    /// The guest runs on both hosts.
    #[error("the guest runs at both hosts, and the destination owns it: end its QEMU at the source")]
    Twice(#[source] Cause),
    /// Pages are lost.
    #[error("the guest has lost memory")]
    Lost(#[source] Cause),
}

impl Error {
    /// The exit code of vmemctl(8).
    pub fn code(&self) -> u8 {
        match self {
            Self::Local(_) => 1,
            Self::AtSource(_) => 2,
            Self::Unfinished(_) | Self::Unknown(_) => 3,
            Self::Lost(_) | Self::Twice(_) => 4,
            Self::Gone(_) => 5,
            Self::Detached(_) => 6,
            Self::Unheard(_) => 7,
        }
    }
}
