// SPDX-License-Identifier: GPL-2.0-or-later
//! Rounds: which pages a server sends while their program runs.

use std::error::Error as StdError;
use std::time::Duration;

use vmem::PageRange;

use crate::export::{Export, ExportRanges};
use crate::holes::Holes;

/// Chooses the pages that a destination stages while their program runs here.
///
/// One destination gets pages, over one connection or several, once: if one of them is lost, no other one goes on with the rounds, because
/// another destination would lack the pages that the first one was sent. One thread at a time calls [`next`](Self::next) or
/// [`remainder`](Self::remainder); those of other connections may call [`sent`](Self::sent) meanwhile.
pub trait Rounds: Send + Sync {
    /// The next pages to send, at most `max`, none twice. Their dirty state is cleaned and they are protected again before this returns: the
    /// server reads them after it, and sends all contents of one page over one connection, in the order of the calls. If there is nothing to send, it waits, a second at most, and returns a batch without pages.
    ///
    /// # Errors
    ///
    /// The rounds cannot go on. The server tells the destination and closes the connection.
    fn next(&self, max: u64) -> Result<Batch, RoundsError>;

    /// Takes `pages` out of the dirty log as [`next`](Self::next) does, and looks for holes in them with `holes` after that, which is about some
    /// of the pages from the first on. The destination is going to know these holes: they are not chosen in rounds before they are written.
    /// Returns what `holes` has returned, or fewer holes of the same pages. The server calls it only before the first [`next`](Self::next): the
    /// destination knows all holes before a page of the rounds is sent over any connection.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    fn map(&self, export: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, RoundsError> {
        let _ = (export, holes);
        Ok(Holes::none(pages))
    }

    /// What an answer came to, for statistics: `batch` has the pages of one call of [`next`](Self::next), or with several connections a part of
    /// them. The server calls it when the network has taken the answer.
    fn sent(&self, batch: &Batch, sent: &Sent);

    /// The pages whose staged contents are not valid, hottest first, none twice. The server calls it once, after the first batch that is
    /// over and when all pages of the rounds have arrived, and reads none of these pages before a destination asks for them.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError>;

    /// A connection ended before all of the remainder was sent, for whatever reason: also if another method failed or panicked. It must not
    /// panic.
    fn lost(&self);
}

/// Pages that are sent in one answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The round: from 1, and never less than that of an earlier batch.
    pub round: u32,
    /// The pages; `None` if there is nothing to send now.
    pub pages: Option<ExportRanges>,
    /// The program has stopped, the dirty log has been taken for the last time, and there are no pages to send in rounds any more.
    pub over: bool,
}

/// What was sent of a batch.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Pages sent with their contents.
    pub data: u64,
    /// Pages sent as zero pages.
    pub zero: u64,
    /// Pages sent as unreadable. The destination does not stage them.
    pub unreadable: u64,
    /// Pages of which the destination has the contents: their digests were sent.
    pub known: u64,
    /// Pages that were sent with the same contents before: nothing was sent.
    pub same: u64,
    /// Bytes of the frames.
    pub bytes: u64,
    /// From the choice of the pages until the network had taken the answer.
    pub elapsed: Duration,
}

/// Why the rounds cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct RoundsError {
    what: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl RoundsError {
    /// An error without a source. `what` names what failed: "cannot take the dirty log of guest0".
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: None,
        }
    }

    /// An error that `source` caused.
    #[must_use]
    pub fn with_source(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            what: what.into(),
            source: Some(source.into()),
        }
    }

    /// The text with those of its sources, for the ERROR of the destination.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut next = StdError::source(self);
        while let Some(source) = next {
            text = format!("{text}: {source}");
            next = source.source();
        }
        text
    }
}

impl Batch {
    /// Checks what a server relies on.
    pub(crate) fn check(&self, exports: &[Export], max: u64, least_round: u32) -> Result<(), RoundsError> {
        if self.round < least_round {
            let text = format!("the rounds went back: round {} where round {least_round} was due", self.round);
            return Err(RoundsError::new(text));
        }
        let Some(pages) = &self.pages else { return Ok(()) };
        check_inside(pages, exports)?;
        match pages.pages() {
            count if count <= max => Ok(()),
            count => Err(RoundsError::new(format!("{count} pages were chosen, of at most {max}"))),
        }
    }
}

/// Checks that all pages are those of an export.
pub(crate) fn check_inside(pages: &ExportRanges, exports: &[Export]) -> Result<(), RoundsError> {
    let Some(export) = exports.get(pages.export) else {
        let text = format!("pages of export {} were chosen, which does not exist", pages.export);
        return Err(RoundsError::new(text));
    };
    match pages.ranges.iter().find(|range| range.end() > export.pages.end()) {
        Some(range) => Err(RoundsError::new(format!(
            "{range} of {} were chosen, which has {} pages",
            export.name,
            export.pages.count()
        ))),
        None => Ok(()),
    }
}
