// SPDX-License-Identifier: GPL-2.0-or-later
//! What was measured: the figures of each round, as they were, and medians, spreads and ratios of them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Results of a run, with where they are from.
#[derive(Debug, Serialize, Deserialize)]
pub struct Book {
    /// Where they are from.
    pub setting: Setting,
    /// One line per thing measured.
    pub lines: Vec<Line>,
}

/// Where figures are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// `uname -r`.
    pub kernel: String,
    /// What the measured machine takes for its processor.
    pub cpu: String,
    /// Processors of the measured machine.
    pub cpus: usize,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// What runs the measured machine: `kvm`, `tcg`, or [`ICOUNT`].
    pub accelerator: String,
    /// The processor below.
    pub host_cpu: String,
    /// The project's commit.
    pub commit: String,
}

impl Setting {
    /// Whether a microsecond of this machine is a thousand instructions.
    #[must_use]
    pub fn counts_instructions(&self) -> bool {
        self.accelerator == ICOUNT
    }
}

/// The accelerator whose clock counts instructions.
pub const ICOUNT: &str = "tcg, icount";

/// One thing that was measured, of all that are compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Number of the case.
    pub case: u8,
    /// What it is.
    pub what: String,
    /// In what.
    pub unit: String,
    /// What is compared, in the order in which it was measured first.
    pub cells: Vec<Cell>,
}

/// The figures of one that is compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Its name.
    pub by: String,
    /// A figure for each round. Those of one round were measured one right after the other.
    pub rounds: Vec<f64>,
}

impl Book {
    /// Adds the figure of one round.
    pub fn add(&mut self, case: u8, what: &str, unit: &str, by: &str, value: f64) {
        let known = self.lines.iter().position(|line| line.case == case && line.what == what);
        let at = known.unwrap_or_else(|| {
            self.lines.push(Line {
                case,
                what: what.into(),
                unit: unit.into(),
                cells: Vec::new(),
            });
            self.lines.len() - 1
        });
        let cells = &mut self.lines[at].cells;
        match cells.iter_mut().find(|cell| cell.by == by) {
            Some(cell) => cell.rounds.push(value),
            None => cells.push(Cell {
                by: by.into(),
                rounds: vec![value],
            }),
        }
    }
}

impl Line {
    /// The figures of `by`.
    #[must_use]
    pub fn cell(&self, by: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.by == by)
    }

    /// Of these, the one that does best.
    #[must_use]
    pub fn best_of(&self, names: &[&str]) -> Option<&Cell> {
        let median = |cell: &Cell| Figure::of(&cell.rounds).map_or(f64::NAN, |figure| figure.median);
        let named = self.cells.iter().filter(|cell| names.contains(&cell.by.as_str()));
        named.min_by(|a, b| {
            let order = median(a).total_cmp(&median(b));
            if self.more_is_better() { order.reverse() } else { order }
        })
    }

    /// Whether more is better.
    fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s")
    }
}

/// Median and spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The tenth part is below.
    pub low: f64,
    /// The middle.
    pub median: f64,
    /// The tenth part is above.
    pub high: f64,
}

impl Figure {
    /// Of these values; `None` of no values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            low: quantile(&sorted, 0.1)?,
            median: quantile(&sorted, 0.5)?,
            high: quantile(&sorted, 0.9)?,
        })
    }

    /// Of the ratios, round by round: what disturbs the machine for longer than a round disturbs both alike.
    #[must_use]
    pub fn of_ratio(of: &Cell, to: &Cell) -> Option<Self> {
        let ratios: Vec<f64> = of.rounds.iter().zip(&to.rounds).map(|(of, to)| of / to).collect();
        Self::of(&ratios)
    }

    /// Whether it says that there is a difference: 1 is not within the spread.
    #[must_use]
    pub fn differs_from_one(self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// The value at `part` of sorted values, between two of them if it is so.
#[must_use]
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = part * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    let (low, high) = (*sorted.get(below)?, *sorted.get(above)?);
    Some(low + (high - low) * (at - at.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.9), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.5), Some(1.5));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), Some(4.0));
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let cell = |rounds: &[f64]| Cell {
            by: String::new(),
            rounds: rounds.into(),
        };
        let (slow_machine, fast_machine) = ([10.0, 20.0], [1.0, 2.0]);
        let of = cell(&[slow_machine[0], fast_machine[0]]);
        let to = cell(&[slow_machine[1], fast_machine[1]]);
        let ratio = Figure::of_ratio(&of, &to);
        assert_eq!(
            ratio,
            Some(Figure {
                low: 0.5,
                median: 0.5,
                high: 0.5
            })
        );
        assert!(ratio.is_some_and(Figure::differs_from_one));
    }
}
