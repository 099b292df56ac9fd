// SPDX-License-Identifier: GPL-2.0-or-later
//! How often who disturbs the daemons and programs does so: as they get on. On a slow machine they would do nothing else but start, wait for
//! swap and be killed.

use std::time::{Duration, Instant};

use crate::board::Board;

/// Steps between two disturbances.
const STEPS: u64 = 20;
/// They come all the same after this time: nobody may move because all wait for each other.
const PATIENCE: Duration = Duration::from_millis(500);

/// When the last disturbance was.
pub(crate) struct Pace {
    steps: u64,
    when: Instant,
}

impl Pace {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            steps: 0,
            when: Instant::now(),
        }
    }

    /// Whether it is time for one.
    pub(crate) fn is_due(&mut self, board: &Board) -> anyhow::Result<bool> {
        let steps = board.steps()?;
        let due = steps >= self.steps + STEPS || self.when.elapsed() >= PATIENCE;
        if due {
            *self = Self {
                steps,
                when: Instant::now(),
            };
        }
        Ok(due)
    }
}
