// SPDX-License-Identifier: GPL-2.0-or-later
//! What a checkpoint takes at its instant.

use std::time::Duration;

use vmem::Snapshot;

use crate::cut::Cut;
use crate::disks::Disk;
use crate::error::Error;
use crate::freeze::Freezing;
use crate::pages::count;
use crate::private_pages::CloneImage;

/// The memory at the instant.
pub(crate) enum Images {
    Snapshots(Vec<Snapshot>),
    Clone(Vec<CloneImage>),
}

/// What was taken at the instant.
pub(crate) struct Taken {
    pub(crate) images: Images,
    pub(crate) guest: Option<Cut<()>>,
    pub(crate) freezing: Freezing,
    pub(crate) disks: Vec<Disk>,
}

impl Images {
    /// How many pages were copied so that they could be stored later.
    pub(crate) fn copied(&self) -> Result<u64, Error> {
        let copied = |snapshot: &Snapshot| {
            let info = snapshot
                .info()
                .map_err(Error::memory("cannot get the state of the snapshot"))?;
            Ok(info.copied)
        };
        match self {
            Self::Snapshots(snapshots) => snapshots.iter().map(copied).sum(),
            Self::Clone(images) => Ok(images.iter().map(|image| count(&image.private.set)).sum()),
        }
    }

    /// How long writers were held up by the module.
    pub(crate) fn closed(&self) -> Duration {
        match self {
            Self::Snapshots(snapshots) => snapshots.iter().map(Snapshot::closed).max().unwrap_or_default(),
            Self::Clone(_) => Duration::ZERO,
        }
    }
}
