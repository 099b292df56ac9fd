// SPDX-License-Identifier: GPL-2.0
//! What has been done in a run: a run in which something of the list has never happened has not tested it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

/// A run of this length has done each thing, on the slowest machine.
const LONG: Duration = Duration::from_secs(60);

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
#[derive(Default)]
pub(crate) struct Tally {
    told: Vec<String>,
    never: Vec<&'static str>,
}

impl Tally {
    /// Something that may be rare.
    pub(crate) fn add(&mut self, nr: u64, what: &'static str) {
        self.told.push(format!("{nr} {what}"));
    }

    /// Something that must have been done in a long run.
    pub(crate) fn demand(&mut self, nr: u64, what: &'static str) {
        self.add(nr, what);
        if nr == 0 {
            self.never.push(what);
        }
    }

    /// Prints it all. Fails if something is missing that a run of this length must have done.
    pub(crate) fn tell(&self, length: Duration) -> anyhow::Result<()> {
        println!("vmem-stress: {}", self.told.join(", "));
        ensure!(
            length < LONG || self.never.is_empty(),
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
        let mut tally = Tally::default();
        tally.demand(1, "things");
        tally.add(0, "rare things");
        assert!(tally.tell(LONG).is_ok());
        tally.demand(0, "others");
        assert!(tally.tell(LONG / 2).is_ok());
        assert!(tally.tell(LONG).is_err_and(|error| error.to_string().ends_with(": others")));
    }
}
