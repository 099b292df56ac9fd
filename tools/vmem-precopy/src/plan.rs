// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds over all memories: which pages are next. Without threads or a clock.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use vmem_pages::PageRange;
use vmem_source::Holes;

use crate::bandwidth::{Bandwidth, Transfer};
use crate::decision::{Decision, Reason, time_to_send};
use crate::error::{Error, LogAction};
use crate::heat::Heat;
use crate::limits::{Limits, Mode};
use crate::memory::DirtyMemory;
use crate::order::{Permutation, mix};
use crate::policy::{Policy, RoundEnd};
use crate::progress::{Defer, Pass, Progress, WORD};
use crate::statistics::{Remainder, RoundStatistics, Standing, Statistics};

/// How the rounds are to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What ends them.
    pub mode: Mode,
    /// When they end at the latest.
    pub limits: Limits,
    /// Determines the order of the pages.
    pub seed: u64,
}

/// What is changed while the rounds run. What is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adjustment {
    /// What ends the rounds.
    pub mode: Option<Mode>,
    /// The downtime that is allowed.
    pub downtime: Option<Duration>,
}

/// Pages of one memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) round: u32,
    pub(crate) memory: usize,
    pub(crate) ranges: Vec<PageRange>,
}

/// What was sent of chosen pages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SentPages {
    pub(crate) data: u64,
    pub(crate) zero: u64,
    pub(crate) unreadable: u64,
    pub(crate) known: u64,
    pub(crate) same: u64,
    pub(crate) bytes: u64,
    /// The time in which there was something to send, since the pages before.
    pub(crate) busy: Duration,
    /// There was nothing to send just before.
    pub(crate) after_pause: bool,
    /// The bytes are known to be at the destination.
    pub(crate) is_received: bool,
}

/// The rounds.
///
/// The order of a round is that of a permutation of *chunks* of the memory. Each chunk is taken out of the log just before its pages are
/// chosen. Pages that are hot wait for the end of the round, the hottest longest.
pub(crate) struct Plan {
    memories: Vec<Progress>,
    /// The first chunk of each memory, in the order of the memories.
    first_chunks: Vec<u64>,
    policy: Policy,
    bandwidth: Bandwidth,
    seed: u64,
    defer: Defer,
    /// The shortest time from the beginning of a round to that of the next one.
    interval: Duration,
    order: Permutation,
    /// How many chunks of the order of the first round have been taken out of a log that began with all pages.
    opened: u64,
    /// Where the round is; `None` between rounds.
    position: Option<Position>,
    began: Duration,
    /// Of the round that runs, or of the next one.
    now: RoundStatistics,
    history: VecDeque<RoundStatistics>,
    sent: u64,
    bytes: u64,
    decision: Option<Decision>,
    news: VecDeque<News>,
    finished: bool,
}

/// What the control thread hears.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News {
    Round(RoundStatistics),
    Settled(Decision),
}

#[derive(Debug, Clone, Copy)]
struct Position {
    pass: Pass,
    /// The index in the order.
    index: u64,
    /// The words of the chunk that are done.
    done: usize,
}

impl Position {
    const BEGIN: Self = Self {
        pass: Pass::Main,
        index: 0,
        done: 0,
    };
}

/// Words of a chunk: 512 pages, which is a huge page. So contiguous pages are read, sent and written together.
const CHUNK: usize = 8;

/// Rounds that are remembered, and news that nobody has heard.
const HISTORY: usize = 1024;

impl Plan {
    /// The shortest time from the beginning of a round to that of the next one. While a few hot pages are all that is left, rounds would
    /// follow each other too fast to tell anything about the program.
    const INTERVAL: Duration = Duration::from_millis(100);
    /// Chunks are taken ahead of their turn out of a log that began with all pages: by one part in so many of all chunks.
    const AHEAD: u64 = 4;

    pub(crate) fn new(logs: Vec<Box<dyn DirtyMemory>>, options: Options, defer: Defer) -> Result<Self, Error> {
        let limits = options.limits.check()?;
        if let Some(memory) = logs.iter().position(|log| log.pages().first().get() != 0) {
            return Err(Error::FirstPage(memory));
        }
        let memories: Vec<Progress> = logs.into_iter().map(Progress::new).collect();
        let mut chunks = 0;
        let first_chunks: Vec<u64> = memories
            .iter()
            .map(|memory| {
                let first = chunks;
                chunks += memory.words().div_ceil(CHUNK) as u64;
                first
            })
            .collect();
        let pages = memories.iter().map(|memory| memory.pages().count()).sum();
        if pages == 0 {
            return Err(Error::NoMemory);
        }
        Ok(Self {
            memories,
            first_chunks,
            policy: Policy::new(options.mode, limits, pages),
            bandwidth: Bandwidth::default(),
            seed: options.seed,
            defer,
            interval: limits.downtime.min(Self::INTERVAL),
            order: Permutation::new(chunks, options.seed),
            opened: 0,
            position: None,
            began: Duration::ZERO,
            now: RoundStatistics {
                round: 1,
                left: pages,
                ..RoundStatistics::default()
            },
            history: VecDeque::new(),
            sent: 0,
            bytes: 0,
            decision: None,
            news: VecDeque::new(),
            finished: false,
        })
    }

    /// The next pages, at most `max`, out of the log. `None` if there is nothing to send now. A round ends only if `may_end`, when what was sent
    /// of all its pages is noted.
    pub(crate) fn next(&mut self, now: Duration, max: u64, may_end: bool) -> Result<Option<Chosen>, Error> {
        if self.finished {
            return Ok(None);
        }
        if self.position.is_none() && !self.begin_round(now)? {
            return Ok(None);
        }
        if self.policy.is_over_factor(self.sent) && self.decision.is_none() {
            self.decide(Reason::Factor)?;
        }
        if let Some(chosen) = self.choose(max.max(1))? {
            return Ok(Some(chosen));
        }
        if !may_end {
            return Ok(None);
        }
        self.end_round(now)?;
        match self.begin_round(now)? {
            true => self.choose(max.max(1)),
            false => Ok(None),
        }
    }

    /// Takes pages of a memory out of the log, and finds holes in them after that with `holes` ([`Progress::map`]). They are not chosen before they
    /// are written.
    pub(crate) fn map(
        &mut self,
        memory: usize,
        pages: PageRange,
        holes: &mut dyn FnMut(PageRange) -> Holes,
    ) -> Result<Holes, Error> {
        // When the log has ended, it does not see what is written after the take.
        let Some(progress) = self.memories.get_mut(memory).filter(|_| !self.finished) else {
            return Ok(Holes::none(pages));
        };
        let map = progress.map(pages, holes, &mut self.now);
        let holes = map.map_err(log_error(LogAction::Clean, memory))?;
        self.sent += holes.count();
        Ok(holes)
    }

    /// Begins the next round, if it is time and anything is left.
    fn begin_round(&mut self, now: Duration) -> Result<bool, Error> {
        let is_first = self.now.round == 1;
        if !is_first && now < self.began + self.interval {
            return Ok(false);
        }
        if is_first {
            self.began = now;
        } else {
            self.peek()?;
            self.now.left = self.left();
            if self.now.left == 0 {
                return Ok(false);
            }
            self.memories.iter_mut().for_each(Progress::begin_round);
        }
        self.began = now;
        self.order = Permutation::new(self.order.len(), mix(self.seed ^ u64::from(self.now.round)));
        self.position = Some(Position::BEGIN);
        Ok(true)
    }

    /// Ends the round, and decides whether to switch.
    fn end_round(&mut self, now: Duration) -> Result<(), Error> {
        self.peek()?;
        self.position = None;
        let round = RoundStatistics {
            left: self.left(),
            elapsed: now.saturating_sub(self.began),
            ..self.now
        };
        self.now = RoundStatistics {
            round: round.round.saturating_add(1),
            left: round.left,
            ..RoundStatistics::default()
        };
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(round);
        self.tell(News::Round(round));
        if self.decision.is_none() {
            let end = RoundEnd {
                at: now,
                rate: round.rate(),
                sent: round.sent,
                ..self.round_end(round.round, round.left)
            };
            self.decision = self.policy.end_round(&end);
            self.decision
                .into_iter()
                .for_each(|decision| self.tell(News::Settled(decision)));
        }
        Ok(())
    }

    /// Decides to switch for this reason, if that is not decided yet.
    pub(crate) fn decide(&mut self, reason: Reason) -> Result<(), Error> {
        if self.decision.is_some() || self.finished {
            return Ok(());
        }
        self.peek()?;
        let decision = self.policy.decide(reason, &self.round_end(self.now.round, self.left()));
        self.decision = Some(decision);
        self.tell(News::Settled(decision));
        Ok(())
    }

    fn round_end(&self, round: u32, left: u64) -> RoundEnd {
        RoundEnd {
            round,
            left,
            total: self.sent,
            bandwidth: self.bandwidth.get(),
            page_bytes: self.bandwidth.page_bytes(),
            ..RoundEnd::default()
        }
    }

    fn tell(&mut self, news: News) {
        if self.news.len() >= HISTORY {
            // The decision is told once, and must be heard.
            let oldest = self.news.iter().position(|news| matches!(news, News::Round(_)));
            oldest.and_then(|oldest| self.news.remove(oldest));
        }
        self.news.push_back(news);
    }

    pub(crate) fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    fn peek(&mut self) -> Result<(), Error> {
        for (at, memory) in self.memories.iter_mut().enumerate() {
            memory.peek(&mut self.now).map_err(log_error(LogAction::Peek, at))?;
        }
        Ok(())
    }

    fn left(&self) -> u64 {
        self.memories.iter().map(Progress::left).sum()
    }

    /// The next pages of the round; `None` at its end. All are of one memory.
    fn choose(&mut self, max: u64) -> Result<Option<Chosen>, Error> {
        let mut chosen = Chosen {
            round: self.now.round,
            memory: 0,
            ranges: Vec::new(),
        };
        let mut room = max;
        while room > 0 {
            let Some((position, memory, words)) = self.next_work() else {
                break;
            };
            if !chosen.ranges.is_empty() && memory != chosen.memory {
                break;
            }
            match self.open_ahead(position.index) {
                Ok(()) => (),
                // The pages that were chosen before the error are out of the log: they must not get lost with it.
                Err(_) if !chosen.ranges.is_empty() => break,
                Err(error) => return Err(error),
            }
            chosen.memory = memory;
            let before = room;
            let (end, first) = (words.end, words.start - position.done);
            let choice =
                self.memories[memory].choose(words, position.pass, self.defer, &mut room, &mut chosen.ranges, &mut self.now);
            self.sent += before - room;
            match choice {
                Ok(next) => {
                    let is_done = next >= end;
                    self.position = Some(Position {
                        index: position.index + u64::from(is_done),
                        done: if is_done { 0 } else { next - first },
                        ..position
                    });
                }
                // The pages that were chosen before the error are out of the log: they must not get lost with it.
                Err(_) if !chosen.ranges.is_empty() => break,
                Err(error) => return Err(log_error(LogAction::Clean, memory)(error)),
            }
        }
        Ok(Some(chosen).filter(|chosen| !chosen.ranges.is_empty()))
    }

    /// Moves on to the next chunk that has something to do: its memory, and the words that are not done. `None` at the end of the round.
    fn next_work(&mut self) -> Option<(Position, usize, Range<usize>)> {
        let mut position = self.position?;
        loop {
            while position.index < self.order.len() {
                let (memory, words) = self.chunk(self.order.at(position.index));
                let words = words.start + position.done..words.end;
                if self.memories[memory].has_work(words.clone(), position.pass) {
                    self.position = Some(position);
                    return Some((position, memory, words));
                }
                position.index += 1;
                position.done = 0;
            }
            let pass = match position.pass {
                Pass::Main => Pass::Deferred(1),
                Pass::Deferred(Heat::MAX) => {
                    self.position = Some(position);
                    return None;
                }
                Pass::Deferred(heat) => Pass::Deferred(heat + 1),
            };
            position = Position { pass, ..Position::BEGIN };
        }
    }

    /// In the first round, takes chunks some time before their turn out of logs that began with all pages: of these chunks they tell from then on
    /// which pages are written. Not many at once, which would keep the chunk at `index` from being sent.
    fn open_ahead(&mut self, index: u64) -> Result<(), Error> {
        if self.now.round != 1 {
            return Ok(());
        }
        let ahead = index.min(self.order.len() / Self::AHEAD);
        let end = index.saturating_add(1 + ahead).min(self.order.len());
        while self.opened < end {
            let (memory, words) = self.chunk(self.order.at(self.opened));
            let progress = &mut self.memories[memory];
            progress
                .open(words, &mut self.now)
                .map_err(log_error(LogAction::Clean, memory))?;
            self.opened += 1;
        }
        Ok(())
    }

    /// The memory and the words of a chunk.
    fn chunk(&self, chunk: u64) -> (usize, Range<usize>) {
        let memory = self.first_chunks.partition_point(|first| *first <= chunk) - 1;
        let first = (chunk - self.first_chunks[memory]) as usize * CHUNK;
        (memory, first..(first + CHUNK).min(self.memories[memory].words()))
    }

    /// Notes what was sent of the pages that were chosen last.
    pub(crate) fn note_sent(&mut self, sent: &SentPages) {
        self.now.bytes = self.now.bytes.saturating_add(sent.bytes);
        self.now.zero = self.now.zero.saturating_add(sent.zero);
        self.now.unreadable = self.now.unreadable.saturating_add(sent.unreadable);
        self.now.known = self.now.known.saturating_add(sent.known);
        self.now.same = self.now.same.saturating_add(sent.same);
        self.now.busy = self.now.busy.saturating_add(sent.busy);
        self.bytes = self.bytes.saturating_add(sent.bytes);
        let without = [sent.zero, sent.unreadable, sent.known, sent.same];
        self.bandwidth.add(&Transfer {
            bytes: sent.bytes,
            data: sent.data,
            zero: without.into_iter().fold(0, u64::saturating_add),
            busy: sent.busy,
            after_pause: sent.after_pause,
            is_received: sent.is_received,
        });
    }

    /// The user has set another limit of the bandwidth, in bytes per second, or none.
    pub(crate) fn set_bandwidth_limit(&mut self, limit: Option<u64>) {
        if self.bandwidth.limit() != limit {
            self.bandwidth.set_limit(limit);
            self.policy.forget_bandwidth();
        }
    }

    /// Changes all of it, or nothing.
    pub(crate) fn adjust(&mut self, adjustment: Adjustment) -> Result<(), Error> {
        if self.finished {
            return Err(Error::Over);
        }
        let before = *self.policy.limits();
        let downtime = adjustment.downtime.unwrap_or(before.downtime);
        let limits = Limits { downtime, ..before }.check()?;
        self.policy.set_limits(limits);
        self.interval = limits.downtime.min(Self::INTERVAL);
        if let Some(mode) = adjustment.mode {
            self.policy.set_mode(mode);
        }
        Ok(())
    }

    /// The last take, when the program has stopped. Returns the logs, so that they can end. After an error it can be called again: no page
    /// is lost.
    pub(crate) fn finish(&mut self) -> Result<Vec<Box<dyn DirtyMemory>>, Error> {
        for (at, memory) in self.memories.iter_mut().enumerate() {
            memory.finish(&mut self.now).map_err(log_error(LogAction::Clean, at))?;
        }
        self.finished = true;
        Ok(self.end_logs())
    }

    /// The logs, so that they can end. No pages can be chosen after it.
    pub(crate) fn end_logs(&mut self) -> Vec<Box<dyn DirtyMemory>> {
        self.memories.iter_mut().filter_map(Progress::end_log).collect()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(crate) fn round(&self) -> u32 {
        self.now.round
    }

    /// The pages whose contents at the destination are not valid, the hottest first. Only after [`Plan::finish`].
    pub(crate) fn remainder(&self) -> Vec<(usize, Vec<PageRange>)> {
        let heats = (0..=Heat::MAX).rev();
        let by_heat = heats.flat_map(|heat| self.memories.iter().map(move |memory| memory.remainder(heat)).enumerate());
        by_heat.filter(|(_, ranges)| !ranges.is_empty()).collect()
    }

    /// What the last take has left. `in_flight` pages that are chosen are sent before it.
    pub(crate) fn left_over(&self, in_flight: u64) -> Remainder {
        let pages = self.left();
        let expected = self.time_to_send(pages.saturating_add(in_flight));
        Remainder {
            pages,
            expected,
            fits: expected.is_some_and(|expected| expected <= self.policy.limits().downtime),
        }
    }

    /// How long it takes to send so many pages, if the network and the contents stay as they are.
    fn time_to_send(&self, pages: u64) -> Option<Duration> {
        time_to_send(pages, self.bandwidth.page_bytes(), self.bandwidth.get())
    }

    /// Where the rounds stand.
    pub(crate) fn standing(&self, now: Duration) -> Standing {
        let left = self.left();
        Standing {
            mode: self.policy.mode(),
            downtime: self.policy.limits().downtime,
            now: self.now(now),
            before: self.history.back().copied(),
            pages: self.pages(),
            left,
            bytes: self.bytes,
            bandwidth: self.bandwidth.get(),
            limit: self.bandwidth.limit(),
            expected: self.time_to_send(left),
        }
    }

    fn pages(&self) -> u64 {
        self.memories.iter().map(|memory| memory.pages().count()).sum()
    }

    /// The round that runs, or the next one.
    fn now(&self, now: Duration) -> RoundStatistics {
        let elapsed = if self.position.is_some() {
            now.saturating_sub(self.began)
        } else {
            Duration::ZERO
        };
        RoundStatistics { elapsed, ..self.now }
    }

    pub(crate) fn statistics(&self, now: Duration) -> Statistics {
        Statistics {
            rounds: self.history.iter().copied().collect(),
            now: self.now(now),
            pages: self.pages(),
            sent: self.sent,
            bytes: self.bytes,
            bandwidth: self.bandwidth.get(),
            decision: self.decision,
            remainder: self.finished.then(|| self.left()),
        }
    }
}

fn log_error(action: LogAction, memory: usize) -> impl FnOnce(vmem::Error) -> Error {
    move |source| Error::Log { action, memory, source }
}

const _: () = assert!(CHUNK as u64 * WORD == 512);
