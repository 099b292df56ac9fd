// SPDX-License-Identifier: GPL-2.0-or-later
//! Output of the commands: for users at a terminal, for readers of a log, or for programs. Nothing here waits for a reader, because the
//! guest may stand still meanwhile, and because signals must be handled.

mod arrival;
mod line;
mod rates;
mod rounds;
pub(crate) mod subject;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmem_cli::output;
use vmem_cli::{Progress, ProgressBar, bytes};
use vmem_control::{Event, Figures, Round, Rounds, Verified};

pub(crate) use arrival::Arrival;
pub use line::{CommonLine, Done, MoveLine, PageCounts, RoundSums};
pub(crate) use rounds::rounds_text;

use arrival::{Arrivals, Arrived, progress};
use rates::Rates;
use rounds::RoundTotals;

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
            To::Json => print(&CommonLine::Note { text }),
        }
    }

    /// Reports that the guest runs at the destination.
    pub(crate) fn running(&mut self, downtime: Option<Duration>) {
        self.downtime = downtime;
        let down = downtime.map(|downtime| downtime.as_secs_f64());
        if let To::Json = self.to {
            print(&MoveLine::Running {
                total_seconds: self.began.elapsed().as_secs_f64(),
                downtime_seconds: down,
            });
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
            print(&MoveLine::Rounds { vmemd: rounds });
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
            To::Json => print(&CommonLine::Progress {
                bytes: progress.size,
                done_bytes: progress.done,
            }),
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
            print(&MoveLine::Round {
                vmemd: round,
                destination_cpu_seconds: there,
            });
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
            print(&MoveLine::Remainder { bytes: remainder });
        } else {
            self.note(&format!("the guest has stopped here; {} are left", bytes(remainder)));
        }
    }

    /// Reports a line of the destination's vmemd. Returns what the line says of the pages, if it says something.
    pub(crate) fn pages(&mut self, line: &Value) -> Option<Pages> {
        let event = event(line);
        if let To::Json = self.to {
            print(&MoveLine::Pages { vmemd: line });
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
            print(&MoveLine::Verified {
                pages: verified.pages,
                different: verified.different,
                first: &verified.first,
            });
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
        let [data, zero] = [figures.data_bytes, figures.zero_bytes].map(|bytes| bytes / vmem::PAGE_SIZE as u64);
        let total = self.began.elapsed().as_secs_f64();
        let seconds = |time: u64| time as f64 / 1e6;
        let (p50, p99) = figures.fault_us.map(|times| (seconds(times.p50), seconds(times.p99))).unzip();
        if let To::Json = self.to {
            print(&MoveLine::Done(Box::new(Done {
                total_seconds: total,
                downtime_seconds: self.downtime.map(|downtime| downtime.as_secs_f64()),
                pages: PageCounts {
                    data,
                    zero,
                    faults: figures.faults,
                },
                bytes: figures.data_bytes.saturating_add(figures.duplicate_bytes),
                staged_bytes: figures.staged_bytes,
                known_bytes: figures.known_bytes,
                same_bytes: figures.same_bytes,
                remainder_bytes: self.remainder,
                rounds: self.rounds.sums(),
                fault_p50_seconds: p50,
                fault_p99_seconds: p99,
            })));
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

/// Parses a line of a vmemd, which may be on the other host. `None`: the line is no event.
fn event(line: &Value) -> Option<Event> {
    Event::deserialize(line).ok()
}

/// Prints an object as one line on standard output.
pub fn print(line: &impl Serialize) {
    // Numbers and texts: serializing them does not fail.
    let line = serde_json::to_value(line).unwrap_or_default();
    output::json(&subject::event(&line).to_string());
}

fn out(line: &str) {
    output::out(&subject::line(line));
}

fn err(line: &str) {
    output::err(&subject::line(line));
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmem_cli::Rate;

    use super::*;

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
