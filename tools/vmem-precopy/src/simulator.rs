// SPDX-License-Identifier: GPL-2.0-or-later
//! Pre-copy of recorded programs over links of a given bandwidth, in simulated time.

use std::sync::Arc;
use std::time::Duration;

use vmem_pages::{PAGE_SIZE, PageIndex, PageSet};

use crate::decision::time_to_send;
use crate::error::Error;
use crate::limits::{Limits, Mode};
use crate::memory::DirtyMemory;
use crate::order::{Permutation, mix};
use crate::plan::{Options, Plan, SentPages};
use crate::policy::{Policy, RoundEnd};
use crate::progress::Defer;
use crate::replay::Replay;
use crate::trace::Trace;
use crate::{Decision, Reason};

/// How the pages of a round are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// As [`PreCopy`](crate::PreCopy) does, with [`Defer::HotAndEarly`]: pages are taken out of the log just before they are sent.
    TakeBeforeSend {
        /// The mode of the policy.
        mode: Mode,
        /// Which pages wait.
        defer: Defer,
        /// Whether the log begins with all pages.
        begins_with_all: bool,
    },
    /// The log is cleaned when the round begins; pages that are in it again when it is their turn are skipped, if `skip` says so. The rounds
    /// end by the same policy.
    CleanAtStart {
        /// The mode of the policy.
        mode: Mode,
        /// Whether pages that were written again are skipped.
        skip: bool,
    },
    /// Xen: as above. The rounds end when fewer than 50 pages were to be sent, when a round has sent more than the one before, after 29
    /// rounds, or after three times the memory. Xen of 2006 skips pages, later ones do not.
    Xen {
        /// Whether pages that were written again are skipped.
        skip: bool,
    },
}

impl Scheme {
    /// What [`PreCopy`](crate::PreCopy) does.
    #[must_use]
    pub fn ours(mode: Mode) -> Self {
        Self::TakeBeforeSend {
            mode,
            defer: Defer::default(),
            begins_with_all: true,
        }
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Rounds, without what is sent at the end.
    pub rounds: u32,
    /// Pages sent in rounds.
    pub sent: u64,
    /// Pages that were left at the switch.
    pub pages_left: u64,
    /// How long it takes to send those.
    pub downtime: Duration,
    /// From the beginning until all is sent.
    pub total: Duration,
    /// Why the switch was then. Xen has other reasons.
    pub decision: Option<Decision>,
}

impl Outcome {
    /// Bytes of all pages that were sent: in rounds, and those that were left.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sent.saturating_add(self.pages_left).saturating_mul(PAGE_SIZE as u64)
    }
}

/// Pages that are chosen at once.
const BATCH: u64 = 512;

/// Runs pre-copy of the trace's program over a link of so many bytes per second. A page costs its bytes and nothing else; the switch
/// happens at the moment of the decision.
///
/// # Errors
///
/// [`Error::EmptyTrace`], [`Error::Bandwidth`], [`Error::Limit`].
pub fn simulate(trace: &Trace, bandwidth: u64, limits: Limits, scheme: Scheme) -> Result<Outcome, Error> {
    if trace.samples().is_empty() {
        return Err(Error::EmptyTrace);
    }
    if time_to_send(1, None, Some(bandwidth)).is_none_or(|time| time > Duration::from_secs(60)) {
        return Err(Error::Bandwidth(bandwidth));
    }
    let limits = limits.check()?;
    let begins_with_all = matches!(
        scheme,
        Scheme::TakeBeforeSend {
            begins_with_all: true,
            ..
        }
    );
    let replay = Replay::new(Arc::new(trace.clone()), begins_with_all);
    let link = Link { bandwidth };
    match scheme {
        Scheme::TakeBeforeSend { mode, defer, .. } => rounds(&replay, link, limits, mode, defer),
        Scheme::CleanAtStart { mode, skip } => {
            let policy = Policy::new(mode, limits, trace.pages().count());
            Ok(clean_at_start(&replay, link, skip, Stop::Policy(Box::new(policy))))
        }
        Scheme::Xen { skip } => Ok(clean_at_start(&replay, link, skip, Stop::Xen { last: u64::MAX })),
    }
}

#[derive(Clone, Copy)]
struct Link {
    bandwidth: u64,
}

impl Link {
    fn time(self, pages: u64) -> Duration {
        time_to_send(pages, None, Some(self.bandwidth)).unwrap_or(Duration::MAX)
    }

    fn outcome(self, now: Duration, rounds: u32, sent: u64, pages_left: u64, decision: Option<Decision>) -> Outcome {
        let downtime = self.time(pages_left);
        Outcome {
            rounds,
            sent,
            pages_left,
            downtime,
            total: now.saturating_add(downtime),
            decision,
        }
    }
}

fn rounds(replay: &Replay, link: Link, limits: Limits, mode: Mode, defer: Defer) -> Result<Outcome, Error> {
    let options = Options { mode, limits, seed: 1 };
    let mut plan = Plan::new(vec![Box::new(replay.clone())], options, defer)?;
    let mut now = Duration::ZERO;
    while plan.statistics(now).decision.is_none() {
        replay.advance(now);
        let Some(chosen) = plan.next(now, BATCH, true)? else {
            now += Duration::from_millis(1);
            continue;
        };
        let pages = chosen.ranges.iter().map(|range| range.count()).sum();
        let busy = link.time(pages);
        now = now.saturating_add(busy);
        plan.note_sent(&SentPages {
            data: pages,
            bytes: pages * PAGE_SIZE as u64,
            busy,
            is_received: true,
            ..SentPages::default()
        });
    }
    replay.advance(now);
    plan.finish()?;
    let statistics = plan.statistics(now);
    let left = statistics.remainder.unwrap_or_default();
    let ended = statistics.decision.map_or(0, |decision| decision.round);
    Ok(link.outcome(now, ended, statistics.sent, left, statistics.decision))
}

/// When rounds end that begin with a clean log.
enum Stop {
    Policy(Box<Policy>),
    Xen { last: u64 },
}

fn clean_at_start(replay: &Replay, link: Link, skip: bool, mut stop: Stop) -> Outcome {
    let all = replay.pages();
    let chunks = all.count().div_ceil(BATCH);
    let (mut now, mut total, mut to_send) = (Duration::ZERO, 0, PageSet::all_of(all));
    for round in 1.. {
        let order = Permutation::new(chunks, mix(u64::from(round)));
        let (mut sent, mut skipped, began) = (0, 0, now);
        for index in 0..chunks {
            let first = order.at(index) * BATCH;
            let Some(chunk) = vmem_pages::PageRange::from_pgoff(first, BATCH.min(all.end() - first)) else {
                break;
            };
            replay.advance(now);
            let again = replay.peek(chunk).dirty;
            let pages: u64 = to_send.runs_of(chunk).map(|run| run.count()).sum();
            let is_skipped = |page: &PageIndex| skip && again.contains(*page);
            let skips = to_send.runs_of(chunk).flat_map(|run| run.iter()).filter(is_skipped).count() as u64;
            sent += pages - skips;
            skipped += skips;
            now = now.saturating_add(link.time(pages - skips));
        }
        total += sent;
        replay.advance(now);
        to_send = replay.clean(all).dirty;
        let left = to_send.runs().map(|run| run.count()).sum();
        let decision = match &mut stop {
            Stop::Policy(policy) => {
                // A round that skips all of its pages takes no time.
                now += if now == began {
                    Duration::from_millis(1)
                } else {
                    Duration::ZERO
                };
                let rate = Some(link.bandwidth).filter(|_| sent > 0);
                let decision = policy.end_round(&RoundEnd {
                    round,
                    at: now,
                    left,
                    sent,
                    total,
                    rate,
                    bandwidth: Some(link.bandwidth),
                    page_bytes: None,
                });
                decision.map(Some)
            }
            Stop::Xen { last } => {
                let is_over = sent > *last || round >= 29 || sent + skipped < 50 || total > 3 * all.count();
                *last = sent;
                is_over.then_some(None)
            }
        };
        if let Some(decision) = decision {
            return link.outcome(now, round, total, left, decision);
        }
    }
    link.outcome(now, u32::MAX, total, 0, None)
}

/// What pre-copy in the mode [`Mode::Auto`] would come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// [`Mode::Precopy`] if what is left fits into the downtime, or else [`Mode::Hybrid`].
    pub mode: Mode,
    /// Rounds.
    pub rounds: u32,
    /// How long it takes to send what is left: the downtime without the time for the program's devices if it is sent while the program is
    /// stopped.
    pub downtime: Duration,
    /// Pages that are left.
    pub pages_left: u64,
    /// Bytes of all pages: those sent in rounds, and those that are left.
    pub bytes: u64,
    /// From the beginning until all pages are sent.
    pub total: Duration,
    /// Why the rounds end then.
    pub decision: Decision,
}

/// Predicts pre-copy of a program whose dirty log was recorded, over a link of so many bytes per second.
///
/// It runs the rounds on the trace. The prediction is as good as the trace: a page that is written more often than once an interval counts
/// once, so intervals should not be longer than the downtime. Zero pages and holes, which cost nothing, count as all others.
///
/// # Errors
///
/// [`Error::EmptyTrace`], [`Error::Bandwidth`], [`Error::Limit`].
pub fn predict(trace: &Trace, bandwidth: u64, limits: Limits) -> Result<Forecast, Error> {
    let outcome = simulate(trace, bandwidth, limits, Scheme::ours(Mode::Auto))?;
    let decision = outcome.decision.ok_or(Error::EmptyTrace)?;
    let fits = outcome.downtime <= limits.downtime || decision.reason == Reason::Fits;
    Ok(Forecast {
        mode: if fits { Mode::Precopy } else { Mode::Hybrid },
        rounds: outcome.rounds,
        downtime: outcome.downtime,
        pages_left: outcome.pages_left,
        bytes: outcome.bytes(),
        total: outcome.total,
        decision,
    })
}

impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} rounds, {} MiB in {:.1} s; {} pages left, {} ms",
            self.mode,
            self.rounds,
            self.bytes >> 20,
            self.total.as_secs_f64(),
            self.pages_left,
            self.downtime.as_millis()
        )
    }
}
