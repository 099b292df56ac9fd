// SPDX-License-Identifier: GPL-2.0-or-later
//! The lines of `--json`, as types. The schemas in `Documentation/schema` are made from them, and the comments are the descriptions there.

use serde::Serialize;
use serde_json::Value;
use vmem_control::{RegionPage, Round, Rounds};

/// A line that any command may print.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum CommonLine<'a> {
    /// A message.
    Note {
        /// The message, for people.
        text: &'a str,
    },
    /// How much of the work is done.
    Progress {
        /// Bytes that are to be done.
        bytes: u64,
        /// Bytes of them that are done.
        done_bytes: u64,
    },
    /// The command ends with a status that is not 0.
    Failed {
        /// The exit status.
        exit_code: u8,
        /// Why, for people.
        error: &'a str,
    },
    /// Lines are missing in this place: the reader was too slow, and the queue was full.
    Dropped {
        /// The number of these lines.
        lines: u64,
    },
}

/// A line of the commands that move guests.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MoveLine<'a> {
    /// The guest runs at the destination.
    Running {
        /// Seconds since the start of this command.
        total_seconds: f64,
        /// Seconds from the event that the guest has stopped to the message that it runs at the destination; null if this command does not see both.
        downtime_seconds: Option<f64>,
    },
    /// Where the rounds stand, once a second.
    Rounds {
        /// The event of the source's vmemd.
        vmemd: &'a Rounds,
    },
    /// A round has ended.
    Round {
        /// The event of the source's vmemd.
        vmemd: &'a Round,
        /// Seconds of processor time that the destination's vmemd has used since the round before; null if it does not say it.
        destination_cpu_seconds: Option<f64>,
    },
    /// The guest has stopped after rounds.
    Remainder {
        /// Bytes of the pages that the destination does not have as they are now.
        bytes: u64,
    },
    /// A line of the destination's vmemd.
    Pages {
        /// The line. Its schema is that of vmemd, of the version that the destination has.
        #[cfg_attr(feature = "schema", schemars(with = "std::collections::BTreeMap<String, Value>"))]
        vmemd: &'a Value,
    },
    /// What the destination has found when it compared the memory.
    Verified {
        /// Pages that were compared.
        pages: u64,
        /// Pages of them that differ.
        different: u64,
        /// The first of those.
        first: &'a [RegionPage],
    },
    /// The memory is complete at the destination.
    Done(Box<Done>),
    /// The move is changed as `set` was told.
    Changed {
        /// The guest's name.
        guest: &'a str,
    },
    /// The move is given up: the guest continues at this host.
    Aborted {
        /// The guest's name.
        guest: &'a str,
    },
}

/// What a move came to.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Done {
    /// Seconds since the start of this command.
    pub total_seconds: f64,
    /// Seconds from the event that the guest has stopped to the message that it runs at the destination; null if this command does not see both.
    pub downtime_seconds: Option<f64>,
    /// Pages and requests.
    pub pages: PageCounts,
    /// Bytes of all pages that came with contents after the switch.
    pub bytes: u64,
    /// Bytes that came in rounds; a page that came twice counts twice.
    pub staged_bytes: u64,
    /// Bytes that were copied from an image of the destination instead of being sent.
    pub known_bytes: u64,
    /// Bytes that the source sent as the same as before.
    pub same_bytes: u64,
    /// Bytes that the destination lacked at the switch; null without rounds.
    pub remainder_bytes: Option<u64>,
    /// All rounds together; null without rounds.
    pub rounds: Option<RoundSums>,
    /// Half of the requests for pages took no more seconds; null if there were none.
    pub fault_p50_seconds: Option<f64>,
    /// 99 of 100 requests for pages took no more seconds; null if there were none.
    pub fault_p99_seconds: Option<f64>,
}

/// Pages of a move.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageCounts {
    /// Pages that came with contents.
    pub data: u64,
    /// Pages of zeros.
    pub zero: u64,
    /// Requests for pages that the guest has touched.
    pub faults: u64,
}

/// All rounds of a move together.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoundSums {
    /// Number of the rounds.
    pub count: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Pages that were sent, zero pages among them.
    pub sent_pages: u64,
    /// Pages of them that are zero.
    pub zero_pages: u64,
    /// Pages of them that were sent in an earlier round, too.
    pub resent_pages: u64,
    /// Pages that were left for a later round.
    pub skipped_pages: u64,
    /// Seconds of processor time that the source's vmemd has used.
    pub cpu_seconds: f64,
    /// Seconds of processor time that the destination's vmemd has used; null if it does not say it.
    pub destination_cpu_seconds: Option<f64>,
}
