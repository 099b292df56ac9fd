// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds of a source: what has come of them, where they stand, and what can be changed while they run.

use serde::{Deserialize, Serialize};

/// A round of a source: how often and how fast pages were sent while their program ran.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Round {
    /// The number of the round, from 1.
    pub round: u32,
    /// How long it took.
    pub seconds: f64,
    /// Pages that were sent, zero pages among them.
    pub sent_pages: u64,
    /// How many of them are zero.
    #[serde(default)]
    pub zero_pages: u64,
    /// How many of them were sent in an earlier round, too.
    #[serde(default)]
    pub resent_pages: u64,
    /// Of how many of them the destination had the contents already, so that a digest was sent.
    #[serde(default)]
    pub known_pages: u64,
    /// How many of them had the contents with which they were sent before, so that nothing was sent.
    #[serde(default)]
    pub same_pages: u64,
    /// Pages that were left for a later round.
    #[serde(default)]
    pub skipped_pages: u64,
    /// Pages that were written during the round.
    #[serde(default)]
    pub dirtied_pages: u64,
    /// Pages that are to be sent after it.
    #[serde(default)]
    pub left_pages: u64,
    /// Bytes on the network.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes on the network in a second in which there was something to send, if any was.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// Bytes of the pages that were written in a second of the round, if it took any time.
    #[serde(default)]
    pub dirty_bytes_per_second: Option<u64>,
    /// Processor time that the source's vmemd has used in the round.
    #[serde(default)]
    pub cpu_seconds: f64,
}

/// Where the rounds of a source stand.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rounds {
    /// The mode: `precopy`, `hybrid` or `auto`.
    pub mode: String,
    /// The round that runs, or the next one.
    pub round: u32,
    /// Since the round began; 0 between rounds.
    #[serde(default)]
    pub seconds: f64,
    /// Bytes of all memory.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Bytes of the pages that the round has sent.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes of the pages that are left, as far as the log has been read.
    #[serde(default)]
    pub left_bytes: u64,
    /// Bytes on the network in all rounds.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes of the pages that were written in a second, in this round or in the one before.
    #[serde(default)]
    pub dirty_bytes_per_second: Option<u64>,
    /// The measured bandwidth, smoothed; null as long as it is not known.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// The limit of the bandwidth, in bytes a second; null if there is none.
    #[serde(default)]
    pub limit: Option<u64>,
    /// The downtime that is allowed, in milliseconds.
    #[serde(default)]
    pub max_downtime_ms: u64,
    /// Milliseconds that sending what is left takes at the measured bandwidth, if that is known.
    #[serde(default)]
    pub expected_ms: Option<u64>,
}

/// That the program should stop now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Settled {
    /// Why, as a sentence.
    pub reason: String,
    /// What is left can be sent within the downtime that was allowed.
    pub fits: bool,
    /// Bytes that are left.
    pub left_bytes: u64,
    /// Milliseconds that sending them takes at the measured bandwidth, if that is known.
    pub expected_ms: Option<u64>,
}

/// What the last take has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finished {
    /// Bytes of the pages that the destination does not have as they are now.
    pub remainder_bytes: u64,
    /// They can be sent within the downtime that is allowed. An earlier vmemd does not say it.
    #[serde(default)]
    pub fits: Option<bool>,
    /// Milliseconds that sending them takes at the measured bandwidth, if that is known.
    #[serde(default)]
    pub expected_ms: Option<u64>,
}

/// What is to be changed while a source runs. What is `None` stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// The limit of the bandwidth of rounds and stream, in bytes a second; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// The downtime that is allowed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_downtime_ms: Option<u32>,
    /// How the rounds are to end: `precopy`, `hybrid` or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The program is to stop now, whatever is left.
    #[serde(default, skip_serializing_if = "is_false")]
    pub switch_now: bool,
}

impl Change {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it changes the rounds, and not only the bandwidth.
    #[must_use]
    pub fn is_of_rounds(&self) -> bool {
        self.max_downtime_ms.is_some() || self.mode.is_some() || self.switch_now
    }
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}
