// SPDX-License-Identifier: GPL-2.0
//! What the daemon says: to people on a terminal, to people who read a log, or to machines.

mod json;
mod text;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use vmem::PAGE_SIZE;
use vmem_source::{Lane, SourceError};

use crate::engine::stats::{Service, Stats, get};
use crate::failure::Failure;
use crate::finish::{Finish, Phase};
use json::Json;
use text::{Bar, Lines};
use vmem_cli::output::err;

/// Where a run stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Since the beginning.
    pub(crate) elapsed: Duration,
    /// Bytes filled with data.
    pub(crate) data: u64,
    /// Bytes known to be zero.
    pub(crate) zero: u64,
    /// Bytes that came although their pages were present.
    pub(crate) duplicates: u64,
    /// Requests taken.
    pub(crate) faults: u64,
    /// How long they took.
    pub(crate) service: Option<Service>,
    /// Connections made again.
    pub(crate) reconnects: u64,
    /// Each region.
    pub(crate) regions: Vec<RegionSnapshot>,
}

/// Where a region stands.
#[derive(Clone, Debug)]
pub(crate) struct RegionSnapshot {
    pub(crate) name: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Bytes present.
    pub(crate) present: u64,
    /// Bytes that the source cannot read.
    pub(crate) unreadable: u64,
    pub(crate) phase: Phase,
}

const PAGE: u64 = PAGE_SIZE as u64;

impl Snapshot {
    pub(crate) fn take(since: Instant, stats: &Stats, regions: &[Finish]) -> Self {
        Self {
            elapsed: since.elapsed(),
            data: get(&stats.data) * PAGE,
            zero: get(&stats.zero) * PAGE,
            duplicates: get(&stats.duplicates) * PAGE,
            faults: get(&stats.requests),
            service: stats.service_times(),
            reconnects: get(&stats.reconnects),
            regions: regions.iter().map(RegionSnapshot::from).collect(),
        }
    }

    fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    fn is_moving(&self) -> bool {
        self.regions
            .iter()
            .any(|region| matches!(region.phase, Phase::Filling | Phase::Populating))
    }

    fn present(&self) -> u64 {
        self.regions.iter().map(|region| region.present).sum()
    }
}

impl From<&Finish> for RegionSnapshot {
    fn from(region: &Finish) -> Self {
        Self {
            name: region.name().to_owned(),
            size: region.pages() * PAGE,
            present: region.state().present * PAGE,
            unreadable: region.state().unreadable * PAGE,
            phase: region.phase(),
        }
    }
}

/// Who is told.
pub(crate) enum Report {
    Bar(Bar),
    Lines(Lines),
    Json(Json),
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        if json {
            Self::Json(Json::new())
        } else if io::stderr().is_terminal() {
            Self::Bar(Bar::new())
        } else {
            Self::Lines(Lines::new())
        }
    }

    /// The regions exist, and everything waits for the order to start.
    pub(crate) fn holding(&mut self, source: &str, snapshot: &Snapshot) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err("holding: a line \"start\" on standard input starts it"),
            Self::Json(_) => json::holding(source, snapshot),
        }
    }

    /// The regions exist, and their faults are served.
    pub(crate) fn ready(&mut self, source: &str, snapshot: &Snapshot) {
        match self {
            Self::Bar(_) | Self::Lines(_) => text::ready(source, snapshot),
            Self::Json(_) => json::ready(source, snapshot),
        }
    }

    /// An order has come; with an error, it is none.
    pub(crate) fn order(json: bool, order: &str, error: Option<&str>) {
        match (json, error) {
            (true, _) => json::order(order, error),
            (false, Some(error)) => err(&format!("no such order: {order}: {error}")),
            (false, None) => {}
        }
    }

    /// Called often; prints as often as it makes sense.
    pub(crate) fn progress(&mut self, snapshot: &Snapshot) {
        match self {
            Self::Bar(bar) => bar.progress(snapshot),
            Self::Lines(lines) => lines.progress(snapshot),
            Self::Json(json) => json.progress(snapshot),
        }
    }

    /// A region has come to another phase.
    pub(crate) fn phase(&mut self, region: &RegionSnapshot) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err(&text::phase(region)),
            Self::Json(_) => json::phase(region),
        }
    }

    /// A connection was lost.
    pub(crate) fn lost(&mut self, lane: Lane, error: &SourceError) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err(&text::lost(lane, error)),
            Self::Json(_) => json::lost(lane, error),
        }
    }

    /// A connection was made again.
    pub(crate) fn back(&mut self, lane: Lane) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err(&text::back(lane)),
            Self::Json(_) => json::back(lane),
        }
    }

    /// There is no memory for pages of a region.
    pub(crate) fn short(&mut self, name: &str) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err(&text::short(name)),
            Self::Json(_) => json::short(name),
        }
    }

    /// The end; without a snapshot if nothing was begun.
    pub(crate) fn end(&mut self, snapshot: Option<&Snapshot>, failure: Option<&Failure>) {
        match self {
            Self::Bar(bar) => bar.end(snapshot),
            Self::Lines(_) => text::end(snapshot),
            Self::Json(_) => json::end(snapshot, failure),
        }
    }
}

/// An amount of bytes for people.
pub(crate) fn bytes(amount: u64) -> String {
    indicatif::BinaryBytes(amount).to_string()
}
