// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of a checkpoint that is being made, or was.

use std::time::Duration;

use serde::{Serialize, Serializer};
use vmem_cli::Progress;
use vmem_store::CheckpointName;

use crate::disks::Disk;

/// How long a guest stood still, and for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    /// From QEMU's event STOP to its event RESUME.
    pub total: Duration,
    /// From the event STOP until QEMU had written the state of all devices.
    pub devices: Duration,
    /// The call that arms the snapshot.
    pub arming: Duration,
    /// From then to the event RESUME.
    pub resuming: Duration,
}

/// What happens while a checkpoint is made.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// Pages were absent at the instant.
    Absent {
        /// How many are left to this checkpoint, from which the memory is filled.
        referred: u64,
        /// That checkpoint.
        origin: Option<&'a CheckpointName>,
        /// How many are waited for.
        awaited: u64,
    },
    /// So much of the pages is written.
    Written(Progress),
    /// The rest has not come yet, or is not written yet.
    Waiting {
        /// How much is written.
        progress: Progress,
        /// The pages that were absent at the instant and are not written yet.
        pages: u64,
    },
}

/// A checkpoint that was made.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Made {
    /// Its name: `GUEST@NUMBER`.
    #[serde(serialize_with = "as_text")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub checkpoint: CheckpointName,
    /// The checkpoint that it was compared with; null if with none.
    #[serde(serialize_with = "as_text_or_null")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub parent: Option<CheckpointName>,
    /// Bytes of all memory.
    pub memory_bytes: u64,
    /// Pages of all memory that were looked at: all for the first one, then those that were written since the one before.
    pub pages: u64,
    /// Of them: absent at the instant, and waited for.
    pub awaited_pages: u64,
    /// Pages that were absent at the instant, and are as in the checkpoint from which the memory is filled.
    pub referred_pages: u64,
    /// Of those that were looked at: zeros.
    pub zero_pages: u64,
    /// Of them: as in the parent.
    pub unchanged_pages: u64,
    /// Of them: as another page of this checkpoint.
    pub duplicate_pages: u64,
    /// Of them: stored, with the device state's.
    pub stored_pages: u64,
    /// Bytes of the packs and of the index that were written.
    pub stored_bytes: u64,
    /// Stored bytes for each byte of the stored pages.
    pub ratio: f64,
    /// Bytes of the device state.
    pub device_state_bytes: u64,
    /// Whether the guest was running at the instant. `None` if it is no guest.
    pub running: Option<bool>,
    /// Seconds that the guest stood still. `None` if it was paused, or is no guest.
    pub pause_seconds: Option<f64>,
    /// Of them: QEMU saved the devices.
    pub pause_devices_seconds: Option<f64>,
    /// Of them: the snapshot was armed.
    pub pause_arming_seconds: Option<f64>,
    /// Of them: QEMU continued the guest.
    pub pause_resuming_seconds: Option<f64>,
    /// The guest's disks at the instant, if they are kept.
    pub disks: Vec<Disk>,
    /// How many of the guest's file systems were frozen at the instant.
    pub frozen_file_systems: u64,
    /// Seconds that they were frozen.
    pub frozen_seconds: Option<f64>,
    /// Why they were not frozen, if they could have been.
    pub not_frozen: Option<String>,
    /// Seconds that writers were held up for the instant.
    pub closed_seconds: f64,
    /// Pages that were copied because they were overwritten before they were stored.
    pub copied_pages: u64,
    /// Seconds from the beginning to the commit.
    pub seconds: f64,
}

fn as_text<S: Serializer>(name: &CheckpointName, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(name)
}

fn as_text_or_null<S: Serializer>(name: &Option<CheckpointName>, to: S) -> Result<S::Ok, S::Error> {
    match name {
        Some(name) => to.collect_str(name),
        None => to.serialize_none(),
    }
}
