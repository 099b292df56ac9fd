// SPDX-License-Identifier: GPL-2.0-or-later
//! What the rounds have done.

use std::time::Duration;

use vmem_pages::PAGE_SIZE;

use crate::decision::Decision;
use crate::limits::Mode;

/// What one round has done. Counts are of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundStatistics {
    /// The round, from 1.
    pub round: u32,
    /// Pages chosen to be sent.
    pub sent: u64,
    /// Pages that were left out because they were written again just before their turn.
    pub skipped: u64,
    /// Pages of [`sent`](Self::sent) that were sent before.
    pub resent: u64,
    /// Pages that were sent without contents, because they are zero.
    pub zero: u64,
    /// Pages that the sender could not read. The destination does not have them.
    pub unreadable: u64,
    /// Pages of which the destination had the contents somewhere, so that a digest was sent.
    pub known: u64,
    /// Pages that had the contents with which they were sent before, so that nothing was sent.
    pub same: u64,
    /// Pages that came into the log. One that was taken out of it and written again counts again.
    pub dirtied: u64,
    /// Pages that are left at the end of the round, never sent or written since; in a round that runs, at its beginning.
    pub left: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// The time from the beginning of the round to its end, or until now.
    pub elapsed: Duration,
    /// The part of it in which there was something to send.
    pub busy: Duration,
}

impl RoundStatistics {
    /// Bytes sent per second, while there was something to send. `None` if no time has passed.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        per_second(self.bytes, self.busy)
    }

    /// Bytes of pages that came into the log, per second. `None` if no time has passed.
    #[must_use]
    pub fn dirty_rate(&self) -> Option<u64> {
        per_second(self.dirtied.saturating_mul(PAGE_SIZE as u64), self.elapsed)
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let nanos = time.as_nanos();
    let rate = (u128::from(bytes) * 1_000_000_000).checked_div(nanos)?;
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// What the rounds have done until now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The rounds that have ended, in order; of very many, the last ones.
    pub rounds: Vec<RoundStatistics>,
    /// The round that runs, or the next one.
    pub now: RoundStatistics,
    /// Pages of all memory.
    pub pages: u64,
    /// Pages sent in all rounds.
    pub sent: u64,
    /// Bytes sent in all rounds.
    pub bytes: u64,
    /// The smoothed bandwidth in bytes per second.
    pub bandwidth: Option<u64>,
    /// That it is time to switch.
    pub decision: Option<Decision>,
    /// Pages of the remainder, once the program has stopped.
    pub remainder: Option<u64>,
}

/// Where the rounds stand, for somebody who watches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The mode.
    pub mode: Mode,
    /// The downtime that is allowed.
    pub downtime: Duration,
    /// The round that runs, or the next one.
    pub now: RoundStatistics,
    /// The round before it.
    pub before: Option<RoundStatistics>,
    /// Pages of all memory.
    pub pages: u64,
    /// Pages that are left, as far as the log has been read.
    pub left: u64,
    /// Bytes sent in all rounds.
    pub bytes: u64,
    /// The smoothed bandwidth in bytes per second.
    pub bandwidth: Option<u64>,
    /// The user's limit of the bandwidth in bytes per second.
    pub limit: Option<u64>,
    /// How long it takes to send what is left; `None` if the bandwidth is not known.
    pub expected: Option<Duration>,
}

impl Standing {
    /// Bytes of pages that come into the log, per second: in the round that runs if it is older than a moment, or else in the one before.
    #[must_use]
    pub fn dirty_rate(&self) -> Option<u64> {
        const MOMENT: Duration = Duration::from_millis(500);
        let now = Some(self.now).filter(|now| now.elapsed >= MOMENT);
        now.or(self.before)?.dirty_rate()
    }
}

/// What the last take has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remainder {
    /// Pages whose contents at the destination are not valid.
    pub pages: u64,
    /// How long it takes to send them; `None` if the bandwidth is not known.
    pub expected: Option<Duration>,
    /// They can be sent within the downtime that is allowed.
    pub fits: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_unknown_without_time() {
        let round = RoundStatistics {
            bytes: 1000,
            dirtied: 3,
            elapsed: Duration::from_secs(2),
            busy: Duration::from_millis(500),
            ..Default::default()
        };
        assert_eq!((round.rate(), round.dirty_rate()), (Some(2000), Some(6144)));
        assert_eq!(
            (RoundStatistics::default().rate(), RoundStatistics::default().dirty_rate()),
            (None, None)
        );
    }
}
