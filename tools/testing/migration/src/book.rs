// SPDX-License-Identifier: GPL-2.0-or-later
//! What was measured.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::method::Method;

/// All of a run.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Book {
    /// On what: kernel, QEMU, processors, wire, guest.
    pub(crate) setting: Vec<String>,
    pub(crate) trials: Vec<Figures>,
    /// Moves that failed, and were not tried again.
    #[serde(default)]
    pub(crate) failures: Vec<Failure>,
    /// All that was begun, also if the machine has died in it: each attempt.
    #[serde(default)]
    pub(crate) begun: Vec<Trial>,
}

/// One move of a run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Trial {
    /// The number of the round, from 1.
    pub(crate) round: u32,
    /// What the guest does.
    pub(crate) load: String,
    pub(crate) method: Method,
}

/// A move that failed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Failure {
    #[serde(flatten)]
    pub(crate) trial: Trial,
    pub(crate) error: String,
}

/// One move, measured. Times are in seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    #[serde(flatten)]
    pub(crate) trial: Trial,
    /// False: the move was given up.
    pub(crate) done: bool,
    /// From the order to move until the guest has stopped at its source.
    pub(crate) order_to_stop: Option<f64>,
    /// From then until it runs at its destination.
    pub(crate) stop_to_runs: Option<f64>,
    /// Of that, until QEMU has saved the devices and it is known what is left.
    pub(crate) stop_to_saved: Option<f64>,
    /// From the stop until all of its memory is there.
    pub(crate) stop_to_complete: Option<f64>,
    /// The longest time in which the guest did not run, as it saw it.
    pub(crate) guest_gap: f64,
    /// What all late ticks of the guest were late, together.
    pub(crate) late: f64,
    /// The longest that a client waited for an answer.
    pub(crate) client_wait: f64,
    /// The downtime that the mover reports.
    pub(crate) reported_downtime: Option<f64>,
    /// From the order to move until all of the memory is there; of a move that was given up, until then.
    pub(crate) total: f64,
    /// On the wire, both directions, headers and all.
    pub(crate) bytes: u64,
    /// How much of the guest's memory was not zero.
    pub(crate) data_bytes: Option<u64>,
    /// Pages that the guest wrote meanwhile.
    pub(crate) work: u64,
    /// How fast that was, compared with how fast it was before.
    pub(crate) pace: Option<f64>,
    /// Touches of pages in the guest meanwhile, and how long they took.
    pub(crate) touches: u64,
    pub(crate) touch_p50: f64,
    pub(crate) touch_p99: f64,
    pub(crate) touch_max: f64,
    /// The guest's pace over time: seconds since the order, and the pace since the time before.
    pub(crate) pace_over_time: Vec<(f64, f64)>,
    /// Bytes that were to be sent, over time.
    pub(crate) left_over_time: Vec<(f64, u64)>,
}

impl Book {
    /// To go on with in this setting. What was measured in another one does not belong to it.
    pub(crate) fn go_on(self, setting: Vec<String>) -> Result<Self> {
        ensure!(
            self.setting == setting,
            "these results are of another setting: {:?}, and not {setting:?}",
            self.setting
        );
        Ok(self)
    }

    /// The trials of one line of the table.
    pub(crate) fn line(&self, method: Method, load: &str) -> Vec<&Figures> {
        let wanted = |figures: &&Figures| figures.trial.method == method && figures.trial.load == load;
        self.trials.iter().filter(wanted).collect()
    }

    /// What the guests did, in the order in which it was measured.
    pub(crate) fn loads(&self) -> Vec<&str> {
        let mut loads: Vec<&str> = Vec::new();
        for figures in &self.trials {
            if !loads.contains(&figures.trial.load.as_str()) {
                loads.push(&figures.trial.load);
            }
        }
        loads
    }

    /// How much of the memory of guests that did this was not zero. QEMU's own ways do not tell, but all guests are the same.
    pub(crate) fn data_bytes(&self, load: &str) -> Option<f64> {
        let of_load = self.trials.iter().filter(|figures| figures.trial.load == load);
        median(of_load.filter_map(|figures| Some(figures.data_bytes? as f64)))
    }

    /// The median of a figure in one line of the table. None if a guest was not moved there.
    pub(crate) fn median_of(&self, method: Method, load: &str, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        let line = self.line(method, load);
        match line.iter().all(|figures| figures.done) {
            true => median(line.iter().filter_map(|figures| figure(figures))),
            false => None,
        }
    }

    /// Whether this trial need not be made any more.
    pub(crate) fn is_over(&self, trial: &Trial) -> bool {
        self.trials.iter().any(|figures| figures.trial == *trial) || self.failures.iter().any(|failure| failure.trial == *trial)
    }

    /// How often it was begun.
    pub(crate) fn attempts(&self, trial: &Trial) -> u32 {
        self.begun.iter().filter(|begun| *begun == trial).count() as u32
    }
}

impl Trial {
    /// For people.
    pub(crate) fn name(&self) -> String {
        format!("round {}, guest {}, {}", self.round, self.load, self.method.name())
    }
}

/// The median of these, None if there are none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// The value that 99 of 100 of these are not above, None if there are none.
pub(crate) fn p99(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * 99).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A book of moves, each by its way, under its load, with these times from the stop until the guest runs (and its gap) and until it is complete.
    pub(crate) fn book(moves: &[(Method, &str, f64, f64)]) -> Book {
        let trials = moves.iter().map(|(method, load, gap, complete)| Figures {
            trial: Trial {
                round: 1,
                load: (*load).to_owned(),
                method: *method,
            },
            done: true,
            order_to_stop: Some(1.0),
            stop_to_runs: Some(*gap),
            stop_to_saved: None,
            stop_to_complete: Some(*complete),
            guest_gap: *gap,
            late: 0.0,
            client_wait: *gap,
            reported_downtime: Some(*gap),
            total: 1.0 + complete,
            bytes: 1010,
            data_bytes: Some(1000),
            work: 100,
            pace: Some(0.5),
            touches: 0,
            touch_p50: 0.0,
            touch_p99: 0.0,
            touch_max: 0.0,
            pace_over_time: vec![(0.1, 1.0), (0.2, 0.5)],
            left_over_time: vec![(0.0, 4 << 20), (1.0, 0)],
        });
        Book {
            setting: vec!["here".into()],
            trials: trials.collect(),
            ..Book::default()
        }
    }

    #[test]
    fn run_goes_on_where_the_machine_has_died() {
        let mut book = book(&[(Method::Postcopy, "idle", 0.1, 1.0)]);
        let trial = |method| Trial {
            round: 1,
            load: "idle".into(),
            method,
        };
        book.begun = vec![trial(Method::Postcopy), trial(Method::Multifd), trial(Method::Multifd)];
        let book = book.go_on(vec!["here".into()]).expect("the same setting");
        assert!(book.is_over(&trial(Method::Postcopy)) && !book.is_over(&trial(Method::Multifd)));
        assert_eq!(book.attempts(&trial(Method::Multifd)), 2);
        assert!(book.go_on(vec!["elsewhere".into()]).is_err());
    }

    #[test]
    fn ninety_nine_of_hundred_are_not_above_the_p99() {
        assert_eq!(p99([].into_iter()), None);
        assert_eq!(p99([7.0].into_iter()), Some(7.0));
        assert_eq!(p99((1..=200).map(f64::from)), Some(198.0));
    }

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }
}
