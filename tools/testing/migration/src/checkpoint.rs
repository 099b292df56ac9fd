// SPDX-License-Identifier: GPL-2.0-or-later
//! What checkpoints cost, beside what QEMU and userfaultfd do: `vmem-migration checkpoint`.

mod far;
mod faults;
mod goals;
mod lazy;
mod measurement;
mod names;
mod pauses;
mod plot;
mod report;
mod restores;
mod results;
mod store;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::network::Wire;
use crate::rig::Rig;
use crate::saved;
use measurement::Measurement;
use results::Results;

/// Measures checkpoints, and shows what was measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure, in the machine with the module
    Measure(Measure),
    /// Show what was measured
    Report(Report),
}

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only this part; all if none is given
    #[arg(long, value_name = "PART")]
    part: Vec<measurement::Part>,
    /// RAM of the guest
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=16384))]
    memory: u32,
    /// How much of that it works on
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16000))]
    work: u32,
    /// Pages that the guest writes each second; 0: as many as it can
    #[arg(long, value_name = "PAGES", default_value_t = 5000)]
    pages: u32,
    /// Checkpoints of the store whose depth and retention are measured
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(35..=100_000))]
    checkpoints: u64,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Results of a run that has not come to its end: what is there is not measured again
    #[arg(long, value_name = "FILE")]
    go_on_from: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Results, as `measure` wrote them
    #[arg(value_name = "FILE")]
    results: PathBuf,
    /// Put the tables into this document, between ".. begin measured" and ".. end measured", and the plots beside it
    #[arg(long, value_name = "DOCUMENT")]
    into: Option<PathBuf>,
}

impl Command {
    /// Does what the command line says.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Measure(measure) => measure.run(),
            Self::Report(report) => report.run(),
        }
    }
}

impl Measure {
    fn run(self) -> Result<()> {
        let measurement = Measurement {
            rounds: self.rounds,
            parts: self.part,
            memory_mib: self.memory,
            work_mib: self.work.min(self.memory * 3 / 4),
            pages: self.pages,
            checkpoints: self.checkpoints,
            json: self.json,
        };
        // First: without its modules there is no KVM, of which the setting tells.
        let rig = Rig::new(&Wire {
            delay_ms: 0.0,
            rate: None,
        })?;
        let results = match &self.go_on_from {
            Some(path) => saved::read::<Results>(path)?.go_on(measurement.setting()?)?,
            None => Results::new(measurement.setting()?),
        };
        print!("{}", report::text(&measurement.run(results)?));
        rig.remove()
    }
}

impl Report {
    fn run(&self) -> Result<()> {
        let results = saved::read::<Results>(&self.results)?;
        if let Some(path) = &self.into {
            let document = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let document = report::replace(&document, &results);
            let document = document.with_context(|| format!("{} has no place for tables", path.display()))?;
            fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        }
        // Without a document, beside the results.
        let path = self.into.as_ref().unwrap_or(&self.results).with_file_name(report::PLOT);
        fs::write(&path, plot::goals(&results)).with_context(|| format!("cannot write {}", path.display()))?;
        print!("{}", report::text(&results));
        Ok(())
    }
}
