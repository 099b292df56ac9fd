// SPDX-License-Identifier: GPL-2.0-or-later
//! What the connections of the stream share: one plan, from which each page is taken once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmem::{PageRange, PageSet};
use vmem_source::Holes;

use crate::error::Error;
use crate::plan::Plan;
use crate::shared::Shared;
use crate::shortage::Shortage;
use crate::survey::{Survey, pieces_with};

/// How long a connection without pages waits until it looks whether the engine is stopped.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The connections of a stream.
///
/// A page is in the plan, or outstanding on one connection, or it has been applied. The stream is complete when all pages of its regions
/// have been applied. It cannot become incomplete again: only a connection with outstanding pages adds pages to the plan.
pub(crate) struct Group {
    state: Mutex<State>,
    /// Pages have come back into the plan, or the stream is complete.
    changed: Condvar,
    /// The most outstanding pages of one connection.
    window: u64,
}

struct State {
    plan: Plan,
    shortage: Shortage,
    /// Pages outstanding on all connections.
    outstanding: u64,
    /// Connections that have not ended.
    members: usize,
    /// Whether one of them notifies the source of arrived pages.
    has_notifier: bool,
    survey: SurveyState,
}

/// Whether the source has been asked for its holes, which one connection does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SurveyState {
    Due,
    Running,
    Done,
}

/// A connection of the group. Dropping it ends its membership, also if its thread panics.
pub(crate) struct Member<'a> {
    group: &'a Group,
    has_left: bool,
}

impl Group {
    /// A group of `members` connections for all absent pages of `regions`; those of `first` come first, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::Region`].
    pub(crate) fn new(
        shared: &Shared,
        regions: &[usize],
        first: impl IntoIterator<Item = (usize, PageRange)>,
        members: usize,
    ) -> Result<Self, Error> {
        let mut wanted = Vec::new();
        for region in 0..shared.sinks.len() {
            wanted.push(match regions.contains(&region) {
                true => absent(shared, region)?,
                false => PageSet::none_of(shared.exports[region].pages),
            });
        }
        let mut plan = Plan::new(wanted);
        plan.prefer(first.into_iter().collect());
        Ok(Self {
            state: Mutex::new(State {
                plan,
                shortage: Shortage::default(),
                outstanding: 0,
                members,
                has_notifier: false,
                survey: SurveyState::Due,
            }),
            changed: Condvar::new(),
            window: (shared.options.window / members.max(1) as u64).max(1),
        })
    }

    /// Those of `pages` that are absent come first, in this order.
    pub(super) fn prefer(&self, shared: &Shared, pages: VecDeque<(usize, PageRange)>) {
        let is_there = |(region, pages): &(usize, PageRange)| {
            shared
                .exports
                .get(*region)
                .is_some_and(|export| pages.end() <= export.pages.end())
        };
        let pages = pages.into_iter().filter(is_there).collect();
        self.lock().plan.prefer(pages);
    }

    /// Begins the membership of a connection, one of those that [`new`](Self::new) has counted.
    pub(super) fn enter(&self) -> Member<'_> {
        Member {
            group: self,
            has_left: false,
        }
    }

    /// The most pages that one connection has outstanding: its share of the window.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Takes the next pages of the plan, for a fetch; `None` if there are none now.
    pub(super) fn take(&self, shared: &Shared, max_pages: u64, max_runs: usize) -> Option<(usize, Vec<PageRange>)> {
        let mut state = self.lock();
        let State {
            plan,
            shortage,
            outstanding,
            ..
        } = &mut *state;
        for (region, page) in shared.take_faulted() {
            plan.follow(region, page);
        }
        let (region, runs) = loop {
            let (region, runs) = plan.next(max_pages, max_runs, |region| shortage.allows(region))?;
            let mut runs = absent_of(shared, region, runs);
            // Present pages between absent ones have made more runs.
            plan.requeue(region, &runs.split_off(max_runs.min(runs.len())));
            if !runs.is_empty() {
                break (region, runs);
            }
        };
        shortage.retry(region);
        *outstanding += runs.iter().map(|run| run.count()).sum::<u64>();
        Some((region, runs))
    }

    /// An answer of `pages` pages has been applied, but for those of `short`, which there was no memory for, and those of `missing`, which are not
    /// here although the source knew them to be.
    pub(super) fn received(&self, shared: &Shared, region: usize, pages: u64, short: &[PageRange], missing: &[PageRange]) {
        let mut state = self.lock();
        state.outstanding = state.outstanding.saturating_sub(pages);
        state.plan.requeue(region, missing);
        state.note_shortage(shared, region, short);
        if state.outstanding == 0 || !short.is_empty() || !missing.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Makes the calling connection the one that asks the source for holes, if none does or has. Returns what to ask for. Until the holes are known,
    /// their region's pages are not fetched. If so few pages of a region are absent that they are all fetched at once, nothing is asked.
    pub(super) fn claim_survey(&self, shared: &Shared) -> Option<Survey> {
        let mut state = self.lock();
        if state.survey != SurveyState::Due {
            return None;
        }
        let (mut pieces, plan) = (Vec::new(), &mut state.plan);
        for region in 0..shared.sinks.len() {
            let Some(wanted) = plan.wanted(region) else { continue };
            if wanted.runs().map(|run| run.count()).sum::<u64>() <= shared.options.window {
                continue;
            }
            let of_region = pieces_with(wanted);
            plan.know_up_to(region, 0);
            pieces.extend(of_region.into_iter().map(|pages| (region, pages)));
        }
        state.survey = match pieces.is_empty() {
            true => SurveyState::Done,
            false => SurveyState::Running,
        };
        (!pieces.is_empty()).then(|| Survey::of(pieces))
    }

    /// Holes have been applied, but for pages of `short`, which there was no memory for.
    pub(super) fn mapped(&self, shared: &Shared, region: usize, holes: &Holes, short: &[PageRange]) {
        let mut state = self.lock();
        state.plan.drop_holes(region, &holes.ranges);
        state.plan.know_up_to(region, holes.pages.end());
        state.note_shortage(shared, region, short);
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the duty of [`claim_survey`](Self::claim_survey). All pages are fetched from now on; unless the survey `is_complete`, another connection
    /// begins one.
    pub(super) fn end_survey(&self, is_complete: bool) {
        let mut state = self.lock();
        state.survey = if is_complete { SurveyState::Done } else { SurveyState::Due };
        state.plan.know_all();
        drop(state);
        self.changed.notify_all();
    }

    /// A connection is lost, and these pages were outstanding on it. Those that the urgent lane has brought meanwhile are not fetched again.
    pub(super) fn requeue(&self, shared: &Shared, lost: &[(usize, PageRange)]) -> Result<(), Error> {
        let mut absent_of: Vec<Option<PageSet>> = shared.sinks.iter().map(|_| None).collect();
        for (region, _) in lost {
            if absent_of[*region].is_none() {
                absent_of[*region] = Some(absent(shared, *region)?);
            }
        }
        let mut state = self.lock();
        for (region, range) in lost {
            let missing: Vec<_> = absent_of[*region].iter().flat_map(|absent| absent.runs_of(*range)).collect();
            state.plan.requeue(*region, &missing);
            state.outstanding = state.outstanding.saturating_sub(range.count());
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for a moment, if there is nothing to take. True if the stream is complete.
    pub(super) fn wait_until_complete(&self) -> bool {
        let mut state = self.lock();
        if state.outstanding == 0 {
            for region in state.shortage.all() {
                if !state.plan.wants(region) {
                    state.shortage.end(region);
                }
            }
        }
        if state.is_complete() {
            self.changed.notify_all();
            return true;
        }
        let pause = state.shortage.wait();
        if state.plan.is_empty() || pause.is_some() || state.survey == SurveyState::Running {
            let pause = pause.map_or(POLL_INTERVAL, |pause| pause.min(POLL_INTERVAL));
            // A spurious wake-up costs one look at the plan.
            drop(self.changed.wait_timeout(state, pause));
        }
        false
    }

    /// Whether all pages have been applied.
    pub(super) fn is_complete(&self) -> bool {
        self.lock().is_complete()
    }

    /// Makes the calling connection the one that notifies the source of arrived pages. False if another one is.
    pub(super) fn claim_notifications(&self) -> bool {
        !std::mem::replace(&mut self.lock().has_notifier, true)
    }

    /// Ends the duty of [`claim_notifications`](Self::claim_notifications).
    pub(super) fn end_notifications(&self) {
        self.lock().has_notifier = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in this file's short sections is a defect of the plan, which ends the run: see `Member`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// There was no memory for these pages of a region, or for all that came there was.
    fn note_shortage(&mut self, shared: &Shared, region: usize, short: &[PageRange]) {
        if short.is_empty() {
            self.shortage.end(region);
        } else {
            self.plan.requeue(region, short);
            if self.shortage.defer(region) {
                shared.report_no_memory(region);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.outstanding == 0 && self.plan.is_empty()
    }
}

impl Member<'_> {
    /// Ends the membership after `error`: an error of the stream as well, unless the source is only lost and another connection goes on or the stream
    /// is complete.
    pub(super) fn leave(mut self, error: Error) -> Result<(), Error> {
        let is_lost = matches!(&error, Error::Source(source) if source.is_transient());
        // The others may have ended because there is nothing left to do.
        let is_needed = self.end() == 0 && !self.group.is_complete();
        if is_lost && !is_needed { Ok(()) } else { Err(error) }
    }

    /// Ends the membership. Returns the number of the other members: of several that end at once, one finds that it is the last.
    fn end(&mut self) -> usize {
        let mut state = self.group.lock();
        if !std::mem::replace(&mut self.has_left, true) {
            state.members = state.members.saturating_sub(1);
            self.group.changed.notify_all();
        }
        state.members
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Those of `runs` that are absent, if pages become present without the engine; else all of them. Only work is saved by this: what cannot be told is
/// fetched, and a present page keeps its contents.
fn absent_of(shared: &Shared, region: usize, runs: Vec<PageRange>) -> Vec<PageRange> {
    if !shared.options.backed {
        return runs;
    }
    let mut absent = Vec::new();
    let look = |run: &PageRange| shared.sinks[region].absent(*run, &mut |pages| pages.append_to(&mut absent));
    match runs.iter().try_for_each(look) {
        Ok(()) => absent,
        Err(_) => runs,
    }
}

/// The absent pages of a region.
fn absent(shared: &Shared, region: usize) -> Result<PageSet, Error> {
    let all = shared.exports[region].pages;
    let mut absent = PageSet::none_of(all);
    shared.sinks[region]
        .absent(all, &mut |pages| absent.insert(pages))
        .map_err(shared.failed("read which pages are present in", region))?;
    Ok(absent)
}
