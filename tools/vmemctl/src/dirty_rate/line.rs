// SPDX-License-Identifier: GPL-2.0-or-later
//! The line of `vmemctl dirty-rate --json`, as a type. The schema in `Documentation/schema` is made from it, and the comments are the descriptions
//! there.

use std::borrow::Cow;

use serde::Serialize;
use vmem_migrate::dirty_rate::Backend;
use vmem_precopy::{Forecast, Rates, WrittenMemory};

use crate::region::line::WrittenPart;

/// A line of `vmemctl dirty-rate`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum DirtyRateLine<'a> {
    /// What was measured.
    DirtyRate {
        /// The guest's name.
        guest: &'a str,
        /// The guest's state, as QEMU names it.
        status: &'a str,
        /// Seconds that were measured.
        seconds: f64,
        /// The memory backends.
        memories: Vec<MemoryRate<'a>>,
        /// Written pages of all memory in a second.
        pages_per_second: RatesLine,
        /// The bandwidth of the forecasts, in bytes a second.
        bandwidth: u64,
        /// What a move would come to, with different limits; empty after a signal.
        forecasts: Vec<ForecastLine<'a>>,
    },
}

/// How fast a memory backend is written.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MemoryRate<'a> {
    /// QEMU's ID of it.
    id: &'a str,
    /// The path of its file.
    path: Cow<'a, str>,
    /// Its pages.
    pages: u64,
    /// Written pages in a second.
    pages_per_second: RatesLine,
    /// Pages that were written at all.
    written_pages: u64,
    /// The parts that were written.
    histogram: Vec<WrittenPart>,
}

impl<'a> MemoryRate<'a> {
    pub(super) fn of(backend: &'a Backend, memory: &WrittenMemory) -> Self {
        Self {
            id: &backend.id,
            path: backend.path.to_string_lossy(),
            pages: memory.pages.count(),
            pages_per_second: (&memory.rates).into(),
            written_pages: memory.written,
            histogram: memory.histogram.parts().map(WrittenPart::from).collect(),
        }
    }
}

/// Rates over all samples, in pages a second.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RatesLine {
    /// The mean.
    mean: f64,
    /// The median.
    median: f64,
    /// The highest.
    highest: f64,
}

impl From<&Rates> for RatesLine {
    fn from(rates: &Rates) -> Self {
        Self {
            mean: rates.mean,
            median: rates.median,
            highest: rates.highest,
        }
    }
}

/// What a move would come to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ForecastLine<'a> {
    /// The name of the limits of the rounds.
    limits: &'a str,
    /// How the rounds would end: `precopy` or `hybrid`.
    mode: String,
    /// Rounds.
    rounds: u32,
    /// Bytes that would be sent.
    bytes: u64,
    /// Seconds for all of it.
    total_seconds: f64,
    /// Pages that would be left at the switch.
    left_pages: u64,
    /// Seconds that sending these takes.
    left_seconds: f64,
    /// Why the rounds would end, for people.
    reason: String,
}

impl<'a> ForecastLine<'a> {
    pub(super) fn of(limits: &'a str, forecast: &Forecast) -> Self {
        Self {
            limits,
            mode: forecast.mode.to_string(),
            rounds: forecast.rounds,
            bytes: forecast.bytes,
            total_seconds: forecast.total.as_secs_f64(),
            left_pages: forecast.pages_left,
            left_seconds: forecast.downtime.as_secs_f64(),
            reason: forecast.decision.to_string(),
        }
    }
}
