// SPDX-License-Identifier: GPL-2.0
//! Output of the commands: for users at a terminal, for readers of a log, or for programs. Nothing here waits for a reader, because the
//! guest may stand still meanwhile, and because signals must be handled.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use vmem_cli::output::{self, err, out};
use vmem_cli::{Progress, ProgressBar, Rate, bytes};
use vmem_control::{Event, Figures, Region, Round, Verified};

/// The output of one command.
pub struct Report {
    to: To,
    began: Instant,
    /// The time from the stop of the guest until it was known to run again.
    downtime: Option<Duration>,
    /// Bytes of the memory that the destination lacked at the switch.
    remainder: Option<u64>,
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
        self.note(&format!("the guest runs at the destination{down}; its memory follows"));
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
        if let To::Json = self.to {
            print(&json!({"event": "round", "vmemd": round}));
            return;
        }
        let rate = if round.seconds > 0.0 {
            round.bytes as f64 / round.seconds
        } else {
            0.0
        };
        self.note(&format!(
            "round {}: {} pages in {:.2} s ({}/s), {} pages were written meanwhile, {} left",
            round.round,
            round.sent_pages,
            round.seconds,
            bytes(rate as u64),
            round.dirtied_pages,
            round.left_pages
        ));
    }

    /// Reports how many bytes of the memory the destination lacks at the switch.
    pub(crate) fn remainder(&mut self, remainder: u64) {
        self.remainder = Some(remainder);
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
        } else if let Some(Event::Progress(figures)) = &event {
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
                "remainder_bytes": self.remainder,
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
        out(&format!("data       {} in {data} pages", bytes(figures.data_bytes)));
        out(&format!("zero       {zero} pages"));
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

/// The phases of the regions at the destination, from its vmemd's events.
#[derive(Default)]
struct Arrivals {
    staged: u64,
    verified: u64,
    regions: Vec<Region>,
}

impl Arrivals {
    fn update(&mut self, event: Event) -> Option<Arrival> {
        match event {
            Event::Holding { regions, .. } | Event::Ready { regions, .. } => self.regions = regions,
            Event::Progress(figures) => {
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
        let is_complete = |region: &Region| region.bytes > 0 && region.present_bytes >= region.bytes;
        Some(Arrival {
            staged: self.staged,
            done: self
                .regions
                .iter()
                .fold(self.verified, |sum, region| sum.saturating_add(region.present_bytes)),
            is_complete: !self.regions.is_empty() && self.regions.iter().all(is_complete),
        })
    }
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
