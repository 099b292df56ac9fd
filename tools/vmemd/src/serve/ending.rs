// SPDX-License-Identifier: GPL-2.0-or-later
//! Who ends the rounds. The log of writes, which slows the programs down, must not outlive its use: if no client is left that could say
//! `finish`, or say it again after it has failed, vmemd ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmem_wait::StopEvent;

/// How far the end of the rounds is.
#[derive(Debug)]
pub(super) struct Ending {
    state: Mutex<State>,
    stop: Arc<StopEvent>,
}

#[derive(Debug, Default)]
struct State {
    finish: Finish,
    /// The last client has gone.
    is_abandoned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Finish {
    /// Nobody has asked for the last take, or it has failed.
    #[default]
    Due,
    /// It is being made.
    Runs,
    /// It is made: the destination may need the pages.
    Done,
}

impl Ending {
    /// The end of rounds that run. `stop` ends vmemd.
    pub(super) fn new(stop: &Arc<StopEvent>) -> Self {
        Self {
            state: Mutex::default(),
            stop: Arc::clone(stop),
        }
    }

    /// The last take begins.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        if state.finish == Finish::Due {
            state.finish = Finish::Runs;
        }
    }

    /// The last take is made, or has failed.
    pub(super) fn end(&self, is_done: bool) {
        let mut state = self.lock();
        match is_done {
            true => state.finish = Finish::Done,
            false if state.finish != Finish::Done => state.finish = Finish::Due,
            false => {}
        }
        self.check(&state);
    }

    /// The last client has gone.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_abandoned = true;
        self.check(&state);
    }

    fn check(&self, state: &State) {
        if state.is_abandoned && state.finish == Finish::Due {
            tracing::warn!("the last client has gone, and the rounds are not finished: ending");
            self.stop.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is consistent even if a thread panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending() -> (Ending, Arc<StopEvent>) {
        let stop = Arc::new(StopEvent::new().expect("an eventfd"));
        (Ending::new(&stop), stop)
    }

    #[test]
    fn last_take_that_fails_when_the_last_client_has_gone_ends_vmemd() {
        let (ending, stop) = ending();
        ending.begin();
        ending.abandon();
        assert!(!stop.is_set(), "it may succeed");
        ending.end(false);
        assert!(stop.is_set());
    }

    #[test]
    fn client_that_goes_after_a_failed_take_ends_vmemd() {
        let (ending, stop) = ending();
        ending.begin();
        ending.end(false);
        assert!(!stop.is_set(), "it can say it again");
        ending.abandon();
        assert!(stop.is_set());
    }

    #[test]
    fn destination_may_need_the_pages_after_the_last_take() {
        let (ending, stop) = ending();
        ending.begin();
        ending.end(true);
        // A second one finds that nothing is left to do, or that the connection is lost meanwhile.
        ending.begin();
        ending.end(false);
        ending.abandon();
        assert!(!stop.is_set());
    }
}
