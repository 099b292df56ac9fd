// SPDX-License-Identifier: GPL-2.0
//! Regions that there is no memory for.
//!
//! The program that maps a region may be at the limit of its memory cgroup; the machine may have no memory left. Either may pass, and what
//! is true of one region need not be true of another: a region that is short is set aside, and tried again now and then, with one question
//! at a time. Its pages stay wanted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The regions that one lane has set aside.
#[derive(Default)]
pub(crate) struct Shortage {
    regions: BTreeMap<usize, Aside>,
}

struct Aside {
    until: Instant,
    pause: Duration,
}

impl Shortage {
    /// There was no memory for a page of this region. True if it was not known to be short.
    pub(crate) fn set_aside(&mut self, region: usize) -> bool {
        let known = self.has(region);
        self.regions.entry(region).or_insert_with(|| Aside {
            until: Instant::now() + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        });
        !known
    }

    /// There is memory for it.
    pub(crate) fn end(&mut self, region: usize) {
        self.regions.remove(&region);
    }

    /// Whether it may be asked for.
    pub(crate) fn allows(&self, region: usize) -> bool {
        self.regions.get(&region).is_none_or(|aside| aside.until <= Instant::now())
    }

    /// Whether it is short, as far as is known.
    pub(crate) fn has(&self, region: usize) -> bool {
        self.regions.contains_key(&region)
    }

    /// It is asked for: what comes of it is waited for, longer than the last time.
    pub(crate) fn retry(&mut self, region: usize) {
        if let Some(aside) = self.regions.get_mut(&region) {
            aside.pause = (aside.pause * 2).min(LONGEST_PAUSE);
            aside.until = Instant::now() + aside.pause;
        }
    }

    /// Those whose time to be tried again has come.
    pub(crate) fn due(&self) -> Vec<usize> {
        let due = self.regions.keys().filter(|region| self.allows(**region));
        due.copied().collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<usize> {
        self.regions.keys().copied().collect()
    }

    /// How long it is until one is to be tried again; `None` if none is short.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let first = self.regions.values().map(|aside| aside.until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_tried_again_after_a_while_once_at_a_time() {
        let mut shortage = Shortage::default();
        assert!(shortage.allows(1) && shortage.wait().is_none());
        assert!(shortage.set_aside(1));
        assert!(!shortage.set_aside(1), "it is known");
        assert!(!shortage.allows(1) && shortage.allows(0) && shortage.due().is_empty());
        std::thread::sleep(shortage.wait().unwrap_or_default());
        assert_eq!(shortage.due(), [1]);
        shortage.retry(1);
        assert!(!shortage.allows(1) && shortage.has(1));
        shortage.end(1);
        assert!(shortage.allows(1) && !shortage.has(1));
    }
}
