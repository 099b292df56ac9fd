// SPDX-License-Identifier: GPL-2.0-or-later
//! `--seed-image`: old images of the memory, whose pages need not be sent.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use vmem_engine::Seed;

use crate::failure::Failure;

/// The images, while they are used.
#[derive(Default)]
pub(super) struct SeedImages {
    seed: Option<Arc<Seed>>,
    is_reported: bool,
}

/// Opens the images. To be called as root: vmemd cannot open them later.
pub(super) fn open(paths: &[PathBuf]) -> Result<Vec<(PathBuf, File)>, Failure> {
    let open = |path: &PathBuf| {
        let failed = |source: std::io::Error| Failure::SeedImage {
            path: path.clone(),
            source,
        };
        // Nonblocking: the open of a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?);
        let kind = file.metadata().map_err(failed)?.file_type();
        let is_image = kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind);
        match is_image {
            true => Ok((path.clone(), file)),
            false => Err(failed(std::io::Error::other("neither a file nor a block device"))),
        }
    };
    paths.iter().map(open).collect()
}

impl SeedImages {
    /// Begins to read the images, if there are any.
    pub(super) fn start(images: Vec<(PathBuf, File)>) -> Result<Self, Failure> {
        let seed = match images.is_empty() {
            true => None,
            false => Some(Seed::start(images)?),
        };
        Ok(Self {
            seed,
            is_reported: false,
        })
    }

    pub(super) fn seed(&self) -> Option<Arc<Seed>> {
        self.seed.clone()
    }

    /// Says in the log when they have been read, and when they are not used any more.
    pub(super) fn report(&mut self) {
        let Some(seed) = &self.seed else { return };
        if let Some(why) = seed.failure() {
            tracing::warn!("the seed images are not used any more: {why}; all pages are fetched from the source");
            self.is_reported = true;
        }
        if !self.is_reported && seed.is_complete() {
            self.is_reported = true;
            tracing::info!("the seed images have {} different pages", seed.pages());
        }
    }
}
