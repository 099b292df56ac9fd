// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that a source exports.

use std::fs;
use std::path::{Path, PathBuf};

use vmem::PAGE_SIZE;

use crate::failure::Outcome;
use crate::setting::{bytes_of, contents};

/// A file in memory, gone at the end of its test.
pub(crate) struct Scratch(pub(super) PathBuf);

impl Scratch {
    /// `pages` pages with their contents, but for every fifth, which is zero.
    pub(crate) fn new(name: &str, pages: u64) -> Outcome<Self> {
        let scratch = Self(Path::new("/dev/shm").join(format!("vmemd-{name}")));
        let bytes = |pgoff| {
            if pgoff % 5 == 4 {
                vec![0; PAGE_SIZE]
            } else {
                bytes_of(&contents(pgoff))
            }
        };
        fs::write(&scratch.0, (0..pages).flat_map(bytes).collect::<Vec<u8>>())?;
        Ok(scratch)
    }

    /// The name of a file that something else makes.
    pub(crate) fn empty(name: &str) -> Self {
        Self(Path::new("/dev/shm").join(format!("vmemd-{name}")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn export(&self, name: &str) -> String {
        format!("{name}={}", self.0.display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
