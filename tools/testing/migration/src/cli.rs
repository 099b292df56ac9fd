// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::book::Book;
use crate::command::line;
use crate::endurance::{Deed, Endurance};
use crate::guest::{Guest, Load};
use crate::measurement::Measurement;
use crate::method::Method;
use crate::network::Wire;
use crate::rig::Rig;
use crate::variant::Variant;
use crate::{checkpoint, plot, recording, report, saved, suite};

/// Moves running guests from one host to another.
#[derive(Debug, Parser)]
#[command(name = "vmem-migration", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests
    Test(Test),
    /// Move a guest, and tell about it
    Demo(WireArguments),
    /// Make checkpoints of a guest, and restore it on another host
    DemoCheckpoint(DemoCheckpoint),
    /// Compare the ways to move a guest
    Measure(Measure),
    /// Show what was measured
    Report(Report),
    /// Move guests again and again, and say what became of each
    Endure(Endure),
    /// Record the dirty logs of guests
    Record(Record),
    /// Compare checkpoints with what QEMU and userfaultfd do
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
}

#[derive(Debug, Args)]
struct Test {
    /// Only the short tests
    #[arg(long)]
    short: bool,
    /// As of any program of tests: part of a name, --list, --exact
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// What the guest does.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LoadName {
    /// Next to nothing
    Idle,
    /// Checks and writes pages all over its memory
    Writing,
}

/// What is between the hosts.
#[derive(Debug, Args)]
struct WireArguments {
    /// Delay of the wire between the hosts in each direction, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.25)]
    delay: f64,
    /// Its rate, as tc writes it
    #[arg(long, value_name = "RATE", default_value = "1gbit")]
    rate: String,
}

#[derive(Debug, Args)]
struct DemoCheckpoint {
    /// Where the plot of the pauses goes, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    variant: Variant,
    #[command(flatten)]
    wire: WireArguments,
}

#[derive(Debug, Args)]
struct Measure {
    /// How often each guest is moved in each way
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u32,
    /// Only this way; all if none is given
    #[arg(long, value_name = "WAY")]
    method: Vec<Method>,
    /// Only a guest that does this: idle, writing (as fast as it can), or the number of times that it writes what the wire carries; idle, 0.1, 0.5, 1 and
    /// 2 if none is given
    #[arg(long, value_name = "LOAD")]
    load: Vec<MeasuredLoad>,
    #[command(flatten)]
    wire: WireArguments,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Results of a run that has not come to its end: what is there is not measured again
    #[arg(long, value_name = "FILE")]
    go_on_from: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Report {
    /// Results, as `measure` wrote them
    #[arg(value_name = "FILE")]
    results: PathBuf,
    /// Put the tables into this document, between ".. begin measured" and ".. end measured", and the plots beside it
    #[arg(long, value_name = "DOCUMENT")]
    into: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Endure {
    /// Only this way; all if none is given
    #[arg(long, value_name = "WAY")]
    method: Vec<Method>,
    /// Guests that are not moved, besides: they work for as long as a move may take
    #[arg(long)]
    rest: bool,
    /// Guests of which checkpoints are made, besides, and which are not moved
    #[arg(long)]
    checkpoint: bool,
    /// The guest does this
    #[arg(long, value_name = "LOAD", default_value = "writing")]
    load: LoadName,
    /// Pages that the writing guest writes each second; 0: as many as it can
    #[arg(long, value_name = "PAGES", default_value_t = 0)]
    pages: u32,
    /// No new move begins after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 480)]
    seconds: u64,
    /// How often one guest is moved, or checkpoints are made of it
    #[arg(long, value_name = "N", default_value_t = 12)]
    moves: u32,
    /// So many guests more work meanwhile, and are not moved
    #[arg(long, value_name = "N", default_value_t = 0)]
    beside: u8,
    /// The module is not loaded
    #[arg(long, conflicts_with_all = ["method", "checkpoint"], requires = "rest")]
    no_module: bool,
    #[command(flatten)]
    variant: Variant,
    #[command(flatten)]
    wire: WireArguments,
}

#[derive(Debug, Args)]
struct Record {
    /// How long each is recorded
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u32,
    /// Pages that the writing guest writes each second
    #[arg(long, value_name = "PAGES", default_value_t = 2000)]
    pages: u32,
    /// A directory for the traces
    #[arg(value_name = "DIRECTORY")]
    into: PathBuf,
    #[command(flatten)]
    wire: WireArguments,
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Test(test) => return suite::run(test.arguments, test.short),
            Command::Demo(wire) => {
                let rig = Rig::new(&wire.wire())?;
                let setting = wire.setting(&Guest::default())?;
                crate::demo::run(
                    &rig,
                    Book {
                        setting,
                        ..Book::default()
                    },
                )?;
                rig.remove()?;
            }
            Command::DemoCheckpoint(demo) => {
                let rig = Rig::new(&demo.wire.wire())?;
                crate::demo_checkpoint::run(&demo.wire.setting(&Guest::default())?, demo.plot.as_deref(), demo.variant)?;
                rig.remove()?;
            }
            Command::Measure(measure) => measure.run()?,
            Command::Report(report) => report.run()?,
            Command::Endure(endure) => endure.run()?,
            Command::Checkpoint(checkpoint) => checkpoint.run()?,
            Command::Record(record) => {
                let rig = Rig::new(&record.wire.wire())?;
                recording::record(&record.into, record.seconds, record.pages)?;
                rig.remove()?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl WireArguments {
    fn wire(&self) -> Wire {
        Wire {
            delay_ms: self.delay,
            rate: Some(self.rate.clone()),
        }
    }

    /// On what is measured.
    fn setting(&self, guest: &Guest) -> Result<Vec<String>> {
        let qemu = line("qemu-system-x86_64 --version")?;
        let mut first = format!(
            "Linux {}, {}, {} processors; guests on {}",
            line("uname -r")?.trim(),
            qemu.lines().next().unwrap_or_default(),
            std::thread::available_parallelism()?,
            Rig::accelerator(),
        );
        // What `bench` knows of the machine below.
        for (name, variable) in [
            ("the machine itself on", "VMEM_BENCH_ACCELERATOR"),
            ("on", "VMEM_BENCH_HOST_CPU"),
            ("commit", "VMEM_BENCH_COMMIT"),
        ] {
            if let Ok(value) = std::env::var(variable) {
                first += &format!("; {name} {value}");
            }
        }
        Ok(vec![
            first,
            format!(
                "Hosts: two network namespaces, {} ms apart in each direction, {}; guest: {} MiB of RAM, works on {} MiB, 1 processor",
                self.delay,
                self.rate,
                guest.memory_mib.iter().sum::<u32>(),
                guest.work_mib
            ),
        ])
    }
}

impl Endure {
    fn run(&self) -> Result<()> {
        let wire = self.wire.wire();
        let rig = if self.no_module {
            Rig::without_module(&wire)?
        } else {
            Rig::new(&wire)?
        };
        let methods = if self.method.is_empty() && !self.rest && !self.checkpoint {
            Method::FEW
        } else {
            &self.method
        };
        let others = [(self.checkpoint, Deed::Checkpoint), (self.rest, Deed::Rest)];
        let others = others.into_iter().filter_map(|(wanted, deed)| wanted.then_some(deed));
        Endurance {
            deeds: methods.iter().copied().map(Deed::Move).chain(others).collect(),
            load: self.load.load(self.pages),
            times: self.moves,
            until: Instant::now() + Duration::from_secs(self.seconds),
            guest: Guest {
                memory_mib: vec![128],
                work_mib: 32,
                variant: self.variant,
                ..Guest::default()
            },
            beside: self.beside,
        }
        .run();
        rig.remove()
    }
}

impl Measure {
    fn run(self) -> Result<()> {
        let (wire, guest) = (self.wire.wire(), Guest::default());
        // First: without its modules there is no KVM, of which the setting tells.
        let rig = Rig::new(&wire)?;
        let setting = self.wire.setting(&guest)?;
        let loads = if self.load.is_empty() {
            MeasuredLoad::ALL.to_vec()
        } else {
            self.load
        };
        let measurement = Measurement {
            rounds: self.rounds,
            loads: loads.into_iter().map(|load| load.load(&wire)).collect::<Result<_>>()?,
            methods: if self.method.is_empty() {
                Method::ALL.to_vec()
            } else {
                self.method
            },
            guest,
            json: self.json,
        };
        let book = match &self.go_on_from {
            Some(path) => saved::read::<Book>(path)?.go_on(setting)?,
            None => Book {
                setting,
                ..Book::default()
            },
        };
        let book = measurement.run(&rig, book)?;
        print!("{}", report::text(&book));
        rig.remove()
    }
}

/// What a measured guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MeasuredLoad {
    Idle,
    Writing,
    /// So many percent of what the wire carries.
    OfWire(u32),
}

impl MeasuredLoad {
    const ALL: [Self; 5] = [
        Self::Idle,
        Self::OfWire(10),
        Self::OfWire(50),
        Self::OfWire(100),
        Self::OfWire(200),
    ];

    fn load(self, wire: &Wire) -> Result<Load> {
        Ok(match self {
            Self::Idle => Load::Idle,
            Self::Writing => Load::Writing(0),
            Self::OfWire(percent) => {
                let bytes = wire.bytes_per_second()? * u64::from(percent) / 100;
                let pages = u32::try_from(bytes / 4096).context("a wire that is too fast")?;
                Load::OfWire {
                    percent,
                    pages: pages.max(1),
                }
            }
        })
    }
}

impl FromStr for MeasuredLoad {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "idle" => Ok(Self::Idle),
            "writing" => Ok(Self::Writing),
            _ => match text.parse::<f64>() {
                Ok(times) if (0.01..=100.0).contains(&times) => Ok(Self::OfWire((times * 100.0).round() as u32)),
                _ => Err("neither idle, nor writing, nor a number from 0.01 to 100".into()),
            },
        }
    }
}

impl LoadName {
    /// Of a guest that writes so many pages a second.
    fn load(self, pages: u32) -> Load {
        match self {
            Self::Idle => Load::Idle,
            Self::Writing => Load::Writing(pages),
        }
    }
}

impl Report {
    fn run(&self) -> Result<()> {
        let book = saved::read::<Book>(&self.results)?;
        if let Some(path) = &self.into {
            let document = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let document = report::replace(&document, &book);
            let document = document.with_context(|| format!("{} has no place for tables", path.display()))?;
            fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        }
        // Without a document, beside the results.
        let beside = self.into.as_ref().unwrap_or(&self.results);
        for ((file, _), plot) in report::PLOTS.iter().zip([plot::work(&book), plot::left(&book)]) {
            let path = beside.with_file_name(file);
            fs::write(&path, plot).with_context(|| format!("cannot write {}", path.display()))?;
        }
        print!("{}", report::text(&book));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_named_or_a_multiple_of_what_the_wire_carries() -> Result<()> {
        let wire = |rate: &str| Wire {
            delay_ms: 0.0,
            rate: Some(rate.into()),
        };
        let half: MeasuredLoad = "0.5".parse().map_err(anyhow::Error::msg)?;
        let pages = |rate: &str| match half.load(&wire(rate))? {
            Load::OfWire { percent: 50, pages } => Ok(pages),
            load => anyhow::bail!("{load:?}"),
        };
        assert_eq!((pages("300mbit")?, pages("1gbit")?), (4577, 15258));
        assert!(pages("1parsec").is_err());
        assert_eq!("idle".parse(), Ok(MeasuredLoad::Idle));
        assert!("0".parse::<MeasuredLoad>().is_err());
        Ok(())
    }
}
