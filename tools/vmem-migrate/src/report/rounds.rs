// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds that were sent before the switch.

use vmem_cli::bytes;
use vmem_control::{Round, Rounds};

use super::line::RoundSums;

/// All rounds together.
#[derive(Default)]
pub(super) struct RoundTotals {
    count: u64,
    seconds: f64,
    sent: u64,
    zero: u64,
    resent: u64,
    skipped: u64,
    cpu: f64,
    /// Processor time of the destination's vmemd, and what that was at the end of the latest round.
    destination_cpu: Option<f64>,
    last: f64,
}

impl RoundTotals {
    /// Adds a round. Returns the processor time that the destination has used in it, if it says that: it does so once a second.
    pub(super) fn add(&mut self, round: &Round, destination: Option<f64>) -> Option<f64> {
        let there = destination.map(|now| (now - std::mem::replace(&mut self.last, now)).max(0.0));
        self.count += 1;
        self.seconds += round.seconds;
        self.sent = self.sent.saturating_add(round.sent_pages);
        self.zero = self.zero.saturating_add(round.zero_pages);
        self.resent = self.resent.saturating_add(round.resent_pages);
        self.skipped = self.skipped.saturating_add(round.skipped_pages);
        self.cpu += round.cpu_seconds;
        if let Some(there) = there {
            self.destination_cpu = Some(self.destination_cpu.unwrap_or_default() + there);
        }
        there
    }

    /// What all rounds came to, if there were any.
    pub(super) fn sums(&self) -> Option<RoundSums> {
        (self.count > 0).then_some(RoundSums {
            count: self.count,
            seconds: self.seconds,
            sent_pages: self.sent,
            zero_pages: self.zero,
            resent_pages: self.resent,
            skipped_pages: self.skipped,
            cpu_seconds: self.cpu,
            destination_cpu_seconds: self.destination_cpu,
        })
    }

    pub(super) fn text(&self) -> Option<String> {
        let there = self
            .destination_cpu
            .map_or(String::new(), |there| format!(" and {there:.1} s"));
        (self.count > 0).then(|| {
            format!(
                "{} in {:.1} s: {} pages, of which {} again and {} zero; {} skipped; processor time {:.1} s{there}",
                self.count, self.seconds, self.sent, self.resent, self.zero, self.skipped, self.cpu
            )
        })
    }
}

/// Round, what is left, how fast, and how long the guest would stand still for the rest.
pub(crate) fn rounds_text(rounds: &Rounds) -> String {
    let rate = |rate: Option<u64>| rate.map_or("?".to_owned(), |rate| format!("{}/s", bytes(rate)));
    let down = rounds.expected_ms.map_or("?".to_owned(), |ms| format!("{ms} ms"));
    format!(
        "round {}  {} left  {}  {} written  downtime {down} of {} ms",
        rounds.round,
        bytes(rounds.left_bytes),
        rate(rounds.bytes_per_second),
        rate(rounds.dirty_bytes_per_second),
        rounds.max_downtime_ms
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_show_what_is_left_how_fast_and_the_downtime() {
        let rounds = Rounds {
            round: 2,
            left_bytes: 3 << 20,
            max_downtime_ms: 100,
            ..Rounds::default()
        };
        assert_eq!(
            rounds_text(&rounds),
            "round 2  3.00 MiB left  ?  ? written  downtime ? of 100 ms"
        );
        let rounds = Rounds {
            bytes_per_second: Some(2 << 20),
            dirty_bytes_per_second: Some(1 << 20),
            expected_ms: Some(1500),
            ..rounds
        };
        assert_eq!(
            rounds_text(&rounds),
            "round 2  3.00 MiB left  2.00 MiB/s  1.00 MiB/s written  downtime 1500 ms of 100 ms"
        );
    }

    #[test]
    fn rounds_add_up_and_have_the_processor_time_of_both_sides() {
        let round = |sent_pages, cpu_seconds| Round {
            sent_pages,
            resent_pages: 1,
            skipped_pages: 2,
            cpu_seconds,
            ..Round::default()
        };
        let mut totals = RoundTotals::default();
        assert!(totals.sums().is_none() && totals.text().is_none());
        assert_eq!(totals.add(&round(5, 0.5), None), None, "an earlier vmemd does not say it");
        assert_eq!(totals.add(&round(5, 0.5), Some(2.0)), Some(2.0));
        assert_eq!(totals.add(&round(5, 0.5), Some(2.5)), Some(0.5));
        // It was started again.
        assert_eq!(totals.add(&round(5, 0.5), Some(0.25)), Some(0.0));
        let sums = totals.sums().expect("rounds");
        assert_eq!((sums.count, sums.sent_pages, sums.skipped_pages), (4, 20, 8));
        assert_eq!((sums.cpu_seconds, sums.destination_cpu_seconds), (2.0, Some(2.5)));
    }
}
