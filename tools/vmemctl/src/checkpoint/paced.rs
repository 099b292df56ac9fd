// SPDX-License-Identifier: GPL-2.0
//! Progress of work that has several threads, said once a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmem_cli::Progress;
use vmem_migrate::report::Report;

const INTERVAL: Duration = Duration::from_secs(1);

/// Says how far work is. Work that takes less than a second says nothing.
pub(super) struct Paced(Mutex<(Instant, Report)>);

impl Paced {
    /// The work begins now.
    pub(super) fn new(json: bool) -> Self {
        Self(Mutex::new((Instant::now(), Report::new(json))))
    }

    /// The work begins again now.
    pub(super) fn restart(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Instant::now();
    }

    pub(super) fn show(&self, progress: Progress) {
        // Others need not wait while one of them says it.
        let Ok(mut guard) = self.0.try_lock() else { return };
        let (last, report) = &mut *guard;
        if last.elapsed() >= INTERVAL {
            *last = Instant::now();
            report.progress(progress, "");
        }
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.end_progress();
    }
}
