// SPDX-License-Identifier: GPL-2.0-or-later
//! The trait of all kinds of `--source`.

use std::os::fd::BorrowedFd;

use vmem::PageRange;

use crate::answer::Answer;
use crate::digest::Key;
use crate::error::Error;
use crate::export::Export;
use crate::holes::ExportHoles;

/// When [`PageSource::next_answer`] can return.
#[derive(Clone, Copy, Debug)]
pub enum Readiness<'a> {
    /// It never waits: call it whenever pages are outstanding.
    Always,
    /// When this descriptor is readable. It is readable also when the source is lost, whether or not pages are outstanding.
    When(BorrowedFd<'a>),
}

/// A source of page contents.
///
/// A new kind of source (a block server, an object store, a checkpoint) implements this trait. The daemon opens the source once
/// for the urgent [`Lane`](crate::export::Lane), and once or several times for the stream, and uses each instance from one thread. Fetches are pipelined: the daemon calls
/// [`fetch`](Self::fetch) again while answers are outstanding. A source that reads a slow medium does so in threads of its own, and gives a
/// descriptor that becomes readable when an answer is ready.
///
/// A source that is not sure of the contents of a page returns an error, never contents.
pub trait PageSource: Send {
    /// The exports of the source. The index of an export is its number in the other calls, and does not change while the source is open.
    fn exports(&self) -> &[Export];

    /// Requests pages, and does not wait for them.
    ///
    /// At most [`MAX_FETCH_RANGES`](crate::export::MAX_FETCH_RANGES) ranges and [`MAX_FETCH_PAGES`](crate::export::MAX_FETCH_PAGES) pages, all inside of the export.
    ///
    /// # Errors
    ///
    /// The source is lost, or the ranges are not valid ([`Error::InvalidFetch`]).
    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error>;

    /// As [`fetch`](Self::fetch), of pages that nobody waits for yet. A source that can tell the two apart lets those that are waited for overtake
    /// them.
    ///
    /// # Errors
    ///
    /// As for [`fetch`](Self::fetch).
    fn fetch_ahead(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        self.fetch(export, ranges)
    }

    /// Tells the source that the destination has these pages for good and will not fetch them again: the source may release their memory. A
    /// source that releases nothing ignores the call.
    ///
    /// # Errors
    ///
    /// As for [`fetch`](Self::fetch).
    fn release(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), Error> {
        let _ = (export, ranges);
        Ok(())
    }

    /// The pages that are best fetched first, with the numbers of their exports, in this order; those that are not named follow. A source whose pages
    /// can be fetched in any order names none. It is only a hint: a source that cannot tell now names none, either. It may take as long as an
    /// answer, and is called before the first fetch of a stream.
    fn preferred(&mut self) -> Vec<(usize, PageRange)> {
        Vec::new()
    }

    /// Pages that came to the source with those of the latest answer, with the numbers of their exports: to fetch them now costs little. It is a
    /// hint, and does not wait. A source whose pages come alone names none.
    fn nearby(&mut self) -> Vec<(usize, PageRange)> {
        Vec::new()
    }

    /// Says that [`nearby`](Self::nearby) is never called: a source need not find these pages.
    fn skip_nearby(&mut self) {}

    /// Whether [`map`](Self::map) can be called.
    fn can_map(&self) -> bool {
        false
    }

    /// Asks which of `pages` are holes, at most [`MAX_MAP_PAGES`](crate::holes::MAX_MAP_PAGES), and does not wait for the answer, which
    /// [`next_reply`](Self::next_reply) returns, in parts.
    ///
    /// # Errors
    ///
    /// The source is lost, or the call is not valid ([`Error::InvalidFetch`]): this source [`can_map`](Self::can_map) not, or has no such pages.
    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), Error> {
        Err(Error::InvalidFetch(format!("a map of {pages} of export {export}")))
    }

    /// Whether [`announce`](Self::announce) has an effect.
    fn can_hash(&self) -> bool {
        false
    }

    /// Tells the source that the caller has contents whose digests by `key` have these beginnings ([`Digest::prefix`](crate::digest::Digest::prefix)):
    /// answers may have [`Contents::Known`](crate::Contents::Known) from now on. None of them withdraws all that were announced. The key is the same in
    /// each call. Only while no page is outstanding, unless it withdraws.
    ///
    /// # Errors
    ///
    /// As for [`fetch`](Self::fetch).
    fn announce(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), Error> {
        let _ = (key, prefixes);
        Ok(())
    }

    /// When [`next_answer`](Self::next_answer) can return.
    fn readiness(&self) -> Readiness<'_>;

    /// Waits for some of the outstanding pages, at most for the timeout of the source. Each page that was fetched is in exactly one answer.
    ///
    /// # Errors
    ///
    /// The source is lost, or violates the protocol. Outstanding pages will not arrive any more, and the caller must drop the source.
    fn next_answer(&mut self) -> Result<Answer<'_>, Error>;

    /// As [`next_answer`](Self::next_answer), for a caller that has called [`map`](Self::map): the answers to that are among those of the fetches.
    ///
    /// # Errors
    ///
    /// As for [`next_answer`](Self::next_answer).
    fn next_reply(&mut self) -> Result<Reply<'_>, Error> {
        self.next_answer().map(Reply::Pages)
    }
}

/// What a [`PageSource`] has sent.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Some of the pages that were fetched.
    Pages(Answer<'a>),
    /// Holes of the next pages that a map was asked for.
    Holes(ExportHoles),
}
