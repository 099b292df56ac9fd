// SPDX-License-Identifier: GPL-2.0
//! The command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::book::Book;
use crate::command::line;
use crate::endurance::Endurance;
use crate::guest::{Guest, Load};
use crate::method::Method;
use crate::network::Wire;
use crate::report;
use crate::rig::Rig;
use crate::variant::Variant;
use crate::{suite, trial};

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
    /// Compare the ways to move a guest
    Measure(Measure),
    /// Show what was measured
    Report(Report),
    /// Move guests again and again, and say what became of each
    Endure(Endure),
}

#[derive(Debug, Args)]
struct Test {
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
struct Measure {
    /// How often each guest is moved in each way
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u32,
    /// Only this way; all if none is given
    #[arg(long, value_name = "WAY")]
    method: Vec<Method>,
    /// Only a guest that does this; both if none is given
    #[arg(long, value_name = "LOAD")]
    load: Vec<LoadName>,
    /// Pages that the writing guest writes each second; 0: as many as it can
    #[arg(long, value_name = "PAGES", default_value_t = 0)]
    pages: u32,
    #[command(flatten)]
    wire: WireArguments,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Report {
    /// Results, as `measure` wrote them
    #[arg(value_name = "FILE")]
    results: PathBuf,
    /// Put the tables into this document, between ".. begin measured" and ".. end measured"
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
    /// The guest does this
    #[arg(long, value_name = "LOAD", default_value = "writing")]
    load: LoadName,
    /// Pages that the writing guest writes each second; 0: as many as it can
    #[arg(long, value_name = "PAGES", default_value_t = 0)]
    pages: u32,
    /// No new move begins after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 480)]
    seconds: u64,
    /// How often one guest is moved
    #[arg(long, value_name = "N", default_value_t = 12)]
    moves: u32,
    /// So many guests more work meanwhile, and are not moved
    #[arg(long, value_name = "N", default_value_t = 0)]
    beside: u8,
    /// The module is not loaded
    #[arg(long, conflicts_with = "method", requires = "rest")]
    no_module: bool,
    #[command(flatten)]
    variant: Variant,
    #[command(flatten)]
    wire: WireArguments,
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Test(test) => return suite::run(test.arguments),
            Command::Demo(wire) => {
                let rig = Rig::new(&wire.wire())?;
                let setting = wire.setting(&Guest::default())?;
                let trials = Vec::new();
                crate::demo::run(
                    &rig,
                    Book {
                        setting,
                        trials,
                        failures: Vec::new(),
                    },
                )?;
                rig.remove()?;
            }
            Command::Measure(measure) => measure.run()?,
            Command::Report(report) => report.run()?,
            Command::Endure(endure) => endure.run()?,
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
        let methods = if self.method.is_empty() && !self.rest {
            Method::ALL
        } else {
            &self.method
        };
        Endurance {
            ways: methods.iter().copied().map(Some).chain(self.rest.then_some(None)).collect(),
            load: self.load.load(self.pages),
            moves: self.moves,
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

impl LoadName {
    /// Of a guest that writes so many pages a second.
    fn load(self, pages: u32) -> Load {
        match self {
            Self::Idle => Load::Idle,
            Self::Writing => Load::Writing(pages),
        }
    }
}

impl Measure {
    fn run(&self) -> Result<()> {
        let rig = Rig::new(&self.wire.wire())?;
        let guest = Guest::default();
        let mut book = Book {
            setting: self.wire.setting(&guest)?,
            trials: Vec::new(),
            failures: Vec::new(),
        };
        let methods = if self.method.is_empty() { Method::ALL } else { &self.method };
        let loads = match self.load.is_empty() {
            true => &[LoadName::Idle, LoadName::Writing],
            false => self.load.as_slice(),
        };
        // One after the other in each round: what else the machine does meets all of them.
        for round in 1..=self.rounds {
            for load in loads {
                let load = load.load(self.pages);
                for method in methods {
                    let what = format!("round {round}, guest {}, {}", load.name(), method.name());
                    let figures = match trial::run(&rig, *method, load, &guest) {
                        Ok(figures) => figures,
                        // What QEMU does by itself is not what fails here; the tables say that it is missing.
                        Err(error) if method.mode().is_none() => {
                            eprintln!("{what}: failed: {error:#}");
                            book.failures.push(format!("{what}: {error:#}"));
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    eprintln!(
                        "{what}: gap {}, total {}",
                        report::seconds(figures.guest_gap),
                        report::seconds(figures.total)
                    );
                    book.trials.push(figures);
                    // After each: what was measured is not lost if the next one fails.
                    if let Some(path) = &self.json {
                        save(&book, path)?;
                    }
                }
            }
        }
        print!("{}", report::text(&book));
        rig.remove()
    }
}

fn save(book: &Book, path: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(book).context("results as JSON")?;
    fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
}

impl Report {
    fn run(&self) -> Result<()> {
        let path = &self.results;
        let json = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let book: Book = serde_json::from_str(&json).with_context(|| format!("{} holds no results", path.display()))?;
        if let Some(path) = &self.into {
            let document = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let document = report::replace(&document, &book);
            let document = document.with_context(|| format!("{} has no place for tables", path.display()))?;
            fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        }
        print!("{}", report::text(&book));
        Ok(())
    }
}
