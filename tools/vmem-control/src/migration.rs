// SPDX-License-Identifier: GPL-2.0-or-later
//! Where a migration stands, as the source's vmemctl sees it.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::rounds::Rounds;

/// Where a migration stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Migration {
    /// The guest's name.
    pub guest: String,
    /// Where the destination's vmemctl listens.
    #[serde(default)]
    pub to: String,
    /// How far it has come.
    pub phase: MigrationPhase,
    /// The destination owns the guest: the migration cannot be given up any more.
    #[serde(default)]
    pub committed: bool,
    /// The mode: `precopy`, `hybrid`, `auto` or `postcopy`; empty if it is not known.
    #[serde(default)]
    pub mode: String,
    /// Since this vmemctl has begun.
    #[serde(default)]
    pub seconds: f64,
    /// Since pages have last been seen to arrive, or the phase has changed.
    #[serde(default)]
    pub idle_seconds: f64,
    /// Bytes of the guest's memory, if they are known.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Bytes that are left: in rounds those to be sent, after the switch those that the destination lacks.
    #[serde(default)]
    pub left_bytes: Option<u64>,
    /// Bytes that became present at the destination in the last second, after the switch.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// Where the rounds stand, while they run.
    #[serde(default)]
    pub rounds: Option<Rounds>,
    /// Milliseconds for which the guest stood still, once it runs at the destination.
    #[serde(default)]
    pub downtime_ms: Option<u64>,
}

impl Migration {
    /// Cuts what is longer than a message may be.
    pub(crate) fn cut(&mut self) {
        limits::cut(&mut self.guest);
        limits::cut(&mut self.to);
        limits::cut(&mut self.mode);
        self.rounds.iter_mut().for_each(|rounds| limits::cut(&mut rounds.mode));
    }

    /// About how many bytes of memory its texts take.
    pub(crate) fn texts(&self) -> usize {
        let mode = self.rounds.as_ref().map_or(0, |rounds| rounds.mode.len());
        self.guest.len() + self.to.len() + self.mode.len() + mode
    }
}

/// How far a migration has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum MigrationPhase {
    /// The guest runs at the source, and the destination prepares for it.
    #[default]
    Preparing,
    /// The guest runs at the source, and its memory is sent in rounds.
    Rounds,
    /// The guest stops, and its state is sent.
    Switching,
    /// The destination owns the guest, and has not said that the guest runs.
    Committed,
    /// The guest runs at the destination, which fetches pages.
    Postcopy,
    /// The migration is given up: the guest continues at the source.
    Returning,
    /// It is over.
    Ended,
    /// A phase that a later vmemctl knows.
    #[serde(other)]
    Unknown,
}

impl MigrationPhase {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Rounds => "rounds",
            Self::Switching => "switching",
            Self::Committed => "committed",
            Self::Postcopy => "postcopy",
            Self::Returning => "returning",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_has_one_name() {
        use MigrationPhase as P;
        for phase in [
            P::Preparing,
            P::Rounds,
            P::Switching,
            P::Committed,
            P::Postcopy,
            P::Returning,
            P::Ended,
        ] {
            let name = format!("\"{}\"", phase.name());
            assert_eq!(serde_json::to_string(&phase).expect("JSON"), name);
            assert_eq!(serde_json::from_str::<P>(&name).expect("a phase"), phase);
        }
        assert_eq!(serde_json::from_str::<P>("\"later\"").expect("a phase"), P::Unknown);
    }
}
