// SPDX-License-Identifier: GPL-2.0
//! For machines: one JSON object per line. vmemd(8) documents the fields.

use std::time::{Duration, Instant};

use serde::Serialize;
use vmem_cli::chain;
use vmem_source::{Lane, SourceError};

use super::PAGE;
use crate::failure::Failure;
use vmem_cli::output::{self, err};
use vmem_engine::{Phase, RegionStatus, Status};

/// Prints no more than one progress line a second.
pub(crate) struct Json {
    then: Instant,
}

impl Json {
    pub(super) fn new() -> Self {
        Self { then: Instant::now() }
    }

    pub(super) fn progress(&mut self, status: &Status) {
        if self.then.elapsed() >= Duration::from_secs(1) {
            self.then = Instant::now();
            print(&Line::Progress(figures(status)));
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Holding {
        source: &'a str,
        regions: Vec<Region<'a>>,
    },
    Ready {
        source: &'a str,
        regions: Vec<Region<'a>>,
    },
    Order {
        order: &'a str,
        error: Option<&'a str>,
    },
    Progress(Figures<'a>),
    Region(Region<'a>),
    Lost {
        connection: &'static str,
        error: String,
    },
    Back {
        connection: &'static str,
    },
    Short {
        name: &'a str,
    },
    End {
        exit_code: u8,
        error: Option<String>,
        #[serde(flatten)]
        figures: Option<Figures<'a>>,
    },
}

#[derive(Serialize)]
struct Figures<'a> {
    seconds: f64,
    data_bytes: u64,
    zero_bytes: u64,
    duplicate_bytes: u64,
    faults: u64,
    fault_us: Option<Times>,
    reconnects: u64,
    regions: Vec<Region<'a>>,
}

#[derive(Serialize)]
struct Times {
    p50: u128,
    p99: u128,
    max: u128,
}

#[derive(Serialize)]
struct Region<'a> {
    name: &'a str,
    bytes: u64,
    present_bytes: u64,
    unreadable_pages: u64,
    phase: Phase,
}

fn region(region: &RegionStatus) -> Region<'_> {
    Region {
        name: &region.name,
        bytes: region.size,
        present_bytes: region.present,
        unreadable_pages: region.unreadable / PAGE,
        phase: region.phase,
    }
}

fn figures(status: &Status) -> Figures<'_> {
    Figures {
        seconds: status.elapsed.as_secs_f64(),
        data_bytes: status.data,
        zero_bytes: status.zero,
        duplicate_bytes: status.duplicates,
        faults: status.faults,
        fault_us: status.service.map(|service| Times {
            p50: service.p50.as_micros(),
            p99: service.p99.as_micros(),
            max: service.max.as_micros(),
        }),
        reconnects: status.reconnects,
        regions: status.regions.iter().map(region).collect(),
    }
}

fn lane(lane: Lane) -> &'static str {
    match lane {
        Lane::Urgent => "urgent",
        Lane::Stream => "stream",
    }
}

fn print(line: &Line<'_>) {
    // Numbers and strings: serializing them does not fail.
    if let Ok(line) = serde_json::to_string(line) {
        output::json(&line);
    }
}

pub(super) fn holding(source: &str, status: &Status) {
    let regions = status.regions.iter().map(region).collect();
    print(&Line::Holding { source, regions });
}

pub(super) fn ready(source: &str, status: &Status) {
    let regions = status.regions.iter().map(region).collect();
    print(&Line::Ready { source, regions });
}

pub(super) fn order(order: &str, error: Option<&str>) {
    if let Some(error) = error {
        // For people who read the log.
        err(&format!("no such order: {order}: {error}"));
    }
    print(&Line::Order { order, error });
}

pub(super) fn phase(of: &RegionStatus) {
    print(&Line::Region(region(of)));
}

pub(super) fn lost(of: Lane, error: &SourceError) {
    print(&Line::Lost {
        connection: lane(of),
        error: chain(error),
    });
}

pub(super) fn back(of: Lane) {
    print(&Line::Back { connection: lane(of) });
}

pub(super) fn short(name: &str) {
    print(&Line::Short { name });
}

pub(super) fn end(status: Option<&Status>, failure: Option<&Failure>) {
    print(&Line::End {
        exit_code: failure.map_or(0, Failure::code),
        error: failure.map(|failure| chain(failure)),
        figures: status.map(figures),
    });
}
