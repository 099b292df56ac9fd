// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of what is done with a QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Something could not be done with QEMU.
///
/// A command of QMP that fails with [`Error::Io`], [`Error::Closed`], [`Error::TimedOut`], [`Error::NotQmp`] or [`Error::TooLong`] may have
/// been executed nevertheless. After [`Error::Refused`] and [`Error::Connect`] it was not.
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
    /// A reply of QEMU lacks something.
    #[error("QEMU's reply to {command} has no {field}")]
    Reply {
        /// The command.
        command: &'static str,
        /// What is missing.
        field: &'static str,
    },
    /// Not all memory of the guest can be mapped by other processes.
    #[error(
        "the guest has {total} bytes of memory, of which {shared} are in files that a second process can map; all must be: \
         -object memory-backend-file,...,share=on and -machine memory-backend=... (or -numa node,memdev=...)"
    )]
    NotShared {
        /// All memory, in bytes.
        total: u64,
        /// The part that can be mapped.
        shared: u64,
    },
    /// Not all memory of the guest is in private mappings of files.
    #[error(
        "the guest has {total} bytes of memory, of which {private} are in private mappings of files; all must be: \
         -object memory-backend-file,...,share=off,readonly=on,rom=off and -machine memory-backend=... (or -numa node,memdev=...)"
    )]
    NotPrivate {
        /// All memory, in bytes.
        total: u64,
        /// The part that is private.
        private: u64,
    },
    /// What prevents a migration over one socket, and how to remove it.
    #[error("QEMU cannot migrate the guest in this way: {0}")]
    Obstacle(String),
    /// The process of QEMU cannot be opened.
    #[error("QEMU's process cannot be opened")]
    Process(#[source] io::Error),
    /// A file of the guest's memory cannot be examined.
    #[error("cannot examine {} as the guest's memory", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process does not have this file open.
    #[error("QEMU (process {pid}) does not have {} open: what is there now is not the guest's memory", path.display())]
    NotOpen {
        /// The process.
        pid: i32,
        /// The file.
        path: PathBuf,
    },
    /// Another file is at the path of the guest's memory now.
    #[error("{} is another file now, and not the guest's memory", .0.display())]
    OtherFile(PathBuf),
    /// A memory backend in a file cannot be opened.
    #[error("cannot open memory backend {id:?} (if a proxy listens at the socket, give that of QEMU)")]
    Memory {
        /// The backend.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A memory backend in a memfd cannot be opened.
    #[error("cannot open memory backend {id:?} of process {pid}, which listens at the socket")]
    Memfd {
        /// The backend.
        id: String,
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// QEMU does not end its migration.
    #[error("QEMU has not cancelled its migration, which is still {0}")]
    NotCancelled(String),
    /// QEMU did not stop for its devices, or not for long enough.
    #[error("QEMU has saved less of its devices than fits into a pipe, and may have continued the guest too early")]
    NothingSaved,
    /// The state of the devices is longer than is accepted, in bytes.
    #[error("QEMU has saved more than {} MiB of its devices", .0 >> 20)]
    SavedTooMuch(usize),
    /// The socket or the pipe for the guest's state cannot be made or read.
    #[error("cannot use the stream of the guest's state")]
    Stream(#[source] io::Error),
    /// The command that starts QEMU is unsuitable, and why.
    #[error("{0}")]
    Command(String),
    /// QEMU cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}
