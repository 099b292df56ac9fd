// SPDX-License-Identifier: GPL-2.0-or-later
//! How checkpoints are made.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use vmem_store::GuestName;

use crate::cut::Limits;
use crate::hooks::Hooks;
use crate::{MAX_DEVICE_STATE, freeze};

/// How checkpoints are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name in the store; the subject's own name unless given.
    pub name: Option<GuestName>,
    /// The most bytes of copies of pages that are overwritten before they are stored. 0 is no limit.
    pub copies: u64,
    /// How long QEMU may take to save its devices.
    pub timeout: Duration,
    /// Words that each checkpoint gets, by which retention can keep it.
    pub tags: BTreeSet<String>,
    /// The guest agent, if it is to be used.
    pub agent: Option<freeze::Options>,
    /// The directory where the guest's disks get overlays at the instant, if they are kept.
    pub disks: Option<PathBuf>,
    /// For a clone with disks: a command that calls [`deputize`](crate::standstill::deputize) with QEMU's socket, and its arguments. Without it, the
    /// guest stands still if this process is killed at the instant.
    pub continuer: Vec<OsString>,
    /// Commands around each checkpoint.
    pub hooks: Hooks,
    /// The directory with the records of bases, for a guest that is a clone.
    pub state: PathBuf,
}

impl Options {
    /// The limits of a cut.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            timeout: self.timeout,
            device_state: MAX_DEVICE_STATE,
        }
    }
}
