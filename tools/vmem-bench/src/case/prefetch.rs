// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 9: what it brings, and what it costs, that vmemd fetches pages ahead of a program that goes through memory in equal steps.

use std::time::{Duration, Instant};

use super::{Bench, Round};
use crate::contents::verify;
use crate::failure::Outcome;
use crate::order::shuffled;
use crate::peer::Kind;
use crate::transfer::{MemoryFile, Source, Transfer};

/// Pages in all: 32 MiB.
const PAGES: u64 = 8192;
/// Pages that are touched.
const TOUCHED: u64 = 512;
/// How long what is on its way may take to come.
const REST: Duration = Duration::from_millis(20);

const WITHOUT: (&str, &[&str]) = ("without prefetch", &["--no-background", "--prefetch", "0"]);
const WITH: (&str, &[&str]) = ("prefetch", &["--no-background", "--prefetch", "32"]);

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    let source = Source::of(MemoryFile::full("source", PAGES, &bench.contents)?)?;
    let orders = [
        ("one page after the other", (0..TOUCHED).collect()),
        ("every 7th page", (0..TOUCHED).map(|at| at * 7).collect()),
        ("backwards", (0..TOUCHED).rev().collect()),
        // What is foreseen here is wrong.
        (
            "random",
            shuffled(PAGES, number).into_iter().take(TOUCHED as usize).collect::<Vec<_>>(),
        ),
        (
            "three in a row, anywhere",
            shuffled(PAGES / 4, number)
                .into_iter()
                .flat_map(|at| at * 4..at * 4 + 3)
                .take(TOUCHED as usize)
                .collect(),
        ),
    ];
    for (what, order) in orders {
        for (by, options) in [WITHOUT, WITH] {
            let transfer = Transfer::start(&source, options)?;
            let memory = transfer.map()?;
            let since = Instant::now();
            for page in &order {
                verify(Kind::Vmem.name(), *page, memory.read(*page as usize))?;
            }
            let time = since.elapsed();
            std::thread::sleep(REST);
            let brought = transfer.handle().info()?.present as f64;
            round.add(what, "us/page", by, time.as_secs_f64() * 1e6 / order.len() as f64);
            round.add(
                format!("{what}, pages brought"),
                "per page touched",
                by,
                brought / order.len() as f64,
            );
        }
    }
    Ok(())
}
