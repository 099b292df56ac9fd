// SPDX-License-Identifier: GPL-2.0-or-later
//! The connections that stage pages in rounds, and when other connections may read.
//!
//! While the program runs, the contents of a page that a READ gets may change after it. So a server with [`Rounds`] refuses READs until the
//! first staging connection has the list of the remaining pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmem::PageRange;

use super::group::Group;
use crate::error::Error;
use crate::export::Export;
use crate::holes::Holes;
use crate::rounds::{Batch, Rounds, RoundsError};
use crate::wire::session::{MAX_CONNECTIONS, Session, Token};

/// The rounds of a server, if it has any.
#[derive(Default)]
pub(super) struct Staging {
    rounds: OnceLock<Arc<dyn Rounds>>,
    /// The connections that stage pages: of one destination, once.
    group: OnceLock<Arc<Group>>,
    phase: Mutex<Phase>,
    /// The program has stopped: what a READ gets does not change any more.
    has_stopped: AtomicBool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Phase {
    /// No connection has staged pages.
    #[default]
    Before,
    /// A destination stages pages.
    Rounds,
    /// A staging connection ended early. Another destination would lack the pages that it was sent: there are no rounds any more.
    Lost,
    /// The list of the remaining pages is sent, or the program has stopped without rounds: READs are answered.
    Stopped,
}

impl Staging {
    /// Gives the server rounds, once: later calls do nothing.
    pub(super) fn start(&self, rounds: Arc<dyn Rounds>) {
        let _ = self.rounds.set(rounds);
    }

    /// Whether a destination that stages pages can be served, now or when another one has gone.
    pub(super) fn is_offered(&self) -> bool {
        self.rounds.get().is_some() && matches!(*self.lock(), Phase::Before | Phase::Rounds)
    }

    /// Begins to stage on the calling connection.
    ///
    /// # Errors
    ///
    /// [`Error::StagingBusy`]: another destination does. [`Error::Io`]: there are no random numbers.
    pub(super) fn claim(&self, exports: &[Export]) -> Result<StagingConnection<'_>, Error> {
        let rounds = self.rounds.get().ok_or(Error::StagingBusy)?;
        let token = Token::random().map_err(Error::Io)?;
        let mut phase = self.lock();
        if *phase != Phase::Before {
            return Err(Error::StagingBusy);
        }
        *phase = Phase::Rounds;
        let group = Arc::new(Group::new(Arc::clone(rounds), token, exports));
        // The phase is never `Before` again.
        let _ = self.group.set(Arc::clone(&group));
        Ok(StagingConnection {
            staging: self,
            group,
            number: 0,
            finished: false,
        })
    }

    /// Takes part in the rounds of the destination that was told `token`.
    ///
    /// # Errors
    ///
    /// [`Error::StagingBusy`]: there are no rounds to join, or enough connections. [`ProtocolError::Token`](crate::wire::ProtocolError::Token).
    pub(super) fn join(&self, token: Token) -> Result<StagingConnection<'_>, Error> {
        let group = self.group.get().ok_or(Error::StagingBusy)?;
        let number = group.join(token)?;
        Ok(StagingConnection {
            staging: self,
            group: Arc::clone(group),
            number,
            finished: false,
        })
    }

    /// Whether READs and RELEASEs are valid.
    pub(super) fn allows_reads(&self) -> bool {
        self.rounds.get().is_none() || *self.lock() == Phase::Stopped
    }

    /// Allows READs without rounds, because the program has stopped. While a connection stages pages, the end of its list allows them, or the
    /// loss of the connection: its destination may own the program already, and then needs all pages.
    pub(super) fn allow_reads(&self) {
        let mut phase = self.lock();
        self.has_stopped.store(true, Ordering::SeqCst);
        if *phase != Phase::Rounds {
            *phase = Phase::Stopped;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // The phase is consistent even if a thread panicked.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that stages pages. If one of a destination's is dropped before [`finish`](Self::finish), also by a panic, the rounds are lost.
pub(super) struct StagingConnection<'a> {
    staging: &'a Staging,
    group: Arc<Group>,
    number: u8,
    finished: bool,
}

impl StagingConnection<'_> {
    pub(super) fn rounds(&self) -> &dyn Rounds {
        self.group.rounds()
    }

    /// Whether it is the connection that began the rounds, and gets the list of the remaining pages.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// What other connections need to take part.
    pub(super) fn session(&self) -> Session {
        Session {
            token: self.group.token(),
            connections: MAX_CONNECTIONS,
        }
    }

    /// The next pages for this connection, at most `max`.
    ///
    /// # Errors
    ///
    /// Those of [`Rounds::next`], and the loss of another connection.
    pub(super) fn next(&self, max: u64, exports: &[Export]) -> Result<Batch, RoundsError> {
        self.group.next(self.number, max, exports)
    }

    /// Looks for holes before any connection of the destination has asked for pages.
    ///
    /// # Errors
    ///
    /// Those of [`Rounds::map`], and [`ProtocolError::LateMap`](crate::wire::ProtocolError::LateMap).
    pub(super) fn map(&self, export: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, Error> {
        self.group.map(export, pages, holes)
    }

    /// All pages that the connection was sent in rounds have arrived.
    pub(super) fn end(&self) {
        self.group.end(self.number);
    }

    /// Ends the rounds with `send`, which sends the end of the list of the remaining pages. READs are allowed before it: the destination may
    /// send them on its other connections as soon as it has the list.
    pub(super) fn finish(mut self, send: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        // From here on the other connections may end: their destination may have the end of the list before this thread knows.
        self.group.finish()?;
        *self.staging.lock() = Phase::Stopped;
        send()?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for StagingConnection<'_> {
    fn drop(&mut self) {
        if self.finished || !self.group.lose(self.is_first()) {
            return;
        }
        let mut phase = self.staging.lock();
        *phase = match self.staging.has_stopped.load(Ordering::SeqCst) {
            true => Phase::Stopped,
            false => Phase::Lost,
        };
        drop(phase);
        self.group.rounds().lost();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::export::ExportRanges;
    use crate::rounds::{Batch, RoundsError, Sent};

    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Rounds for Counting {
        fn next(&self, _: u64) -> Result<Batch, RoundsError> {
            Err(RoundsError::new("cannot be asked"))
        }

        fn sent(&self, _: &Batch, _: &Sent) {}

        fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
            Err(RoundsError::new("cannot be asked"))
        }

        fn lost(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn started() -> (Staging, Arc<Counting>) {
        let (staging, rounds) = (Staging::default(), Arc::new(Counting::default()));
        staging.start(rounds.clone());
        (staging, rounds)
    }

    #[test]
    fn reads_are_allowed_before_the_end_of_the_list_is_sent() {
        let (staging, rounds) = started();
        let connection = staging.claim(&[]).expect("the first");
        assert!(!staging.allows_reads());
        let sent = connection.finish(|| {
            assert!(staging.allows_reads());
            Ok(())
        });
        assert!(sent.is_ok() && staging.allows_reads());
        assert_eq!(rounds.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn end_of_the_list_that_cannot_be_sent_loses_the_rounds() {
        let (staging, rounds) = started();
        let connection = staging.claim(&[]).expect("the first");
        let sent = connection.finish(|| Err(Error::Closed { mid_frame: false }));
        assert!(sent.is_err() && !staging.allows_reads() && !staging.is_offered());
        assert_eq!(rounds.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn connection_that_is_lost_after_the_program_has_stopped_does_not_prevent_reads() {
        let (staging, rounds) = started();
        let connection = staging.claim(&[]).expect("the first");
        staging.allow_reads();
        assert!(!staging.allows_reads(), "the list comes first");
        drop(connection);
        assert!(staging.allows_reads() && !staging.is_offered());
        assert_eq!(rounds.0.load(Ordering::Relaxed), 1);

        let (staging, _) = started();
        let connection = staging.claim(&[]).expect("the first");
        staging.allow_reads();
        let sent = connection.finish(|| Err(Error::Closed { mid_frame: false }));
        assert!(sent.is_err() && staging.allows_reads());

        let (staging, _) = started();
        drop(staging.claim(&[]).expect("the first"));
        assert!(!staging.allows_reads());
        staging.allow_reads();
        assert!(staging.allows_reads(), "the program stops later");
    }
}
