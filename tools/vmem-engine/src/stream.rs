// SPDX-License-Identifier: GPL-2.0
//! The stream lane: fetches all absent pages, continuing behind the latest fault.

use std::collections::VecDeque;
use std::sync::Arc;

use vmem::{PageRange, PageSet};
use vmem_source::{ExportHoles, Reply};

use crate::apply::{apply, apply_holes, apply_known};
use crate::connection::Connection;
use crate::error::Error;
use crate::plan::Plan;
use crate::readiness::wait;
use crate::release_notifier::ReleaseNotifier;
use crate::seed::Announcer;
use crate::shared::{Interruption, Shared};
use crate::shortage::Shortage;
use crate::survey::{Survey, pieces_with};

/// Pages of one fetch (1 MiB): large enough that the cost of a fetch does not matter, small enough to follow the faults.
const FETCH_PAGES: u64 = 256;

/// Runs of one fetch.
const FETCH_RUNS: usize = 256;

/// The most runs of all outstanding fetches: few enough that they fit into the source's socket while the source is busy with answers, however
/// scattered the pages are. A fetch never waits until an answer is read.
const MAX_RUNS: usize = 1024;

/// Fetches every absent page of these regions once, those of `first` in this order before all others, and ends when all have arrived.
pub(crate) fn run(
    shared: &Arc<Shared>,
    connection: Connection,
    regions: &[usize],
    first: VecDeque<(usize, PageRange)>,
) -> Result<(), Error> {
    let mut plan = absent(shared, regions)?;
    plan.prefer(first);
    let survey = survey_of(shared, &connection, &mut plan);
    let announcer = Announcer::new(shared.options.seed.as_ref(), connection.can_hash());
    let mut stream = Stream {
        shared,
        connection,
        plan,
        survey,
        announcer,
        outstanding: Outstanding::default(),
        shortage: Shortage::default(),
        notifier: ReleaseNotifier::new(),
    };
    while !shared.stop.is_set() {
        match stream.turn() {
            Ok(true) => {}
            Ok(false) => break,
            Err(Interruption::Error(error)) => return Err(error),
            Err(Interruption::Source(error)) => {
                stream.connection.reconnect(error)?;
                stream.outstanding = Outstanding::default();
                stream.plan = absent(shared, regions)?;
                stream.survey = survey_of(shared, &stream.connection, &mut stream.plan);
                stream.announcer = Announcer::new(shared.options.seed.as_ref(), stream.connection.can_hash());
                // The latest notifications may not have arrived.
                stream.notifier = ReleaseNotifier::new();
            }
        }
    }
    Ok(())
}

struct Stream<'a> {
    shared: &'a Shared,
    connection: Connection,
    plan: Plan,
    survey: Survey,
    announcer: Announcer,
    outstanding: Outstanding,
    shortage: Shortage,
    notifier: ReleaseNotifier,
}

/// Fetches of this connection that are not answered in full.
#[derive(Default)]
struct Outstanding {
    /// The outstanding pages, and the runs, of each fetch.
    fetches: VecDeque<(u64, usize)>,
    pages: u64,
    runs: usize,
}

impl Outstanding {
    fn add(&mut self, runs: &[PageRange]) {
        let pages = runs.iter().map(|run| run.count()).sum();
        self.fetches.push_back((pages, runs.len()));
        self.pages += pages;
        self.runs += runs.len();
    }

    /// The next `pages` have arrived: fetches are answered in order.
    fn received(&mut self, mut pages: u64) {
        self.pages = self.pages.saturating_sub(pages);
        while let Some((left, runs)) = self.fetches.front_mut() {
            let taken = pages.min(*left);
            *left -= taken;
            pages -= taken;
            if *left > 0 {
                break;
            }
            self.runs -= *runs;
            self.fetches.pop_front();
        }
    }
}

impl Stream<'_> {
    /// Fills the window, and applies one answer. False if the stream has ended.
    fn turn(&mut self) -> Result<bool, Interruption> {
        for (region, page) in self.shared.take_faulted() {
            self.plan.follow(region, page);
        }
        // The source is notified only while no page is outstanding. It does not read notifications while it sends answers, and this thread does
        // not read answers while it notifies: with long notifications, both would wait for each other.
        let notify = self.notifier.is_due(self.shared);
        let pauses = notify || self.announcer.is_due();
        while let Some((region, pages)) = (!pauses).then(|| self.survey.next()).flatten() {
            self.connection.map(region, pages)?;
        }
        while !pauses && self.outstanding.pages < self.shared.options.window {
            let (runs, shortage) = (FETCH_RUNS.min(MAX_RUNS - self.outstanding.runs), &self.shortage);
            let Some((region, runs)) = self.plan.next(FETCH_PAGES, runs, |region| shortage.allows(region)) else {
                break;
            };
            self.connection.fetch(region, &runs)?;
            self.shortage.retry(region);
            self.outstanding.add(&runs);
        }
        if self.outstanding.pages == 0 && !self.survey.is_outstanding() {
            return self.idle(notify);
        }
        if !wait(&self.shared.stop, self.connection.readiness())? {
            let (region, reply) = self.connection.next_reply()?;
            let short = match reply {
                Reply::Pages(answer) => {
                    self.outstanding.received(answer.pages());
                    let mut short = apply(self.shared, region, &answer)?;
                    let (also_short, missing) = apply_known(self.shared, region, &answer)?;
                    self.plan.requeue(region, &missing);
                    short.extend(also_short);
                    short
                }
                Reply::Holes(ExportHoles { holes, .. }) => {
                    self.survey.received(holes.pages);
                    self.plan.drop_holes(region, &holes.ranges);
                    self.plan.know_up_to(region, holes.pages.end());
                    apply_holes(self.shared, region, &holes)?
                }
            };
            if short.is_empty() {
                self.shortage.end(region);
            } else {
                self.plan.requeue(region, &short);
                if self.shortage.defer(region) {
                    self.shared.report_no_memory(region);
                }
            }
        }
        Ok(true)
    }

    /// No page is outstanding. False if the stream has ended.
    fn idle(&mut self, notify: bool) -> Result<bool, Interruption> {
        if self.announcer.is_due() {
            let (announcer, connection) = (&mut self.announcer, &mut self.connection);
            announcer.announce(|key, prefixes| connection.announce(key, prefixes))?;
            return Ok(true);
        }
        if notify {
            self.notifier.notify(self.shared, &mut self.connection)?;
            return Ok(true);
        }
        for region in self.shortage.all() {
            if !self.plan.wants(region) {
                self.shortage.end(region);
            }
        }
        if let Some(pause) = self.shortage.wait() {
            self.shared.stop.wait(pause);
            return Ok(true);
        }
        self.notifier.release_all(self.shared, &mut self.connection)?;
        Ok(false)
    }
}

/// What to ask the source for a map of. A source gives none if it cannot, and needs to give none if so few pages are absent that they are all
/// fetched at once.
fn survey_of(shared: &Shared, connection: &Connection, plan: &mut Plan) -> Survey {
    let mut pieces = Vec::new();
    for region in (0..shared.sinks.len()).filter(|_| connection.can_map()) {
        let Some(wanted) = plan.wanted(region) else { continue };
        if wanted.runs().map(|run| run.count()).sum::<u64>() <= shared.options.window {
            continue;
        }
        let of_region = pieces_with(wanted);
        plan.know_up_to(region, 0);
        pieces.extend(of_region.into_iter().map(|pages| (region, pages)));
    }
    Survey::of(pieces)
}

/// The plan of all absent pages of these regions.
fn absent(shared: &Shared, regions: &[usize]) -> Result<Plan, Error> {
    let mut plan = Vec::new();
    for (region, sink) in shared.sinks.iter().enumerate() {
        let mut wanted = PageSet::none_of(shared.exports[region].pages);
        if regions.contains(&region) {
            sink.absent(&mut |pages| wanted.insert(pages))
                .map_err(shared.failed("read which pages are present in", region))?;
        }
        plan.push(wanted);
    }
    Ok(Plan::new(plan))
}
