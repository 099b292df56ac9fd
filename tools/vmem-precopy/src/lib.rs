// SPDX-License-Identifier: GPL-2.0
//! Pre-copy.
#![forbid(unsafe_code)]

mod bandwidth;
mod contract;
mod decision;
mod error;
mod heat;
mod limits;
mod memory;
mod order;
mod plan;
mod policy;
mod progress;
mod replay;
mod rounds;
mod simulator;
mod statistics;
#[cfg(test)]
mod tests;
mod trace;

pub use bandwidth::Bandwidth;
pub use contract::{Batch, ExportRanges, Sent};
pub use decision::{Decision, Reason};
pub use error::{Error, LogAction};
pub use limits::{Limits, Mode};
pub use memory::{DirtyMemory, Logged};
pub use plan::Options;
pub use policy::{Policy, RoundEnd};
pub use rounds::{Event, PreCopy};
pub use simulator::{Forecast, Outcome, Scheme, predict, simulate};
pub use statistics::{RoundStatistics, Statistics};
pub use trace::Trace;
