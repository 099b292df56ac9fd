// SPDX-License-Identifier: GPL-2.0
//! The one trait behind `--source`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use vmem::PageRange;
use vmem_tls::TlsError;

use crate::answer::Answer;
use crate::export::Export;
use crate::memory::MemoryError;
use crate::wire::{ErrorCode, WireError};

/// When [`PageSource::next`] has something to say.
#[derive(Clone, Copy, Debug)]
pub enum Readiness<'a> {
    /// It will not wait: call it whenever something was asked for.
    Always,
    /// When this descriptor is readable; also when the source is lost, asked or not.
    When(BorrowedFd<'a>),
}

/// Where page contents come from.
///
/// This is what a new kind of source implements (a block server, an object store, a checkpoint):
/// the daemon opens it twice, once for each [`Lane`](crate::export::Lane), and uses each from one thread. Questions are
/// pipelined: the daemon keeps asking while answers are on their way. A source that reads something
/// slow does so in threads of its own, behind a descriptor that says when an answer is there.
///
/// A source that is not sure of a page's contents says so with an error, and never with contents.
pub trait PageSource: Send {
    /// What the source offers. The index of an export is its number in the other calls; it does
    /// not change while the source is open.
    fn exports(&self) -> &[Export];

    /// Asks for pages, and does not wait for them.
    ///
    /// At most [`MAX_ASK_RANGES`](crate::export::MAX_ASK_RANGES) ranges and [`MAX_ASK_PAGES`](crate::export::MAX_ASK_PAGES) pages, all inside of the export.
    ///
    /// # Errors
    ///
    /// The source is lost, or the question is not one.
    fn ask(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError>;

    /// Says that these pages are where they shall be, for good, and nobody will ask for them again: the source may give them back. One
    /// that does not do so does nothing.
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask).
    fn release(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        let _ = (export, ranges);
        Ok(())
    }

    /// When [`next`](Self::next) has something to say.
    fn readiness(&self) -> Readiness<'_>;

    /// Waits for some of the pages asked for, at most as long as the source's time-out.
    ///
    /// Every page asked for comes once, in one answer or another.
    ///
    /// # Errors
    ///
    /// The source is lost or cannot be believed. What was asked for will not come any more, and the
    /// source is good for nothing but to be dropped.
    fn next(&mut self) -> Result<Answer<'_>, SourceError>;
}

/// A source cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be reached, or reading from it failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Clear text is not meant, and would leave this machine.
    #[error(
        "{0} is not a loopback address: the memory would come from there in clear text, from whoever answers; --tls protects it, \
         --insecure says that this is meant"
    )]
    ClearText(SocketAddr),
    /// It cannot be made sure who it is.
    #[error("no protected connection to the source")]
    Tls {
        /// Why.
        #[source]
        source: TlsError,
    },
    /// It did not answer in time.
    #[error("{what}: no answer within {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// It ended the connection.
    #[error("the source closed the connection{}", if *.within { " in the middle of a frame" } else { "" })]
    Closed {
        /// In the middle of a frame.
        within: bool,
    },
    /// It sent something that breaks the protocol.
    #[error("the source broke the page protocol")]
    Protocol(#[from] WireError),
    /// It said no.
    #[error("the source refused: {text} ({code})")]
    Refused {
        /// Why, as a code.
        code: ErrorCode,
        /// Why, in the source's words.
        text: String,
    },
    /// Local memory cannot be opened.
    #[error("cannot open the source")]
    Memory(#[from] MemoryError),
    /// The question is not one: it is outside of the export, empty or too large.
    #[error("a question that cannot be asked: {0}")]
    BadQuestion(String),
}

impl SourceError {
    /// Whether a new connection may do better. A peer that speaks another language will not change
    /// it; one that is gone may come back, and a frame that was damaged on its way may arrive whole
    /// the next time.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { .. } | Self::TimedOut { .. } | Self::Closed { .. } => true,
            Self::Tls { source } => matches!(source, TlsError::Io(_) | TlsError::TimedOut(_) | TlsError::Broken(_)),
            Self::Protocol(error) => matches!(error, WireError::Checksum { .. }),
            Self::Refused { code, .. } => *code == ErrorCode::Busy,
            Self::ClearText(_) | Self::Memory(_) | Self::BadQuestion(_) => false,
        }
    }

    /// Whether the source is not there, or does not want, rather than to be believed no more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Tls { .. } | Self::TimedOut { .. } | Self::Closed { .. } | Self::Memory(_) => true,
            Self::ClearText(_) | Self::Protocol(_) | Self::BadQuestion(_) => false,
            Self::Refused { code, .. } => *code != ErrorCode::Protocol,
        }
    }
}
