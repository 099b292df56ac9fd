// SPDX-License-Identifier: GPL-2.0-or-later
//! The progress of a move, as a host records it on a disk or in `/run`.

use serde::{Deserialize, Serialize};

/// What a host has recorded of a move. What is recorded has happened, or is about to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The source owns the guest.
    Prepared,
    /// The destination owns the guest, whether it runs there already or not.
    Committed,
    /// The destination has told its QEMU to run the guest, or is about to: the guest may have run there. At the destination only.
    Starting,
    /// The guest runs at the destination.
    Running,
    /// The guest's memory is complete at the destination. At the destination, the source must still receive COMPLETE. At the source, it has
    /// received COMPLETE or GONE.
    Complete,
    /// The guest has not run at the destination and never will, and the source must still receive FAILED. At the destination only.
    Failed,
}
