// SPDX-License-Identifier: GPL-2.0-or-later
//! How fast pages become present, and how often the guest waits for one.

use std::time::Duration;

use vmem_cli::{Rate, bytes};
use vmem_control::Figures;

use super::arrival::progress;

/// Received bytes and faults a second.
#[derive(Default)]
pub(super) struct Rates {
    pub(super) present: Rate,
    faults: Rate,
}

impl Rates {
    /// Rate, pages left, faults, time left.
    pub(super) fn text(&mut self, now: &Figures) -> String {
        let progress = progress(now);
        // The figures may come from another host.
        let time = Duration::try_from_secs_f64(now.seconds).unwrap_or_default();
        let rate = self.present.sample(time, progress.done);
        let faulted = self.faults.sample(time, now.faults);
        let p99 = now
            .fault_us
            .map_or(String::new(), |times| format!(", p99 {:.1} ms", times.p99 as f64 / 1e3));
        format!(
            "{}/s  {} pages left  {faulted:.0} faults/s{p99}  {}",
            bytes(rate as u64),
            progress.left() / vmem::PAGE_SIZE as u64,
            progress.time_left(rate)
        )
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use vmem_control::Event;

    use super::*;

    #[test]
    fn rates_cover_the_time_since_the_last_line() {
        let line = |seconds: f64, present: u64, faults: u64| {
            json!({"event": "progress", "seconds": seconds, "data_bytes": 0, "faults": faults,
                "fault_us": {"p50": 1000, "p99": 2500, "max": 3000},
                "regions": [{"bytes": 8 << 20, "present_bytes": present}, {"bytes": 8 << 20, "present_bytes": 0}]})
        };
        let figures = |seconds: f64, present: u64, faults: u64| match Event::deserialize(&line(seconds, present, faults)) {
            Ok(Event::Progress(figures)) => figures,
            other => panic!("{other:?}"),
        };
        let mut rates = Rates::default();
        rates.text(&figures(1.0, 1 << 20, 10));
        assert_eq!(
            rates.text(&figures(3.0, 5 << 20, 30)),
            "2.00 MiB/s  2816 pages left  10 faults/s, p99 2.5 ms  6 s left"
        );
        assert!(rates.text(&figures(4.0, 5 << 20, 30)).ends_with("standing still"));
    }
}
