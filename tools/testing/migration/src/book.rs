// SPDX-License-Identifier: GPL-2.0
//! What was measured.

use serde::{Deserialize, Serialize};

use crate::method::Method;

/// All of a run.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Book {
    /// On what: kernel, QEMU, processors, wire, guest.
    pub(crate) setting: Vec<String>,
    pub(crate) trials: Vec<Figures>,
    /// Moves by QEMU's own ways that failed.
    #[serde(default)]
    pub(crate) failures: Vec<String>,
}

/// One move. Times are in seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    pub(crate) method: Method,
    /// What the guest did.
    pub(crate) load: String,
    /// False: the move was given up.
    pub(crate) done: bool,
    /// The longest time in which the guest did not run, as it saw it.
    pub(crate) guest_gap: f64,
    /// What all late ticks of the guest were late, together.
    pub(crate) late: f64,
    /// The longest that a client waited for an answer.
    pub(crate) client_wait: f64,
    /// The downtime that the mover reports.
    pub(crate) reported_downtime: Option<f64>,
    /// From the order to move to the last page.
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
}

impl Book {
    /// The trials of one line of the table.
    pub(crate) fn line(&self, method: Method, load: &str) -> Vec<&Figures> {
        let wanted = |trial: &&Figures| trial.method == method && trial.load == load;
        self.trials.iter().filter(wanted).collect()
    }

    /// What the guests did, in the order in which it was measured.
    pub(crate) fn loads(&self) -> Vec<&str> {
        let mut loads: Vec<&str> = Vec::new();
        for trial in &self.trials {
            if !loads.contains(&trial.load.as_str()) {
                loads.push(&trial.load);
            }
        }
        loads
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }
}
