// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use vmem_figures::Book;

use crate::case::{Bench, CASES};
use crate::contents::Contents;
use crate::report;
use crate::setting;

/// Measures vmem against userfaultfd and plain memory.
#[derive(Debug, Parser)]
#[command(name = "vmem-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, in the machine with the module
    Run(Run),
    /// Show what was measured
    Report(Report),
}

#[derive(Debug, Args)]
struct Run {
    /// Number of a case; all if none is given
    #[arg(long, value_name = "N")]
    case: Vec<u8>,
    /// Rounds of each case
    #[arg(long, value_name = "R", default_value_t = 7, overrides_with = "repeat", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Measure only what the tables call so, for example for a profile
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Show each figure at once
    #[arg(long)]
    verbose: bool,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Report {
    /// Results, as `run` wrote them
    #[arg(required = true, value_name = "FILE")]
    results: Vec<PathBuf>,
    /// As reStructuredText
    #[arg(long)]
    rst: bool,
    /// Put the tables into this document, between ".. begin measured" and ".. end measured"
    #[arg(long, value_name = "DOCUMENT")]
    into: Option<PathBuf>,
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(run) => run.run(),
            Command::Report(report) => report.run(),
        }
    }
}

impl Run {
    fn run(self) -> anyhow::Result<()> {
        let known = |number: &u8| CASES.iter().any(|case| case.number == *number);
        if let Some(unknown) = self.case.iter().find(|number| !known(number)) {
            anyhow::bail!("there is no case {unknown}");
        }
        let mut bench = Bench {
            book: Book {
                setting: setting::here()?,
                lines: Vec::new(),
            },
            contents: Arc::new(Contents::new()),
            rounds: self.repeat.into(),
            show: self.verbose,
            only: self.only.clone(),
        };
        let chosen = |number| self.case.is_empty() || self.case.contains(&number);
        for case in CASES.iter().filter(|case| chosen(case.number)) {
            let since = Instant::now();
            case.run(&mut bench)
                .with_context(|| format!("case {}, {}", case.number, case.title))?;
            eprintln!("case {}, {}: {:.0} s", case.number, case.title, since.elapsed().as_secs_f64());
            // After each case: what was measured is not lost if the next one fails.
            if let Some(path) = &self.json {
                save(&bench.book, path)?;
            }
        }
        print!("{}", report::text(std::slice::from_ref(&bench.book)));
        Ok(())
    }
}

fn save(book: &Book, path: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(book).context("results as JSON")?;
    fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
}

impl Report {
    fn run(self) -> anyhow::Result<()> {
        let mut books = Vec::new();
        for path in &self.results {
            let json = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let book: Book = serde_json::from_str(&json).with_context(|| format!("{} holds no results", path.display()))?;
            books.push(book);
        }
        if let Some(path) = &self.into {
            let document = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let document = report::replace(&document, &books);
            let document = document.with_context(|| format!("{} has no place for tables", path.display()))?;
            fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        }
        print!("{}", if self.rst { report::rst(&books) } else { report::text(&books) });
        Ok(())
    }
}
