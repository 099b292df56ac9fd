// SPDX-License-Identifier: GPL-2.0
//! What `vmemctl migrate` and `vmemctl receive` say to each other: JSON objects, one on a line. `Documentation/migration.rst` describes
//! them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of this conversation. Both ends must speak the same one.
pub(crate) const VERSION: u32 = 2;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// To move a guest.
    Migrate,
    /// To carry QEMU's own migration stream, in both directions, from the next byte on.
    State,
    /// To learn what became of a guest, and to go on with it.
    Recover,
}

/// One piece of a guest's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// Name of the memory backend in QEMU.
    pub(crate) id: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// What the source's vmemd calls it.
    pub(crate) export: String,
}

/// What the source says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromSource {
    /// First on each connection.
    Hello {
        version: u32,
        /// Which migration: a number that nobody else has.
        session: String,
        purpose: Purpose,
    },
    /// A guest.
    Offer {
        /// Its name, for people.
        guest: String,
        /// What tells it from others. `None`: its name.
        #[serde(default)]
        key: Option<String>,
        memory: Vec<Backend>,
        /// Where the source's vmemd listens: a port of the source's address, or `HOST:PORT`.
        pages: String,
        /// The source gives pages back.
        release: bool,
    },
    /// The guest has stopped: pages may be fetched.
    Start,
    /// The guest will never run at the source again, unless the destination says that it has not run there.
    Commit {
        /// It shall run; otherwise it was paused, and stays so.
        run: bool,
    },
    /// It goes on at the source.
    Abort { reason: String },
    /// FAILED, GONE or COMPLETE has been heard: the destination may forget the guest's move.
    Heard,
}

/// What the destination says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromDestination {
    /// The connection is taken.
    Welcome,
    /// It is not, or the guest is not.
    Refuse { reason: String },
    /// QEMU waits for the guest's state.
    Ready,
    /// The guest runs here (or is here, if it was paused).
    Running,
    /// The guest has not run here and never will.
    Failed { reason: String },
    /// The guest was the destination's, and its QEMU has ended there.
    Gone { reason: String },
    /// A line of the destination's vmemd.
    Pages { line: Value },
    /// The memory is complete, and plain.
    Complete { summary: Value },
    /// Something keeps the memory from coming. For people.
    Incomplete { reason: String },
}
