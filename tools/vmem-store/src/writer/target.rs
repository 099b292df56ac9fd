// SPDX-License-Identifier: GPL-2.0-or-later
//! Which checkpoint is written.

use crate::manifest::Manifest;
use crate::names::{CheckpointName, GuestName};

/// Which number a checkpoint gets.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// The guest's next one.
    Next(GuestName),
    /// That of a checkpoint that it takes the place of: this revision, with its tags, labels, parent and time.
    Revision { of: Box<Manifest>, revision: u32 },
}

impl Target {
    /// The guest.
    pub(super) fn guest(&self) -> &GuestName {
        match self {
            Self::Next(guest) => guest,
            Self::Revision { of, .. } => &of.checkpoint.guest,
        }
    }

    /// The checkpoint's name with this number, for messages.
    pub(super) fn name(&self, sequence: u64) -> CheckpointName {
        CheckpointName {
            guest: self.guest().clone(),
            sequence,
        }
    }
}
