// SPDX-License-Identifier: GPL-2.0-or-later
//! What the guest says, as JSON in lines.

use serde::Serialize;

use crate::ticker::{Seen, Ticker};
use crate::worker::{Touches, Worker};

/// That the guest is there: on the console, once.
#[derive(Serialize)]
pub(crate) struct Ready {
    event: &'static str,
    pages: usize,
    host_clock: bool,
}

/// What it has seen since the last mark.
#[derive(Serialize)]
pub(crate) struct Report {
    ticker: Seen,
    touches: Touches,
}

impl Ready {
    pub(crate) fn new(worker: &Worker, ticker: &Ticker) -> Self {
        Self {
            event: "ready",
            pages: worker.pages,
            host_clock: ticker.host_clock,
        }
    }
}

impl Report {
    pub(crate) fn new(worker: &Worker, ticker: &Ticker) -> Self {
        Self {
            ticker: ticker.seen(),
            touches: worker.touches(),
        }
    }
}

/// One line, without its end.
pub(crate) fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}
