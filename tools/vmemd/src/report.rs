// SPDX-License-Identifier: GPL-2.0
//! What the daemon says: to people on a terminal, to people who read a log, or to machines.

mod json;
mod text;

use std::io::{self, IsTerminal};

use vmem::PAGE_SIZE;
use vmem_engine::{RegionStatus, Status};
use vmem_source::{Lane, SourceError};

use crate::failure::Failure;
use json::Json;
use text::{Bar, Lines};
use vmem_cli::output::err;

const PAGE: u64 = PAGE_SIZE as u64;

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
    pub(crate) fn holding(&mut self, source: &str, status: &Status) {
        match self {
            Self::Bar(_) | Self::Lines(_) => err("holding: a line \"start\" on standard input starts it"),
            Self::Json(_) => json::holding(source, status),
        }
    }

    /// The regions exist, and their faults are served.
    pub(crate) fn ready(&mut self, source: &str, status: &Status) {
        match self {
            Self::Bar(_) | Self::Lines(_) => text::ready(source, status),
            Self::Json(_) => json::ready(source, status),
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
    pub(crate) fn progress(&mut self, status: &Status) {
        match self {
            Self::Bar(bar) => bar.progress(status),
            Self::Lines(lines) => lines.progress(status),
            Self::Json(json) => json.progress(status),
        }
    }

    /// A region has come to another phase.
    pub(crate) fn phase(&mut self, region: &RegionStatus) {
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

    /// The end; without a status if nothing was begun.
    pub(crate) fn end(&mut self, status: Option<&Status>, failure: Option<&Failure>) {
        match self {
            Self::Bar(bar) => bar.end(status),
            Self::Lines(_) => text::end(status),
            Self::Json(_) => json::end(status, failure),
        }
    }
}

/// An amount of bytes for people.
pub(crate) fn bytes(amount: u64) -> String {
    indicatif::BinaryBytes(amount).to_string()
}
