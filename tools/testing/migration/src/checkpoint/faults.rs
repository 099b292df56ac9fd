// SPDX-License-Identifier: GPL-2.0-or-later
//! Arming and the first write after it: vmem-bench measures them, in the same machine.

use std::path::Path;

use anyhow::{Context, Result};
use vmem_figures::Book;

use super::names::{ARMING, FIRST_WRITE, UFFD_WP, VMEM_BENCH};
use super::results::{Figures, found};
use crate::command::run;

const PROGRAM: &str = "build/target/release/vmem-bench";
/// The case of snapshots.
const CASE: u8 = 12;
/// Where its results go.
const FILE: &str = "/tmp/vmem-checkpoint-faults.json";

/// One round of it, after one that is thrown away.
pub(super) fn measure() -> Result<Figures> {
    run(
        PROGRAM,
        &["run", "--case", &CASE.to_string(), "--repeat", "1", "--json", FILE],
    )?;
    let json = std::fs::read_to_string(FILE).context("vmem-bench has left no results")?;
    std::fs::remove_file(Path::new(FILE))?;
    let book: Book = serde_json::from_str(&json).context("the results of vmem-bench")?;
    let mut figures = Vec::new();
    for what in [ARMING, FIRST_WRITE] {
        for by in [VMEM_BENCH, UFFD_WP] {
            let line = book.lines.iter().find(|line| line.case == CASE && line.what == what);
            let rounds = line.and_then(|line| line.cell(by)).map(|cell| &cell.rounds);
            let value = rounds.and_then(|rounds| rounds.first());
            let value = value.with_context(|| format!("vmem-bench has no figure for {what:?} by {by:?}"))?;
            figures.push(found(what, "us/page", by, *value));
        }
    }
    Ok(figures)
}
