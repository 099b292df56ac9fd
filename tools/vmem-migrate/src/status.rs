// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl status`: where migrations stand.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use vmem_cli::output::out;
use vmem_cli::{bytes, chain};
use vmem_control::{Client, Event, Figures, Migration, MigrationPhase, State};

use crate::Phase;
use crate::daemon::SOCKET as VMEMD;
use crate::error::{Cause, Error};
use crate::ongoing::{LIMIT, Ongoing, Record};
use crate::options::{Common, Status};
use crate::report::print;

/// How long to wait for a second report of a vmemd, which tells the rate. There is one a second.
const SECOND_REPORT: Duration = Duration::from_millis(1500);

/// After what time in which nothing has moved that is said.
const IDLE: f64 = 5.0;

/// Prints where migrations stand: all of this host, or those of one guest.
pub fn run(cli: &Common, args: &Status) -> Result<(), Error> {
    let found = match &args.guest {
        Some(guest) => Ongoing::named(&cli.state, guest)?,
        None => Ongoing::all(&cli.state)?,
    };
    for migration in &found {
        let status = of(migration);
        if cli.json {
            print(&status.line(migration));
        } else {
            status.lines(migration).iter().for_each(|line| out(line));
        }
    }
    if found.is_empty() && !cli.json {
        out(&format!("no migration is recorded in {}", cli.state.display()));
    }
    Ok(())
}

/// What is known of a migration.
enum Known {
    /// What the source's vmemctl says.
    Leaving(Box<Migration>),
    /// What the record and the destination's vmemd say.
    Coming(Coming),
    /// Its vmemctl or its record says nothing, for this reason.
    Silent(String),
}

/// A guest that comes.
struct Coming {
    phase: Phase,
    /// How far vmemd is; `None` if none answers, for this reason.
    vmemd: Result<Pages, String>,
}

/// The pages of a guest that comes.
#[derive(Clone, Copy, Debug)]
struct Pages {
    state: State,
    /// Bytes of all memory, and those that are present.
    size: u64,
    present: u64,
    /// Bytes that came in rounds.
    staged: u64,
    /// Bytes that arrived in a second.
    rate: Option<u64>,
}

fn of(migration: &Ongoing) -> Known {
    match &migration.record {
        Record::Unreadable(why) => Known::Silent(why.clone()),
        Record::Out(_) => match ask(migration) {
            Ok(status) => Known::Leaving(Box::new(status)),
            Err(cause) => Known::Silent(chain(&cause)),
        },
        Record::In(record) => Known::Coming(Coming {
            phase: record.phase,
            vmemd: pages(migration),
        }),
    }
}

fn ask(migration: &Ongoing) -> Result<Migration, Cause> {
    let mut client = migration.connect()?;
    let status = client
        .status(LIMIT)
        .map_err(Cause::call("its vmemctl does not say how far it is"))?;
    Ok(status.migration.unwrap_or_else(|| Migration {
        guest: migration.guest.clone(),
        ..Migration::default()
    }))
}

fn pages(migration: &Ongoing) -> Result<Pages, String> {
    let known = |error: vmem_control::Error| match error {
        error if error.is_nobody() => "no vmemd is there".to_owned(),
        error => format!("vmemd cannot be asked: {}", chain(&error)),
    };
    let mut client = Client::connect(&migration.directory.join(VMEMD), LIMIT).map_err(known)?;
    let status = client.status(LIMIT).map_err(known)?;
    let first = status.figures.unwrap_or_default();
    // Without it, the rate is not known.
    let second = next_report(&mut client, &first).ok().flatten();
    let rate = second.as_ref().and_then(|second| rate(&first, second));
    let latest = second.unwrap_or(first);
    Ok(Pages {
        state: status.state,
        size: sum(&latest, |region| region.bytes),
        present: sum(&latest, |region| region.present_bytes),
        staged: latest.staged_bytes,
        rate,
    })
}

/// The next report of a vmemd that is later than this one.
fn next_report(client: &mut Client, first: &Figures) -> Result<Option<Figures>, vmem_control::Error> {
    client.subscribe(LIMIT)?;
    let until = Instant::now() + SECOND_REPORT;
    while let Some(event) = client.event(until)? {
        match event {
            Event::Progress(figures) if figures.seconds > first.seconds => return Ok(Some(figures)),
            _ if Instant::now() > until => break,
            _ => {}
        }
    }
    Ok(None)
}

fn sum(figures: &Figures, of: fn(&vmem_control::Region) -> u64) -> u64 {
    figures
        .regions
        .iter()
        .fold(0, |sum: u64, region| sum.saturating_add(of(region)))
}

/// Bytes a second from one report to the next, staged ones among them.
fn rate(first: &Figures, second: &Figures) -> Option<u64> {
    let arrived = |figures: &Figures| {
        figures
            .staged_bytes
            .saturating_add(sum(figures, |region| region.present_bytes))
    };
    let seconds = second.seconds - first.seconds;
    (seconds > 0.1).then(|| (arrived(second).saturating_sub(arrived(first)) as f64 / seconds) as u64)
}

/// A line of `vmemctl status`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StatusLine<'a> {
    /// A move.
    Migration(MigrationLine<'a>),
}

/// A move, and what is known of it.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MigrationLine<'a> {
    #[serde(flatten)]
    known: KnownLine<'a>,
    /// Whether the guest leaves this host (`out`) or comes to it (`in`).
    direction: Direction,
    /// The guest's name.
    guest: &'a str,
    /// What tells the guest from others of the same name.
    key: &'a str,
}

/// Where a guest goes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum Direction {
    /// It comes to this host.
    In,
    /// It leaves this host.
    Out,
}

/// What is known of a move.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
enum KnownLine<'a> {
    /// The guest leaves this host, and its vmemctl says this.
    Leaving(&'a Migration),
    /// The guest comes to this host, and its vmemd says this.
    Coming {
        /// The phase of the record.
        phase: Phase,
        /// The state of vmemd.
        vmemd: State,
        /// Bytes of all memory.
        memory_bytes: u64,
        /// Bytes that are not present yet.
        left_bytes: u64,
        /// Bytes that came in rounds.
        staged_bytes: u64,
        /// Bytes that arrived in a second; null if that is not known.
        bytes_per_second: Option<u64>,
    },
    /// The guest comes to this host, and no vmemd answers.
    NoVmemd {
        /// The phase of the record.
        phase: Phase,
        /// No vmemd answers.
        vmemd: (),
        /// Why, for people.
        error: &'a str,
    },
    /// The guest leaves this host, and no vmemctl answers.
    Recorded {
        /// It is not known where the move stands.
        phase: (),
        /// The phase of the record.
        recorded: Phase,
        /// Where the guest goes: the address in the record.
        to: &'a str,
        /// Why nothing more is known, for people.
        error: &'a str,
    },
    /// Nothing is known.
    Silent {
        /// It is not known where the move stands.
        phase: (),
        /// Why, for people.
        error: &'a str,
    },
}

impl Known {
    fn line<'a>(&'a self, migration: &'a Ongoing) -> StatusLine<'a> {
        let known = match self {
            Self::Leaving(status) => KnownLine::Leaving(status),
            Self::Coming(Coming { phase, vmemd }) => match vmemd {
                Ok(pages) => KnownLine::Coming {
                    phase: *phase,
                    vmemd: pages.state,
                    memory_bytes: pages.size,
                    left_bytes: pages.size.saturating_sub(pages.present),
                    staged_bytes: pages.staged,
                    bytes_per_second: pages.rate,
                },
                Err(error) => KnownLine::NoVmemd {
                    phase: *phase,
                    vmemd: (),
                    error,
                },
            },
            Self::Silent(error) => match &migration.record {
                Record::Out(Some(record)) => KnownLine::Recorded {
                    phase: (),
                    recorded: record.phase,
                    to: &record.to,
                    error,
                },
                _ => KnownLine::Silent { phase: (), error },
            },
        };
        StatusLine::Migration(MigrationLine {
            known,
            direction: if migration.is_coming { Direction::In } else { Direction::Out },
            guest: &migration.guest,
            key: &migration.key,
        })
    }

    fn lines(&self, migration: &Ongoing) -> Vec<String> {
        let guest = migration.guest.escape_debug();
        match self {
            Self::Leaving(status) => leaving(&guest.to_string(), status),
            Self::Coming(coming) => coming.lines(&guest.to_string()),
            Self::Silent(why) => vec![format!("{guest}"), line("error", why)],
        }
    }
}

// Numbers and strings: serializing them does not fail.
fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn line(what: &str, text: &str) -> String {
    format!("  {what:<10} {text}")
}

fn per_second(rate: u64) -> String {
    format!("{}/s", bytes(rate))
}

/// The lines about a guest that leaves this host.
fn leaving(guest: &str, status: &Migration) -> Vec<String> {
    let mode = match status.mode.as_str() {
        "" => String::new(),
        mode => format!(", mode {mode}"),
    };
    let mut lines = vec![
        match status.to.as_str() {
            "" => format!("{guest}: leaves this host"),
            to => format!("{guest}: leaves this host for {}", to.escape_debug()),
        },
        line(
            "phase",
            &format!("{}{mode}, after {:.0} s", status.phase.name(), status.seconds),
        ),
    ];
    if let Some(rounds) = &status.rounds {
        let known = |rate: Option<u64>| rate.map_or("not known yet".to_owned(), per_second);
        lines.push(line(
            "round",
            &format!(
                "{}: {} sent; {} of {} left",
                rounds.round,
                bytes(rounds.sent_bytes),
                bytes(rounds.left_bytes),
                bytes(rounds.memory_bytes)
            ),
        ));
        lines.push(line("writes", &known(rounds.dirty_bytes_per_second)));
        let limit = rounds
            .limit
            .map_or("no limit".to_owned(), |limit| format!("limit {}", per_second(limit)));
        lines.push(line("bandwidth", &format!("{}; {limit}", known(rounds.bytes_per_second))));
        let expected = rounds
            .expected_ms
            .map_or("not known yet".to_owned(), |ms| format!("{ms} ms expected for what is left"));
        lines.push(line(
            "downtime",
            &format!("{expected}; {} ms allowed", rounds.max_downtime_ms),
        ));
    } else if let (Some(left), Some(size)) = (status.left_bytes, status.memory_bytes) {
        let rate = status.bytes_per_second.unwrap_or_default();
        let time = match (left, rate) {
            (0, _) | (_, 0) => String::new(),
            (left, rate) => format!(", about {:.0} s", left as f64 / rate as f64),
        };
        lines.push(line(
            "left",
            &format!("{} of {}; {} arrive{time}", bytes(left), bytes(size), per_second(rate)),
        ));
    }
    if let Some(downtime) = status.downtime_ms {
        lines.push(line("stop", &format!("{downtime} ms")));
    }
    if status.idle_seconds >= IDLE && status.phase != MigrationPhase::Preparing {
        lines.push(line("idle", &format!("nothing has moved for {:.0} s", status.idle_seconds)));
    }
    lines
}

impl Coming {
    fn lines(&self, guest: &str) -> Vec<String> {
        let mut lines = vec![
            format!("{guest}: comes to this host"),
            line("phase", to_json(&self.phase).as_str().unwrap_or_default()),
        ];
        match &self.vmemd {
            Err(why) => lines.push(line("pages", why)),
            Ok(pages) => {
                let missing = pages.size.saturating_sub(pages.present);
                lines.push(line(
                    "pages",
                    &format!(
                        "{} missing, {} of {}",
                        missing / vmem::PAGE_SIZE as u64,
                        bytes(missing),
                        bytes(pages.size)
                    ),
                ));
                if pages.staged > 0 {
                    lines.push(line("staged", &bytes(pages.staged)));
                }
                lines.push(line("rate", &pages.rate.map_or("not known".to_owned(), per_second)));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use vmem_control::{Region, Rounds};

    use super::*;

    #[test]
    fn rounds_are_shown_with_what_is_left_and_the_downtime() {
        let status = Migration {
            to: "host:8637".to_owned(),
            phase: MigrationPhase::Rounds,
            mode: "hybrid".to_owned(),
            seconds: 12.3,
            rounds: Some(Rounds {
                round: 3,
                memory_bytes: 4 << 30,
                sent_bytes: 120 << 20,
                left_bytes: 300 << 20,
                dirty_bytes_per_second: Some(34 << 20),
                bytes_per_second: Some(95 << 20),
                limit: Some(100 << 20),
                max_downtime_ms: 100,
                expected_ms: Some(3157),
                ..Rounds::default()
            }),
            ..Migration::default()
        };
        assert_eq!(
            leaving("guest0", &status),
            [
                "guest0: leaves this host for host:8637",
                "  phase      rounds, mode hybrid, after 12 s",
                "  round      3: 120.00 MiB sent; 300.00 MiB of 4.00 GiB left",
                "  writes     34.00 MiB/s",
                "  bandwidth  95.00 MiB/s; limit 100.00 MiB/s",
                "  downtime   3157 ms expected for what is left; 100 ms allowed",
            ]
        );
    }

    #[test]
    fn postcopy_in_which_nothing_moves_says_so() {
        let status = Migration {
            to: "host:8637".to_owned(),
            phase: MigrationPhase::Postcopy,
            committed: true,
            seconds: 70.0,
            idle_seconds: 14.2,
            memory_bytes: Some(4 << 30),
            left_bytes: Some(1 << 30),
            bytes_per_second: Some(0),
            downtime_ms: Some(123),
            ..Migration::default()
        };
        assert_eq!(
            leaving("guest0", &status)[1..],
            [
                "  phase      postcopy, after 70 s",
                "  left       1.00 GiB of 4.00 GiB; 0 B/s arrive",
                "  stop       123 ms",
                "  idle       nothing has moved for 14 s",
            ]
        );
    }

    #[test]
    fn rate_covers_staged_pages_and_needs_time() {
        let figures = |seconds: f64, staged_bytes: u64, present_bytes: u64| Figures {
            seconds,
            staged_bytes,
            regions: vec![Region {
                name: "ram".to_owned(),
                bytes: 1 << 30,
                present_bytes,
                unreadable_pages: 0,
                phase: vmem_control::Phase::Filling,
                ..Region::default()
            }],
            ..Figures::default()
        };
        assert_eq!(rate(&figures(1.0, 0, 0), &figures(3.0, 4096, 8192)), Some(6144));
        assert_eq!(rate(&figures(1.0, 0, 0), &figures(1.0, 4096, 0)), None);
        assert_eq!(rate(&figures(2.0, 0, 8192), &figures(3.0, 0, 0)), Some(0));
    }
}
