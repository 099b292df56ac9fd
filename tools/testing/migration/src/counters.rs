// SPDX-License-Identifier: GPL-2.0-or-later
//! What a move costs the machine: interrupts between its processors, and exits of its guests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Instant;

/// The lines of /proc/interrupts that are counted, and what they are.
const INTERRUPTS: [(&str, &str); 4] = [("LOC", "timer"), ("RES", "rescheduling"), ("CAL", "call"), ("TLB", "tlb")];
/// What KVM counts for each of its guests.
const GUEST: [&str; 5] = ["exits", "irq_exits", "halt_exits", "pf_taken", "irq_injections"];

/// Counts since a moment.
pub(crate) struct Counters {
    since: Instant,
    before: BTreeMap<String, u64>,
}

/// What was counted, per second.
pub(crate) struct Rates(Vec<(String, f64)>);

impl Counters {
    /// Begins to count.
    pub(crate) fn start() -> Self {
        Self {
            since: Instant::now(),
            before: read(),
        }
    }

    /// What has been counted since. A guest that has come meanwhile counts from its start, one that has gone does not count.
    pub(crate) fn rates(&self) -> Rates {
        let seconds = self.since.elapsed().as_secs_f64();
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (name, count) in read() {
            let more = count.saturating_sub(self.before.get(&name).copied().unwrap_or_default());
            let name = name.rsplit('/').next().unwrap_or_default();
            *sums.entry(name.to_owned()).or_default() += more as f64 / seconds;
        }
        Rates(sums.into_iter().collect())
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, rate) in &self.0 {
            write!(out, " {name}={rate:.0}")?;
        }
        Ok(())
    }
}

/// All counters; those of a guest's with the name of its directory before theirs.
fn read() -> BTreeMap<String, u64> {
    let mut counts = interrupts(&fs::read_to_string("/proc/interrupts").unwrap_or_default());
    for guest in fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten() {
        for name in GUEST {
            // Files beside the guests' directories are sums over those that are there.
            let path = guest.path().join(name);
            let count = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
            if let Some(count) = count {
                counts.insert(format!("{}/{name}", guest.file_name().to_string_lossy()), count);
            }
        }
    }
    counts
}

/// The sums over all processors.
fn interrupts(text: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let label = words.next().unwrap_or_default().trim_end_matches(':');
        if let Some((_, name)) = INTERRUPTS.iter().find(|(known, _)| *known == label) {
            let sum = words.map_while(|word| word.parse::<u64>().ok()).sum();
            counts.insert((*name).to_owned(), sum);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_summed_over_processors() {
        let text = "            CPU0       CPU1\n  0:  5  6  IO-APIC  2-edge  timer\nRES:   10   20   Rescheduling interrupts\nERR:  0\n";
        assert_eq!(interrupts(text), BTreeMap::from([("rescheduling".to_owned(), 30)]));
    }
}
