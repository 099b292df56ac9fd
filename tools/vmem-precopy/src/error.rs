// SPDX-License-Identifier: GPL-2.0-or-later
//! What can fail.

use std::fmt;

/// Why pre-copy cannot begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A limit cannot have this value.
    #[error("a limit of {value} {what} is not possible: it is {least} to {most}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The value.
        value: u64,
        /// The smallest value.
        least: u64,
        /// The largest value.
        most: u64,
    },
    /// There is no such mode.
    #[error("{0:?} is not a mode: it is precopy, hybrid or auto")]
    Mode(String),
    /// There is no memory to send, or pages of it are missing at its beginning.
    #[error("memory {0} cannot be sent in rounds: its first page is not page 0")]
    FirstPage(usize),
    /// There are no memories.
    #[error("there is no memory to send")]
    NoMemory,
    /// The dirty log of a memory cannot be read. Pages that were taken from it before the error are not forgotten.
    #[error("cannot {action} the dirty log of memory {memory}")]
    Log {
        /// What was tried.
        action: LogAction,
        /// The memory, counted from 0.
        memory: usize,
        /// The error.
        #[source]
        source: vmem::Error,
    },
    /// The connection that sent the pages ended.
    #[error("the connection that sends the pages has ended")]
    Lost,
    /// The rounds are over: nothing about them can be changed.
    #[error("the rounds are over")]
    Over,
    /// The remainder is known only after the last take.
    #[error("the program has not stopped yet: what is left is not known")]
    NotFinished,
    /// A trace is not as its format says.
    #[error("line {line} of the trace: {what}")]
    Trace {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A sample does not fit its trace.
    #[error("a sample of a trace cannot have {0}")]
    Sample(&'static str),
    /// Nothing can be predicted from a trace without samples.
    #[error("the trace has no samples")]
    EmptyTrace,
    /// Nothing can be sent over a link of this bandwidth.
    #[error("a link of {0} bytes/s is too slow to send a page a minute")]
    Bandwidth(u64),
}

/// What is done with a dirty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAction {
    /// Reads it.
    Peek,
    /// Takes pages out of it.
    Clean,
}

impl fmt::Display for LogAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peek => "read",
            Self::Clean => "take",
        })
    }
}
