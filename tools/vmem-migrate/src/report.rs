// SPDX-License-Identifier: GPL-2.0
//! Output of the commands: for users at a terminal, for readers of a log, or for programs. Nothing here waits for a reader, because the
//! guest may stand still meanwhile, and because signals must be handled.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use vmem_cli::output::{self, err, out};
use vmem_cli::{Progress, ProgressBar, Rate, bytes};
use vmem_control::{Event, Figures, Region, Round, Rounds, Verified};

/// The output of one command.
pub struct Report {
    to: To,
    began: Instant,
    /// The time from the stop of the guest until it was known to run again.
    downtime: Option<Duration>,
    /// Bytes of the memory that the destination lacked at the switch.
    remainder: Option<u64>,
    /// Rounds are sent: nothing becomes present meanwhile.
    has_rounds: bool,
    rounds: RoundTotals,
    arrival: Arrivals,
    rates: Rates,
}

enum To {
    Bar(ProgressBar),
    Lines,
    Json,
}

/// Received bytes and faults a second.
#[derive(Default)]
struct Rates {
    present: Rate,
    faults: Rate,
}

impl Report {
    /// Output for users, or JSON for programs.
    pub fn new(json: bool) -> Self {
        let to = if json {
            To::Json
        } else if io::stderr().is_terminal() {
            To::Bar(ProgressBar::default())
        } else {
            To::Lines
        };
        Self {
            to,
            began: Instant::now(),
            downtime: None,
            remainder: None,
            has_rounds: false,
            rounds: RoundTotals::default(),
            arrival: Arrivals::default(),
            rates: Rates::default(),
        }
    }

    /// Reports a note.
    pub fn note(&self, text: &str) {
        match &self.to {
            To::Bar(_) | To::Lines => tracing::info!("{text}"),
            To::Json => print(&json!({"event": "note", "text": text})),
        }
    }

    /// Reports that the guest runs at the destination.
    pub(crate) fn running(&mut self, downtime: Option<Duration>) {
        self.downtime = downtime;
        let total = self.began.elapsed().as_secs_f64();
        let down = downtime.map(|downtime| downtime.as_secs_f64());
        if let To::Json = self.to {
            print(&json!({"event": "running", "total_seconds": total, "downtime_seconds": down}));
            return;
        }
        let down = down.map_or(String::new(), |down| format!(", after a stop of {:.0} ms", down * 1e3));
        let is_there = self.remainder == Some(0) || self.arrival.current().is_some_and(|arrival| arrival.is_complete);
        let rest = if is_there {
            "with all of its memory"
        } else {
            "its memory follows"
        };
        self.note(&format!("the guest runs at the destination{down}; {rest}"));
    }

    /// For how long the guest stood still, once it runs at the destination.
    pub(crate) fn downtime(&self) -> Option<Duration> {
        self.downtime
    }

    /// How much of the memory is at the destination, once that has said so.
    pub(crate) fn arrived(&self) -> Option<Arrived> {
        self.arrival.arrived()
    }

    /// Reports where the rounds of the source's vmemd stand.
    pub(crate) fn rounds(&mut self, rounds: &Rounds) {
        self.has_rounds = true;
        if let To::Json = self.to {
            print(&json!({"event": "rounds", "vmemd": rounds}));
            return;
        }
        let progress = Progress {
            done: rounds.memory_bytes.saturating_sub(rounds.left_bytes),
            size: rounds.memory_bytes,
        };
        self.progress(progress, &rounds_text(rounds));
    }

    /// Reports how much is done.
    pub fn progress(&mut self, progress: Progress, text: &str) {
        match &mut self.to {
            To::Json => print(&json!({"event": "progress", "bytes": progress.size, "done_bytes": progress.done})),
            To::Bar(bar) => bar.show(progress, text),
            To::Lines => err(&format!("{progress}  {text}")),
        }
    }

    /// Removes the progress bar.
    pub fn end_progress(&mut self) {
        if let To::Bar(bar) = &mut self.to {
            bar.clear();
        }
    }

    /// Reports a round of the source's vmemd.
    pub(crate) fn round(&mut self, round: &Round) {
        let there = self.rounds.add(round, self.arrival.cpu);
        if let To::Json = self.to {
            print(&json!({"event": "round", "vmemd": round, "destination_cpu_seconds": there}));
            return;
        }
        let there = there.map_or(String::new(), |there| format!(" and {there:.2} s"));
        self.note(&format!(
            "round {}: {} pages in {:.2} s ({}/s), of which {} again and {} zero; {} skipped; {} written meanwhile ({}/s), {} left; \
             processor time {:.2} s{there}",
            round.round,
            round.sent_pages,
            round.seconds,
            bytes(round.bytes_per_second.unwrap_or_default()),
            round.resent_pages,
            round.zero_pages,
            round.skipped_pages,
            round.dirtied_pages,
            bytes(round.dirty_bytes_per_second.unwrap_or_default()),
            round.left_pages,
            round.cpu_seconds
        ));
    }

    /// Reports how many bytes of the memory the destination lacks at the switch.
    pub(crate) fn remainder(&mut self, remainder: u64) {
        self.remainder = Some(remainder);
        self.has_rounds = false;
        if let To::Json = self.to {
            print(&json!({"event": "remainder", "bytes": remainder}));
        } else {
            self.note(&format!("the guest has stopped here; {} are left", bytes(remainder)));
        }
    }

    /// Reports a line of the destination's vmemd. Returns what the line says of the pages, if it says something.
    pub(crate) fn pages(&mut self, line: &Value) -> Option<Pages> {
        let event = event(line);
        if let To::Json = self.to {
            print(&json!({"event": "pages", "vmemd": line}));
        } else if let (Some(Event::Progress(figures)), false) = (&event, self.has_rounds) {
            let text = self.rates.text(figures);
            self.progress(progress(figures), &text);
        }
        match event? {
            Event::Verified(verified) => Some(Pages::Verified(verified)),
            event => self.arrival.update(event).map(Pages::At),
        }
    }

    /// Reports what the destination has found when it compared the memory.
    pub(crate) fn verified(&self, verified: &Verified) {
        if let To::Json = self.to {
            print(&json!({
                "event": "verified",
                "pages": verified.pages,
                "different": verified.different,
                "first": verified.first,
            }));
            return;
        }
        self.note(&format!(
            "{} pages of the guest's memory were compared with the destination's, {} differ",
            verified.pages, verified.different
        ));
    }

    /// Reports that the memory is complete.
    pub(crate) fn complete(&mut self, summary: &Value) {
        let figures = match event(summary) {
            Some(Event::End { figures, .. }) => figures.unwrap_or_default(),
            _ => Figures::default(),
        };
        let (data, zero) = (figures.data_bytes / 4096, figures.zero_bytes / 4096);
        let total = self.began.elapsed().as_secs_f64();
        let seconds = |time: u64| time as f64 / 1e6;
        let (p50, p99) = figures.fault_us.map(|times| (seconds(times.p50), seconds(times.p99))).unzip();
        if let To::Json = self.to {
            print(&json!({
                "event": "done",
                "total_seconds": total,
                "downtime_seconds": self.downtime.map(|downtime| downtime.as_secs_f64()),
                "pages": {"data": data, "zero": zero, "faults": figures.faults},
                "bytes": figures.data_bytes.saturating_add(figures.duplicate_bytes),
                "staged_bytes": figures.staged_bytes,
                "known_bytes": figures.known_bytes,
                "same_bytes": figures.same_bytes,
                "remainder_bytes": self.remainder,
                "rounds": self.rounds.json(),
                "fault_p50_seconds": p50,
                "fault_p99_seconds": p99,
            }));
            return;
        }
        self.end_progress();
        let ms = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{:.1} ms", time * 1e3));
        out("the guest's memory is complete at the destination, and plain");
        if let Some(downtime) = self.downtime {
            out(&format!("stop       {:.0} ms", downtime.as_secs_f64() * 1e3));
        }
        if let Some(remainder) = self.remainder {
            out(&format!(
                "rounds     {} before the stop, {} left at it",
                bytes(figures.staged_bytes),
                bytes(remainder)
            ));
        }
        if let Some(text) = self.rounds.text() {
            out(&format!("           {text}"));
        }
        out(&format!("data       {} in {data} pages", bytes(figures.data_bytes)));
        out(&format!("zero       {zero} pages"));
        if figures.known_bytes > 0 {
            out(&format!("known      {} were in a seed image", bytes(figures.known_bytes)));
        }
        out(&format!(
            "faults     {}, answered in p50 {}, p99 {}",
            figures.faults,
            ms(p50),
            ms(p99)
        ));
        out(&format!("time       {total:.1} s"));
    }
}

/// What a line of the destination's vmemd says of its pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Pages {
    /// How far they are.
    At(Arrival),
    /// What a comparison with the source's has found.
    Verified(Verified),
}

/// How far the pages of the destination are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrival {
    /// Bytes that were staged.
    pub(crate) staged: u64,
    /// Bytes that are present, and those that were compared.
    pub(crate) done: u64,
    /// All pages are present.
    pub(crate) is_complete: bool,
}

/// How much of the memory is at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrived {
    /// Bytes of all memory.
    pub(crate) size: u64,
    /// Bytes that are present.
    pub(crate) present: u64,
    /// Bytes that were staged.
    pub(crate) staged: u64,
    /// Bytes that became present in a second, at the latest report.
    pub(crate) rate: Option<u64>,
}

/// All rounds together.
#[derive(Default)]
struct RoundTotals {
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
    fn add(&mut self, round: &Round, destination: Option<f64>) -> Option<f64> {
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

    fn json(&self) -> Option<Value> {
        (self.count > 0).then(|| {
            json!({
                "count": self.count,
                "seconds": self.seconds,
                "sent_pages": self.sent,
                "zero_pages": self.zero,
                "resent_pages": self.resent,
                "skipped_pages": self.skipped,
                "cpu_seconds": self.cpu,
                "destination_cpu_seconds": self.destination_cpu,
            })
        })
    }

    fn text(&self) -> Option<String> {
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

/// The phases of the regions at the destination, from its vmemd's events.
#[derive(Default)]
struct Arrivals {
    staged: u64,
    verified: u64,
    regions: Vec<Region>,
    /// Processor time of the destination's vmemd, if it says it.
    cpu: Option<f64>,
    present: Rate,
    rate: Option<u64>,
}

impl Arrivals {
    fn update(&mut self, event: Event) -> Option<Arrival> {
        match event {
            Event::Holding { regions, .. } | Event::Ready { regions, .. } => self.regions = regions,
            Event::Progress(figures) => {
                // The figures come from another host.
                let time = Duration::try_from_secs_f64(figures.seconds).unwrap_or_default();
                self.rate = Some(self.present.sample(time, progress(&figures).done) as u64);
                self.cpu = Some(figures.cpu_seconds).filter(|cpu| *cpu > 0.0);
                self.staged = figures.staged_bytes;
                self.verified = figures.verified_bytes;
                self.regions = figures.regions;
            }
            Event::Region(region) => {
                let of_it = self.regions.iter_mut().find(|known| known.name == region.name);
                match of_it {
                    Some(known) => *known = region,
                    None => return None,
                }
            }
            _ => return None,
        }
        self.current()
    }

    /// As [`update`](Self::update), without an event.
    fn current(&self) -> Option<Arrival> {
        let is_complete = |region: &Region| region.bytes > 0 && region.present_bytes >= region.bytes;
        (!self.regions.is_empty()).then(|| Arrival {
            staged: self.staged,
            done: self
                .regions
                .iter()
                .fold(self.verified, |sum, region| sum.saturating_add(region.present_bytes)),
            is_complete: self.regions.iter().all(is_complete),
        })
    }

    fn arrived(&self) -> Option<Arrived> {
        let sum = |of: fn(&Region) -> u64| self.regions.iter().fold(0, |sum: u64, region| sum.saturating_add(of(region)));
        (!self.regions.is_empty()).then(|| Arrived {
            size: sum(|region| region.bytes),
            present: sum(|region| region.present_bytes),
            staged: self.staged,
            rate: self.rate,
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

/// Parses a line of a vmemd, which may be on the other host. `None`: the line is no event.
fn event(line: &Value) -> Option<Event> {
    Event::deserialize(line).ok()
}

fn progress(figures: &Figures) -> Progress {
    let none = Progress { done: 0, size: 0 };
    figures.regions.iter().fold(none, |sum, region| Progress {
        done: sum.done.saturating_add(region.present_bytes),
        size: sum.size.saturating_add(region.bytes),
    })
}

impl Rates {
    /// Rate, pages left, faults, time left.
    fn text(&mut self, now: &Figures) -> String {
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
            progress.left() / 4096,
            progress.time_left(rate)
        )
    }
}

/// Prints an object as one line on standard output.
pub fn print(line: &Value) {
    output::json(&line.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_cover_the_time_since_the_last_line() {
        let line = |seconds: f64, present: u64, faults: u64| {
            json!({"event": "progress", "seconds": seconds, "data_bytes": 0, "faults": faults,
                "fault_us": {"p50": 1000, "p99": 2500, "max": 3000},
                "regions": [{"bytes": 8 << 20, "present_bytes": present}, {"bytes": 8 << 20, "present_bytes": 0}]})
        };
        let figures = |seconds: f64, present: u64, faults: u64| match event(&line(seconds, present, faults)) {
            Some(Event::Progress(figures)) => figures,
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
        assert!(totals.json().is_none() && totals.text().is_none());
        assert_eq!(totals.add(&round(5, 0.5), None), None, "an earlier vmemd does not say it");
        assert_eq!(totals.add(&round(5, 0.5), Some(2.0)), Some(2.0));
        assert_eq!(totals.add(&round(5, 0.5), Some(2.5)), Some(0.5));
        // It was started again.
        assert_eq!(totals.add(&round(5, 0.5), Some(0.25)), Some(0.0));
        let json = totals.json().expect("rounds");
        assert_eq!(
            (&json["count"], &json["sent_pages"], &json["skipped_pages"]),
            (&json!(4), &json!(20), &json!(8))
        );
        assert_eq!(
            (&json["cpu_seconds"], &json["destination_cpu_seconds"]),
            (&json!(2.0), &json!(2.5))
        );
    }

    #[test]
    fn progress_of_the_destination_is_not_shown_while_rounds_are_sent() {
        let mut report = Report::new(false);
        let line = json!({"event": "progress", "seconds": 2.0, "cpu_seconds": 0.5, "staged_bytes": 4096,
            "regions": [{"name": "ram", "bytes": 8192, "present_bytes": 4096}]});
        report.rounds(&Rounds::default());
        report.pages(&line);
        assert_eq!(report.rates.present, Rate::default());
        let arrived = report.arrived().expect("regions");
        assert_eq!(
            (arrived.size, arrived.present, arrived.staged, arrived.rate),
            (8192, 4096, 4096, Some(2048))
        );
        report.remainder(4096);
        report.pages(&line);
        assert_ne!(report.rates.present, Rate::default());
    }

    #[test]
    fn lines_that_are_no_events_do_not_panic() {
        let mut report = Report::new(false);
        for line in [
            Value::Null,
            json!({}),
            json!({"event": "progress"}),
            json!({"event": "end", "exit_code": 0, "error": null}),
            json!({"event": "progress", "seconds": "x", "regions": [7]}),
            json!({"event": "progress", "seconds": 1, "regions": [{"bytes": u64::MAX, "present_bytes": u64::MAX}, {"bytes": 1, "present_bytes": 1}]}),
        ] {
            report.pages(&line);
            report.complete(&line);
        }
    }
}
