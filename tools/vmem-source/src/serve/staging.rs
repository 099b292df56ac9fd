// SPDX-License-Identifier: GPL-2.0
//! The one connection that stages pages in rounds, and when other connections may read.
//!
//! While the program runs, the contents of a page that a READ gets may change after it. So a server with [`Rounds`] refuses READs until the
//! staging connection has the list of the remaining pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::Error;
use crate::rounds::Rounds;

/// The rounds of a server, if it has any.
#[derive(Default)]
pub(super) struct Staging {
    rounds: OnceLock<Arc<dyn Rounds>>,
    phase: Mutex<Phase>,
    /// The program has stopped: what a READ gets does not change any more.
    has_stopped: AtomicBool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Phase {
    /// No connection has staged pages.
    #[default]
    Before,
    /// A connection stages pages.
    Rounds,
    /// The connection ended early. Another destination would lack the pages that it was sent: there are no rounds any more.
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
    /// [`Error::StagingBusy`]: another connection does.
    pub(super) fn claim(&self) -> Result<StagingConnection<'_>, Error> {
        let rounds = self.rounds.get().ok_or(Error::StagingBusy)?;
        let mut phase = self.lock();
        if *phase != Phase::Before {
            return Err(Error::StagingBusy);
        }
        *phase = Phase::Rounds;
        let rounds = Arc::clone(rounds);
        Ok(StagingConnection {
            staging: self,
            rounds,
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

/// The connection that stages pages. If it is dropped before [`finish`](Self::finish), also by a panic, the rounds are lost.
pub(super) struct StagingConnection<'a> {
    staging: &'a Staging,
    rounds: Arc<dyn Rounds>,
    finished: bool,
}

impl StagingConnection<'_> {
    pub(super) fn rounds(&self) -> &dyn Rounds {
        &*self.rounds
    }

    /// Ends the rounds with `send`, which sends the end of the list of the remaining pages. READs are allowed before it: the destination may
    /// send them on its other connection as soon as it has the list.
    pub(super) fn finish(mut self, send: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        *self.staging.lock() = Phase::Stopped;
        send()?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for StagingConnection<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let mut phase = self.staging.lock();
            *phase = match self.staging.has_stopped.load(Ordering::SeqCst) {
                true => Phase::Stopped,
                false => Phase::Lost,
            };
            drop(phase);
            self.rounds.lost();
        }
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
        let connection = staging.claim().expect("the first");
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
        let connection = staging.claim().expect("the first");
        let sent = connection.finish(|| Err(Error::Closed { mid_frame: false }));
        assert!(sent.is_err() && !staging.allows_reads() && !staging.is_offered());
        assert_eq!(rounds.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn connection_that_is_lost_after_the_program_has_stopped_does_not_prevent_reads() {
        let (staging, rounds) = started();
        let connection = staging.claim().expect("the first");
        staging.allow_reads();
        assert!(!staging.allows_reads(), "the list comes first");
        drop(connection);
        assert!(staging.allows_reads() && !staging.is_offered());
        assert_eq!(rounds.0.load(Ordering::Relaxed), 1);

        let (staging, _) = started();
        let connection = staging.claim().expect("the first");
        staging.allow_reads();
        let sent = connection.finish(|| Err(Error::Closed { mid_frame: false }));
        assert!(sent.is_err() && staging.allows_reads());

        let (staging, _) = started();
        drop(staging.claim().expect("the first"));
        assert!(!staging.allows_reads());
        staging.allow_reads();
        assert!(staging.allows_reads(), "the program stops later");
    }
}
