// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions that there is no memory for.
//!
//! The program that maps a region may be at the limit of its memory cgroup, or the host may have no memory left. Both may pass, and other
//! regions need not be affected: a lane defers a region that there is no memory for, and tries it again after a pause, with one request at a
//! time. Its pages stay wanted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vmem_wait::BackOff;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The regions that one lane has deferred.
#[derive(Default)]
pub(crate) struct Shortage {
    regions: BTreeMap<usize, Deferred>,
}

struct Deferred {
    /// When the region is tried again.
    until: Instant,
    back_off: BackOff,
}

impl Shortage {
    /// Defers a region: there was no memory for a page of it. True if it was not deferred before.
    pub(crate) fn defer(&mut self, region: usize) -> bool {
        let known = self.has(region);
        self.regions.entry(region).or_insert_with(|| {
            let mut back_off = BackOff::new(FIRST_PAUSE, LONGEST_PAUSE);
            let until = Instant::now() + back_off.next_pause();
            Deferred { until, back_off }
        });
        !known
    }

    /// There is memory for the region again.
    pub(crate) fn end(&mut self, region: usize) {
        self.regions.remove(&region);
    }

    /// Whether pages of the region may be fetched now.
    pub(crate) fn allows(&self, region: usize) -> bool {
        self.regions
            .get(&region)
            .is_none_or(|deferred| deferred.until <= Instant::now())
    }

    /// Whether the region is deferred.
    pub(crate) fn has(&self, region: usize) -> bool {
        self.regions.contains_key(&region)
    }

    /// Pages of the region are fetched again: defers the next attempt by a longer pause.
    pub(crate) fn retry(&mut self, region: usize) {
        if let Some(deferred) = self.regions.get_mut(&region) {
            deferred.until = Instant::now() + deferred.back_off.next_pause();
        }
    }

    /// The deferred regions that may be tried again now.
    pub(crate) fn due(&self) -> Vec<usize> {
        let due = self.regions.keys().filter(|region| self.allows(**region));
        due.copied().collect()
    }

    /// All deferred regions.
    pub(crate) fn all(&self) -> Vec<usize> {
        self.regions.keys().copied().collect()
    }

    /// The time until a region may be tried again; `None` if no region is deferred.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let first = self.regions.values().map(|deferred| deferred.until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deferred_region_is_due_again_after_its_pause() {
        let mut shortage = Shortage::default();
        assert!(shortage.allows(1) && shortage.wait().is_none());
        assert!(shortage.defer(1));
        assert!(!shortage.defer(1), "it is known");
        assert!(!shortage.allows(1) && shortage.allows(0) && shortage.due().is_empty());
        std::thread::sleep(shortage.wait().unwrap_or_default());
        assert_eq!(shortage.due(), [1]);
        shortage.retry(1);
        assert!(!shortage.allows(1) && shortage.has(1));
        shortage.end(1);
        assert!(shortage.allows(1) && !shortage.has(1));
    }
}
