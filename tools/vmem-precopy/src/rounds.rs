// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds, for a thread that sends the pages and one that controls them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmem_pages::PageRange;
use vmem_source::rounds::{Batch, Rounds, RoundsError, Sent};
use vmem_source::{ExportRanges, Holes};

use crate::decision::{Decision, Reason};
use crate::error::Error;
use crate::memory::DirtyMemory;
use crate::plan::{Adjustment, Chosen, News, Options, Plan, SentPages};
use crate::progress::Defer;
use crate::statistics::{Remainder, RoundStatistics, Standing, Statistics};

/// Pre-copy of memory whose program runs.
///
/// One thread sends pages: it calls [`next`](Self::next), reads and sends these pages, calls [`sent`](Self::sent), and so on until a batch is
/// over. (A server with several connections has several such threads, and sees to it that no page is overtaken by its older contents.) Another thread waits for [`Event::Settled`], stops the program, and calls [`finish`](Self::finish).
pub struct PreCopy {
    state: Mutex<State>,
    /// The rounds are over, or nothing is in flight.
    idle: Condvar,
    /// There are events.
    news: Condvar,
    began: Instant,
}

struct State {
    plan: Plan,
    /// Since when there has been something to send that was not accounted for.
    busy_since: Option<Instant>,
    /// There was nothing to send before the latest batch.
    after_pause: bool,
    /// Pages that were chosen and not accounted for: other connections send them while one waits.
    in_flight: u64,
    lost: Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    No,
    /// And the control thread has not heard of it.
    Untold,
    Told,
}

/// What the control thread hears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A round has ended.
    Round(RoundStatistics),
    /// It is time to switch. Rounds go on until [`PreCopy::finish`]. This event comes once.
    Settled(Decision),
    /// The connection that sent the pages has ended. This event comes once, and is the last.
    Lost,
}

impl PreCopy {
    /// The longest time that [`next`](Self::next) waits.
    const WAIT: Duration = Duration::from_secs(1);
    /// How often the log is read when there is nothing to send.
    const POLL: Duration = Duration::from_millis(50);

    /// Begins. The memories are in the order of the exports.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], [`Error::NoMemory`], [`Error::FirstPage`].
    pub fn new(memories: Vec<Box<dyn DirtyMemory>>, options: Options) -> Result<Self, Error> {
        Ok(Self {
            state: Mutex::new(State {
                plan: Plan::new(memories, options, Defer::default())?,
                busy_since: None,
                after_pause: true,
                in_flight: 0,
                lost: Lost::No,
            }),
            idle: Condvar::new(),
            news: Condvar::new(),
            began: Instant::now(),
        })
    }

    /// The next pages to send, at most `max`, none twice. They are out of the dirty log before this returns: read them after it. If there is
    /// nothing to send, this waits, a second at most, and returns a batch without pages.
    ///
    /// # Errors
    ///
    /// [`Error::Log`], [`Error::Lost`].
    pub fn next(&self, max: u64) -> Result<Batch, Error> {
        let until = Instant::now() + Self::WAIT;
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if state.lost != Lost::No {
                return Err(Error::Lost);
            }
            let now = Instant::now();
            // A round whose last pages are still being sent by others would be told of without them.
            let may_end = state.in_flight == 0;
            let chosen = state.plan.next(now.saturating_duration_since(self.began), max, may_end);
            // Also after an error: a round may have ended before it.
            self.news.notify_all();
            let chosen = chosen?;
            let over = state.plan.is_finished();
            if over || chosen.is_some() || now >= until {
                if waited && state.in_flight == 0 || state.busy_since.is_none() {
                    state.busy_since = Some(now);
                    state.after_pause = true;
                }
                let round = chosen.as_ref().map_or(state.plan.round(), |chosen| chosen.round);
                let pages = chosen.map(|Chosen { memory, ranges, .. }| ExportRanges { export: memory, ranges });
                state.in_flight += pages.as_ref().map_or(0, ExportRanges::pages);
                return Ok(Batch { round, pages, over });
            }
            waited = true;
            let wait = Self::POLL.min(until.saturating_duration_since(now));
            state = self.idle.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes `pages` of a memory out of the dirty log, and finds holes in them after that with `holes`, which may be called twice. Of a log that
    /// began with all pages, only holes are taken, and those of less than 64 pages are not found. The destination is told of the holes: they are not chosen before they are written.
    ///
    /// # Errors
    ///
    /// [`Error::Log`], [`Error::Lost`].
    pub fn map(&self, memory: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, Error> {
        // A last take must not come between the holes and the note that they are not left.
        let mut state = self.lock();
        match state.lost {
            Lost::No => state.plan.map(memory, pages, holes),
            Lost::Untold | Lost::Told => Err(Error::Lost),
        }
    }

    /// What an answer came to, for statistics: one with the pages of `batch`, which [`next`](Self::next) has chosen, or with a part of them.
    pub fn sent(&self, batch: &Batch, sent: &Sent) {
        let mut state = self.lock();
        let now = Instant::now();
        let since = state.busy_since.replace(now);
        let Some(pages) = &batch.pages else { return };
        state.in_flight = state.in_flight.saturating_sub(pages.pages());
        // Longer than `sent.elapsed` if the destination was slow to ask: that limits the bandwidth, too. With several connections it is the time
        // since any of them has sent pages: the bandwidth is that of all together.
        let busy = since.map_or(sent.elapsed, |since| now.saturating_duration_since(since));
        let after_pause = std::mem::take(&mut state.after_pause);
        state.plan.note_sent(&SentPages {
            data: sent.data,
            zero: sent.zero,
            unreadable: sent.unreadable,
            known: sent.known,
            same: sent.same,
            bytes: sent.bytes,
            busy,
            after_pause,
            is_received: false,
        });
        if state.in_flight == 0 {
            self.idle.notify_all();
        }
    }

    /// The pages whose contents at the destination are not valid, the hottest first, none twice.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinished`] before [`finish`](Self::finish), [`Error::Lost`].
    pub fn remainder(&self) -> Result<Vec<ExportRanges>, Error> {
        let state = self.lock();
        if state.lost != Lost::No {
            return Err(Error::Lost);
        }
        if !state.plan.is_finished() {
            return Err(Error::NotFinished);
        }
        let remainder = state.plan.remainder().into_iter();
        Ok(remainder.map(|(export, ranges)| ExportRanges { export, ranges }).collect())
    }

    /// The connection ended before the remainder was sent. The destination's pages are lost with it, and the log ends: the program runs on,
    /// and nobody needs to know what it writes.
    pub fn lost(&self) {
        let mut state = self.lock();
        if state.lost == Lost::No {
            state.lost = Lost::Untold;
        }
        let logs = state.plan.end_logs();
        drop(state);
        self.news.notify_all();
        self.idle.notify_all();
        end(logs);
    }

    /// The program has stopped, and writes no more: takes what it has written out of the log for the last time, and ends the log. Returns what
    /// is left. [`next`](Self::next) returns from its wait.
    ///
    /// It can be called again, also after an error: no page is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Log`], [`Error::Lost`].
    pub fn finish(&self) -> Result<Remainder, Error> {
        let mut state = self.lock();
        if state.lost != Lost::No {
            return Err(Error::Lost);
        }
        let logs = match state.plan.is_finished() {
            true => Vec::new(),
            false => state.plan.finish()?,
        };
        let left = state.plan.left_over(state.in_flight);
        drop(state);
        self.idle.notify_all();
        end(logs);
        Ok(left)
    }

    /// The user wants to switch now: the next event is [`Event::Settled`], if it has not come before.
    ///
    /// # Errors
    ///
    /// [`Error::Log`]: nothing is decided. [`Error::Over`] after [`finish`](Self::finish), [`Error::Lost`].
    pub fn switch_now(&self) -> Result<(), Error> {
        let result = {
            let mut state = self.lock();
            match (state.lost, state.plan.is_finished()) {
                (Lost::No, false) => state.plan.decide(Reason::Requested),
                (Lost::No, true) => Err(Error::Over),
                _ => Err(Error::Lost),
            }
        };
        self.news.notify_all();
        result
    }

    /// Changes what ends the rounds, from now on: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`]; [`Error::Over`] after [`finish`](Self::finish), [`Error::Lost`].
    pub fn adjust(&self, adjustment: Adjustment) -> Result<(), Error> {
        let mut state = self.lock();
        if state.lost != Lost::No {
            return Err(Error::Lost);
        }
        state.plan.adjust(adjustment)
    }

    /// The user has limited the bandwidth to so many bytes per second, or has ended the limit: lower rates than before tell nothing of the
    /// network.
    pub fn set_bandwidth_limit(&self, limit: Option<u64>) {
        self.lock().plan.set_bandwidth_limit(limit);
    }

    /// Where the rounds stand; `None` once they are over or lost.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        let now = self.began.elapsed();
        let state = self.lock();
        let runs = state.lost == Lost::No && !state.plan.is_finished();
        runs.then(|| state.plan.standing(now))
    }

    /// The next event; `None` if there is none within the time.
    pub fn next_event(&self, timeout: Duration) -> Option<Event> {
        let state = self.lock();
        let nothing = |state: &mut State| !state.has_event();
        let waited = self.news.wait_timeout_while(state, timeout, nothing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.plan.news() {
            Some(News::Round(round)) => Some(Event::Round(round)),
            Some(News::Settled(decision)) => Some(Event::Settled(decision)),
            None if state.lost == Lost::Untold => {
                state.lost = Lost::Told;
                Some(Event::Lost)
            }
            None => None,
        }
    }

    /// What the rounds have done until now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let now = self.began.elapsed();
        self.lock().plan.statistics(now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // The thread that panicked may have taken pages out of the log that nobody knows of now.
            let mut state = poisoned.into_inner();
            if state.lost == Lost::No {
                state.lost = Lost::Untold;
            }
            state
        })
    }
}

/// Ends logs. That takes a tenth of a second, which the downtime need not contain. Without a thread they end here.
fn end(logs: Vec<Box<dyn DirtyMemory>>) {
    if !logs.is_empty() {
        let thread = std::thread::Builder::new().name("end-tracking".into());
        let _ = thread.spawn(move || drop(logs));
    }
}

impl Rounds for PreCopy {
    fn next(&self, max: u64) -> Result<Batch, RoundsError> {
        Ok(self.next(max)?)
    }

    fn map(&self, export: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, RoundsError> {
        Ok(self.map(export, pages, holes)?)
    }

    fn sent(&self, batch: &Batch, sent: &Sent) {
        self.sent(batch, sent);
    }

    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
        Ok(self.remainder()?)
    }

    fn lost(&self) {
        self.lost();
    }
}

impl From<Error> for RoundsError {
    fn from(error: Error) -> Self {
        let what = error.to_string();
        match error {
            Error::Log { source, .. } => Self::with_source(what, source),
            _ => Self::new(what),
        }
    }
}

impl State {
    fn has_event(&self) -> bool {
        self.plan.has_news() || self.lost == Lost::Untold
    }
}
