// SPDX-License-Identifier: GPL-2.0-or-later
//! A region that a server fills, the region's file, and what is in it.

use std::fs;
use std::sync::Arc;

use vmem::{PAGE_SIZE, RegionBuilder};

use super::Mount;
use crate::failure::{Outcome, ensure};
use crate::server::Server;
use crate::setting::{Setting, bytes_of, contents};
use crate::world::run_command;

pub(super) const PAGES: usize = 64;
/// Not a multiple of a page.
pub(super) const LENGTH: usize = PAGES * PAGE_SIZE - 1234;

/// A region that a server fills, its file, and what is in it.
pub(super) struct Served {
    // In the order in which they go.
    _server: Server,
    pub(super) setting: Setting,
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

impl Served {
    /// With the contents of each page that a test knows, up to [`LENGTH`].
    pub(super) fn new(mount: &Mount, name: &str) -> Outcome<Self> {
        let pages = (0..PAGES as u64).flat_map(|pgoff| bytes_of(&contents(pgoff)));
        Self::with(mount, name, pages.take(LENGTH).collect())
    }

    /// With these bytes, which come page by page as they are requested.
    pub(super) fn with(mount: &Mount, name: &str, bytes: Vec<u8>) -> Outcome<Self> {
        let setting = Setting::create(RegionBuilder::new(bytes.len() as u64).name(name))?;
        Ok(Self {
            _server: Server::with_bytes(&Arc::clone(&setting.region), bytes.clone()),
            setting,
            path: mount.path(name).to_string_lossy().into_owned(),
            bytes,
        })
    }

    /// Runs a shell's command, for which `FILE` is the file and `COPY` is what is in it.
    pub(super) fn run(&self, script: &str) -> Outcome<String> {
        fs::write("/tmp/copy", &self.bytes)?;
        run_command(
            "/bin/sh",
            &["-ec", &script.replace("FILE", &self.path).replace("COPY", "/tmp/copy")],
        )
    }

    /// Pages that have come.
    pub(super) fn present(&self) -> Outcome<usize> {
        Ok(self.setting.region.info()?.present as usize)
    }

    /// Fails unless all pages were requested, and have come.
    pub(super) fn all_came(&self, what: &str) -> Outcome {
        let (present, pages) = (self.present()?, self.setting.pages());
        ensure!(present == pages, "{what}: {present} pages of {pages} came");
        Ok(())
    }
}
