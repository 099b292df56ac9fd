// SPDX-License-Identifier: GPL-2.0-or-later
//! The trait of a source whose program still runs.

use vmem::PageRange;

use crate::answer::Answer;
use crate::digest::Key;
use crate::error::Error;
use crate::export::{Export, ExportRanges};
use crate::holes::ExportHoles;
use crate::source::{PageSource, Readiness};

/// A source whose program still runs: it chooses the pages, and sends some of them again.
///
/// The destination *stages* what arrives: a later answer replaces the contents of an earlier one, and no page is valid before the list of
/// remaining pages is complete. Then all staged pages are valid that are not in the list.
///
/// Several connections of one destination can take part. All contents of a page come over the same one, and only the first gets the list. No
/// page is valid before each connection has ended its rounds ([`StagingEvent::End`]).
pub trait StagingSource: Send {
    /// The exports of the source, as [`PageSource::exports`].
    fn exports(&self) -> &[Export];

    /// Requests at most `max` pages that the source chooses, and does not wait for them. Requests are pipelined.
    ///
    /// # Errors
    ///
    /// The source is lost, or the call is not valid ([`Error::InvalidFetch`]): `max` is not in 1 to
    /// [`MAX_FETCH_PAGES`](crate::export::MAX_FETCH_PAGES), or the rounds are over.
    fn next(&mut self, max: u64) -> Result<(), Error>;

    /// Whether [`map`](Self::map) can be called.
    fn can_map(&self) -> bool {
        false
    }

    /// Asks which of `pages` are holes, as [`PageSource::map`]. Only before the first [`next`](Self::next).
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        Err(Error::InvalidFetch(format!("a map of {pages} of export {export}")))
    }

    /// Whether [`announce`](Self::announce) has an effect.
    fn can_hash(&self) -> bool {
        false
    }

    /// As [`PageSource::announce`].
    ///
    /// # Errors
    ///
    /// The source is lost.
    fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), Error> {
        let _ = (key, prefixes);
        Ok(())
    }

    /// When [`next_event`](Self::next_event) can return.
    fn readiness(&self) -> Readiness<'_>;

    /// Waits for the next event. A source that has nothing to send keeps the destination waiting for up to a second.
    ///
    /// # Errors
    ///
    /// The source is lost, or violates the protocol. Nothing that was staged is valid, and the caller must drop the source.
    fn next_event(&mut self) -> Result<StagingEvent<'_>, Error>;

    /// The same connection as a source of the remaining pages, for the stream. Only after [`StagingEvent::End`]: an earlier fetch is an error.
    fn into_source(self: Box<Self>) -> Box<dyn PageSource>;
}

/// What a [`StagingSource`] has sent.
#[derive(Debug)]
pub enum StagingEvent<'a> {
    /// Pages to stage, some of the answer to the oldest request. Unreadable pages are not staged.
    Pages(Answer<'a>),
    /// Holes of the next pages that a map was asked for: to be staged as zero. A page of them that is written later comes in a round.
    Holes(ExportHoles),
    /// The end of the answer to the oldest request.
    Batch {
        /// The round of its pages, from 1.
        round: u32,
        /// The program has stopped, and no more pages come in rounds. This comes once, and the remaining pages follow; on a connection that does
        /// not get them, [`End`](StagingEvent::End) follows, or has come instead. Requests that are outstanding now get no batch of their own.
        over: bool,
    },
    /// Pages whose staged contents are not valid, in the order in which they are best fetched. No page comes twice.
    Remainder(ExportRanges),
    /// The list of remaining pages is complete, or another connection gets it. Nothing comes any more that is not asked for.
    End,
}
