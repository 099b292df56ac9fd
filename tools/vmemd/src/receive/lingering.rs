// SPDX-License-Identifier: GPL-2.0-or-later
//! `--complete-after`: regions stay regions for a while when all pages are present.
//!
//! A complete region's pages are put into the page tables of all programs. Before that, the page tables say which pages a program has touched.

use std::time::{Duration, Instant};

use vmem_engine::Completion;

/// How long complete regions stay as they are.
pub(super) struct Lingering {
    time: Option<Duration>,
    /// When all pages of all regions were present.
    since: Option<Instant>,
}

impl Lingering {
    pub(super) fn new(time: Option<Duration>) -> Self {
        Self { time, since: None }
    }

    /// Whether the regions stay as they are now. They go on together: a program's memory is several regions.
    pub(super) fn lingers(&mut self, regions: &[Completion]) -> bool {
        let Some(time) = self.time else { return false };
        let is_full = |region: &Completion| {
            let state = region.state();
            state.present + state.unreadable == region.pages().count()
        };
        if self.since.is_none() && regions.iter().all(is_full) {
            self.since = Some(Instant::now());
        }
        self.since.is_none_or(|since| since.elapsed() < time)
    }
}
