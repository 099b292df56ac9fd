// SPDX-License-Identifier: GPL-2.0-or-later
//! What was measured of checkpoints.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use vmem_figures::{Book, Figure, Line, Setting};

/// The number that the lines of these measurements have. Those of vmem-bench have the numbers of its cases, which are less.
pub(super) const CASE: u8 = 100;

/// All of a run.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Results {
    /// The machine, and a line for each thing measured, in the form of vmem-bench.
    #[serde(flatten)]
    pub(super) book: Book,
    /// The guests and the store.
    #[serde(default)]
    pub(super) guest: String,
    /// What was begun, also if the machine has died in it: each attempt.
    #[serde(default)]
    begun: Vec<Trial>,
    /// What need not be measured any more.
    #[serde(default)]
    over: Vec<Trial>,
    /// What failed, and is missing in the lines.
    #[serde(default)]
    pub(super) failures: Vec<String>,
}

/// One measurement of one round.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Trial {
    /// From 1.
    pub(super) round: u16,
    pub(super) name: String,
}

/// One figure of a trial.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) by: &'static str,
    pub(super) value: f64,
}

/// Figures of one trial.
pub(super) type Figures = Vec<Found>;

pub(super) fn found(what: &'static str, unit: &'static str, by: &'static str, value: f64) -> Found {
    Found { what, unit, by, value }
}

impl Results {
    pub(super) fn new((setting, guest): (Setting, String)) -> Self {
        Self {
            book: Book {
                setting,
                lines: Vec::new(),
            },
            guest,
            begun: Vec::new(),
            over: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// To go on with in this setting. What was measured in another one does not belong to it.
    pub(super) fn go_on(self, (setting, guest): (Setting, String)) -> Result<Self> {
        ensure!(
            self.book.setting == setting && self.guest == guest,
            "these results are of another setting: {:?} {:?}, and not {setting:?} {guest:?}",
            self.book.setting,
            self.guest
        );
        Ok(self)
    }

    pub(super) fn is_over(&self, trial: &Trial) -> bool {
        self.over.contains(trial)
    }

    /// How often it was begun.
    pub(super) fn attempts(&self, trial: &Trial) -> usize {
        self.begun.iter().filter(|begun| *begun == trial).count()
    }

    pub(super) fn begin(&mut self, trial: &Trial) {
        self.begun.push(trial.clone());
    }

    pub(super) fn end(&mut self, trial: &Trial, figures: Figures) {
        for figure in figures {
            self.book.add(CASE, figure.what, figure.unit, figure.by, figure.value);
        }
        self.over.push(trial.clone());
    }

    pub(super) fn fail(&mut self, trial: &Trial, error: &str) {
        // What QEMU says of a virtual processor has many lines.
        let error = error.lines().next().unwrap_or_default();
        self.failures.push(format!("round {}, {}: {error}", trial.round, trial.name));
        self.over.push(trial.clone());
    }

    pub(super) fn line(&self, what: &str) -> Option<&Line> {
        self.book.lines.iter().find(|line| line.what == what)
    }

    /// One way's figure over the other's, round by round.
    pub(super) fn ratio(&self, what: &str, ours: &str, theirs: &str) -> Option<Figure> {
        let line = self.line(what)?;
        Figure::of_ratio(line.cell(ours)?, line.cell(theirs)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use anyhow::Context;

    use super::*;
    use crate::saved;

    pub(in crate::checkpoint) fn setting() -> Setting {
        Setting {
            kernel: "7.3".into(),
            cpu: "one".into(),
            cpus: 2,
            memory_mib: 4096,
            accelerator: "kvm".into(),
            host_cpu: "one".into(),
            commit: "abc".into(),
        }
    }

    pub(in crate::checkpoint) fn results(figures: &[(&'static str, &'static str, f64)]) -> Results {
        let mut results = Results::new((setting(), "here".into()));
        let trial = Trial {
            round: 1,
            name: "all".into(),
        };
        let figures = figures.iter().map(|(what, by, value)| found(what, "s", by, *value));
        results.end(&trial, figures.collect());
        results
    }

    #[test]
    fn run_goes_on_where_the_machine_has_died() -> Result<()> {
        let directory = std::env::temp_dir().join(format!("vmem-checkpoint-results-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let path = directory.join("results.json");
        let mut results = results(&[("pause", "vmem", 1.0), ("pause", "QEMU", 4.0)]);
        let trial = |round| Trial {
            round,
            name: "all".into(),
        };
        results.begin(&trial(2));
        saved::write(&results, &path)?;
        let results = saved::read::<Results>(&path)?.go_on((setting(), "here".into()))?;
        assert!(results.is_over(&trial(1)) && !results.is_over(&trial(2)));
        assert_eq!((results.attempts(&trial(2)), results.attempts(&trial(3))), (1, 0));
        let ratio = results.ratio("pause", "vmem", "QEMU").context("a ratio")?;
        assert!((ratio.median - 0.25).abs() < 1e-9);
        assert!(saved::read::<Results>(&path)?.go_on((setting(), "elsewhere".into())).is_err());
        fs::remove_dir_all(directory)?;
        Ok(())
    }
}
