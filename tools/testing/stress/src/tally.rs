// SPDX-License-Identifier: GPL-2.0-or-later
//! What has been done in a run: a run in which something of the list has never happened has not tested it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::board::{Board, Note};

/// A run of this length has done each thing, if the machine has let it come to the steps for it.
const LONG: Duration = Duration::from_secs(60);

/// In so many steps each thing has happened. On a debug kernel, on a busy machine, two minutes have fewer.
pub(crate) const ENOUGH: u64 = 5_000;
/// These leave several programs equal pages in plain memory, for as long as KSM takes to find them. A run of 90 s with KASAN has done 13,000.
const ENOUGH_TO_MERGE: u64 = 20_000;
/// In these a tracker has cleaned pages that it looks at again, also where the kernel's lists hold them for a while (no MGLRU).
const ENOUGH_TO_CLEAN: u64 = 20_000;
/// In these a region was converted, and its daemon killed, just while it was tracked.
pub(crate) const ENOUGH_OF_TURNS: u64 = 300_000;

/// What actors note, what it is called, and in how many steps it must have been done.
const NOTES: [(Note, &str, Option<u64>); 20] = [
    (Note::Checked, "pages compared", Some(0)),
    (Note::CheckedPlain, "of them in plain memory", Some(ENOUGH)),
    (Note::Tracked, "times tracked", Some(ENOUGH)),
    (Note::TrackedIncomplete, "of them incomplete regions", Some(ENOUGH)),
    (Note::TrackedThrough, "of them through a conversion", Some(ENOUGH_OF_TURNS)),
    (
        Note::CheckedClean,
        "clean pages compared with their copies",
        Some(ENOUGH_TO_CLEAN),
    ),
    (
        Note::CheckedCleanIncomplete,
        "of them in incomplete regions",
        Some(ENOUGH_TO_CLEAN),
    ),
    (Note::CheckedCome, "pages that came found in the log", Some(ENOUGH_TO_CLEAN)),
    (Note::Snapshots, "snapshots", Some(ENOUGH)),
    (Note::SnapshotsIncomplete, "of them with absent pages", Some(ENOUGH)),
    (Note::Failed, "of all failed", None),
    (
        Note::CheckedImage,
        "pages of them compared with what they were",
        Some(ENOUGH_TO_CLEAN),
    ),
    (
        Note::CheckedImageIncomplete,
        "of these in snapshots with absent pages",
        Some(ENOUGH_TO_CLEAN),
    ),
    (
        Note::CheckedImageAbsent,
        "pages that were absent at the instant compared with their source",
        Some(ENOUGH_TO_CLEAN),
    ),
    (Note::Mounted, "file systems mounted", Some(ENOUGH)),
    (Note::CheckedInFile, "pages of files compared", Some(ENOUGH)),
    (Note::ChangedInFile, "writes to files and holes in them", Some(ENOUGH)),
    (Note::NotWaited, "calls that did not wait", Some(ENOUGH)),
    (Note::Wild, "wild calls", Some(0)),
    (Note::Merged, "pages saved by KSM at once", Some(ENOUGH_TO_MERGE)),
];

/// The kernel's own counters, all since the boot.
pub(crate) struct Kernel(String);

impl Kernel {
    /// As they are now.
    pub(crate) fn now() -> anyhow::Result<Self> {
        Ok(Self(fs::read_to_string("/proc/vmstat").context("vmstat")?))
    }

    /// One of them; 0 if this kernel does not have it.
    fn get(&self, name: &str) -> u64 {
        let value = |line: &str| {
            let (found, value) = line.split_once(' ')?;
            (found == name).then(|| value.trim().parse().ok())?
        };
        self.0.lines().find_map(value).unwrap_or(0)
    }

    /// How much some have grown since `before`.
    pub(crate) fn since(&self, before: &Self, names: &[&str]) -> u64 {
        names.iter().map(|name| self.get(name).saturating_sub(before.get(name))).sum()
    }
}

/// Things and how often they were done.
pub(crate) struct Tally {
    length: Duration,
    steps: u64,
    told: Vec<String>,
    never: Vec<&'static str>,
}

impl Tally {
    /// Of a run of this length and so many steps.
    pub(crate) fn new(length: Duration, steps: u64) -> Self {
        Self {
            length,
            steps,
            told: vec![format!("{steps} steps")],
            never: Vec::new(),
        }
    }

    /// What the actors have noted.
    pub(crate) fn add_notes(&mut self, board: &Board) -> anyhow::Result<()> {
        for (note, what, steps) in NOTES {
            match steps {
                Some(steps) => self.demand(steps, board.sum(note)?, what),
                None => self.add(board.sum(note)?, what),
            }
        }
        Ok(())
    }

    /// Something that may be rare.
    pub(crate) fn add(&mut self, nr: u64, what: &'static str) {
        self.told.push(format!("{nr} {what}"));
    }

    /// Something that must have been done in a long run of so many steps.
    pub(crate) fn demand(&mut self, steps: u64, nr: u64, what: &'static str) {
        self.add(nr, what);
        if nr == 0 && self.length >= LONG && self.steps >= steps {
            self.never.push(what);
        }
    }

    /// Prints it all. Fails if something is missing that such a run must have done.
    pub(crate) fn tell(&self) -> anyhow::Result<()> {
        println!("vmem-stress: {}", self.told.join(", "));
        ensure!(
            self.never.is_empty(),
            "what the run is for has never been done: {}",
            self.never.join(", ")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let before = Kernel("pswpin 3\npswpin_zero 7\n".to_owned());
        let now = Kernel("pswpin 5\npswpin_zero 70\nthp 4\n".to_owned());
        assert_eq!(now.since(&before, &["pswpin", "thp", "absent"]), 6);
    }

    #[test]
    fn what_a_long_run_has_never_done_fails_it() {
        let told = |length, steps, nr| {
            let mut tally = Tally::new(length, steps);
            tally.add(0, "rare things");
            tally.demand(1000, nr, "things");
            tally.tell().map_err(|error| error.to_string())
        };
        assert_eq!(told(LONG, 1000, 1), Ok(()));
        assert_eq!(told(LONG, 999, 0), Ok(()));
        assert_eq!(told(LONG / 2, 1000, 0), Ok(()));
        assert!(told(LONG, 1000, 0).is_err_and(|error| error.ends_with(": things")));
    }
}
