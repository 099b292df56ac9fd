// SPDX-License-Identifier: GPL-2.0-or-later
//! Progress of work that has several threads, said once a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmem_cli::Progress;
use vmem_migrate::report::{self, Report};

use super::line::CheckpointLine;

const INTERVAL: Duration = Duration::from_secs(1);

/// Says how far work is. Work that takes less than a second says nothing.
pub(super) struct Paced {
    json: bool,
    report: Mutex<(Instant, Report)>,
}

impl Paced {
    /// The work begins now.
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            report: Mutex::new((Instant::now(), Report::new(json))),
        }
    }

    /// Whether it is said as JSON.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// The work begins again now.
    pub(super) fn restart(&self) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).0 = Instant::now();
    }

    pub(super) fn show(&self, progress: Progress) {
        self.if_due(|report| report.progress(progress, ""));
    }

    /// Work is done as far as it can be, and so many pages have not come yet.
    pub(super) fn wait(&self, progress: Progress, pages: u64) {
        self.if_due(|report| match self.json {
            true => report::print(&CheckpointLine::Waiting {
                bytes: progress.size,
                done_bytes: progress.done,
                awaited_pages: pages,
            }),
            false => report.progress(progress, &format!("{pages} pages have not come yet")),
        });
    }

    fn if_due(&self, say: impl FnOnce(&mut Report)) {
        // Others need not wait while one of them says it.
        let Ok(mut guard) = self.report.try_lock() else { return };
        let (last, report) = &mut *guard;
        if last.elapsed() >= INTERVAL {
            *last = Instant::now();
            say(report);
        }
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).1.end_progress();
    }
}
