// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a checkpoint is not made, or not restored.

use std::io;
use std::time::Duration;

use vmem_cli::Stopped;

/// Why a checkpoint is not made, or not restored. The guest or program is as before, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// QEMU, or the guest's memory as QEMU has it.
    #[error(transparent)]
    Qemu(#[from] vmem_qemu::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] vmem_store::Error),
    /// The module, on some memory.
    #[error("{what}")]
    Memory {
        /// What could not be done, on what.
        what: String,
        /// Why.
        #[source]
        source: vmem::Error,
    },
    /// The guest's run state.
    #[error("the guest is {0}; a checkpoint can be made when it is running or paused")]
    Status(String),
    /// The guest's memory changed since it was opened.
    #[error("the memory of the guest has changed: QEMU has other memory backends now")]
    OtherMemory,
    /// Another QEMU listens at the socket.
    #[error("another QEMU (process {found}) answers at the socket; the checkpoints are of process {expected}")]
    OtherGuest {
        /// The process whose memory is tracked.
        expected: i32,
        /// The process that answers.
        found: i32,
    },
    /// Pages are absent, and nobody brings them.
    #[error(
        "{what}: {pages} pages are absent, and no vmemd serves the region that could bring them: start one with --resume (a restore does it by \
         itself), and make the checkpoint then"
    )]
    Unserved {
        /// Which memory.
        what: String,
        /// How many pages it lacks.
        pages: u64,
    },
    /// A page was absent at the instant, and the program has discarded it before it came.
    #[error(
        "the program has discarded pages that had not come yet, and what they had at the instant cannot be had any more: the checkpoint is given \
         up, and the next one has them as zeros"
    )]
    Discarded,
    /// QEMU did not save its devices in time.
    #[error("QEMU has not saved the guest's devices within {} s; the guest continues", .0.as_secs_f32())]
    TimedOut(Duration),
    /// QEMU ended the stream of its device state early.
    #[error("QEMU has not saved the guest's devices: {0}; the guest continues")]
    NotSaved(String),
    /// The device state is longer than is accepted.
    #[error("QEMU has written more than {} MiB of device state", .0 >> 20)]
    StateTooLong(usize),
    /// It is not known whether the guest runs again that ran before.
    #[error("QEMU does not say that the guest runs again; if it stands still, give QEMU the command 'cont'")]
    NotResumed(#[source] vmem_qemu::Error),
    /// QEMU's settings for the checkpoint could not be taken back. The next migration of another program would lack the memory.
    #[error(
        "QEMU keeps the migration settings of this checkpoint: before anything else migrates or saves this guest, switch the capabilities \
         x-ignore-shared and return-path off, and set max-bandwidth"
    )]
    SettingsKept(#[source] vmem_qemu::Error),
    /// The copies of pages that the guest overwrites need more memory than is allowed.
    #[error(
        "the copies of pages that were overwritten before they were stored reached the limit or found no memory: the checkpoint is given up, \
         and the next one has its pages (a larger --copies, a faster store or --every with more time help)"
    )]
    Copies,
    /// A clone has more pages for itself than can be copied.
    #[error(
        "the clone has {bytes} bytes of memory for itself, which are copied while it stands still, and {limit} are allowed or available: the \
         checkpoint is given up, and the clone runs on (a larger --copies, or more memory, helps)"
    )]
    TooManyPrivate {
        /// What it has.
        bytes: u64,
        /// What there may be.
        limit: u64,
    },
    /// The guest agent.
    #[error(transparent)]
    Agent(#[from] vmem_qemu::agent::Error),
    /// The guest's file systems are frozen, or may be.
    #[error(
        "the guest's file systems may be frozen still: if the guest hangs, have its agent execute guest-fsfreeze-thaw (another process tries \
         for five minutes)"
    )]
    NotThawed(#[source] vmem_qemu::agent::Error),
    /// QEMU has not said whether it has made overlays for the disks.
    #[error(
        "QEMU has not said whether the guest's disks have overlays now (QMP query-block says it): the checkpoint is given up"
    )]
    OverlaysUnknown(#[source] vmem_qemu::Error),
    /// The checkpoint has failed after the disks got overlays.
    #[error("the guest goes on with the overlays of its disks that were made for this checkpoint (QMP block-commit merges them): {}", overlays.join(", "))]
    Overlays {
        /// The files.
        overlays: Vec<String>,
        /// Why there is no checkpoint.
        #[source]
        source: Box<Error>,
    },
    /// A command of the user.
    #[error("the command of {option}: {why}")]
    Hook {
        /// The option that has it.
        option: &'static str,
        /// Why it is a failure.
        why: String,
    },
    /// A thread cannot be started, or has panicked.
    #[error("cannot run the work in a thread")]
    Thread(#[source] io::Error),
    /// A call that failed, a signal, or anything else.
    #[error(transparent)]
    Command(#[from] vmem_cli::Error),
}

impl Error {
    /// For `map_err`: says on which memory a call of the module failed. A snapshot that has failed is [`Error::Copies`], and a
    /// page of it that is not there any more [`Error::Discarded`].
    pub(crate) fn memory(what: impl Into<String>) -> impl FnOnce(vmem::Error) -> Self {
        let what = what.into();
        |source| match source {
            vmem::Error::SnapshotFailed => Self::Copies,
            vmem::Error::PageDone => Self::Discarded,
            source => Self::Memory { what, source },
        }
    }

    /// Anything else, in words.
    pub(crate) fn other(what: impl Into<String>) -> Self {
        Self::Command(vmem_cli::Error::other(what))
    }

    /// Whether a signal is the cause.
    #[must_use]
    pub fn is_signal(&self) -> bool {
        match self {
            Self::Command(error) => error.is_signal(),
            Self::Overlays { source, .. } => source.is_signal(),
            _ => false,
        }
    }

    /// Whether the next checkpoint of the same guest may succeed: only this one is given up.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(_)
            | Self::Hook { .. }
            | Self::Agent(_)
            | Self::NotThawed(_)
            | Self::Copies
            | Self::Unserved { .. }
            | Self::Discarded
            | Self::TooManyPrivate { .. }
            | Self::TimedOut(_)
            | Self::NotSaved(_)
            | Self::Status(_)
            | Self::StateTooLong(_) => true,
            Self::Overlays { source, .. } => source.is_passing(),
            Self::Qemu(error) => !matches!(error, vmem_qemu::Error::Closed | vmem_qemu::Error::Connect { .. }),
            Self::Memory { source, .. } => matches!(
                source,
                vmem::Error::NeverAtRest
                    | vmem::Error::NoMemory { .. }
                    | vmem::Error::NoDescriptors { .. }
                    | vmem::Error::HasSnapshot
            ),
            _ => false,
        }
    }
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Self {
        Self::Command(stopped.into())
    }
}
