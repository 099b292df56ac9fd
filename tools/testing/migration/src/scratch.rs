// SPDX-License-Identifier: GPL-2.0-or-later
//! Files for a while.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::slot::Slot;
use crate::vmemctl::Vmemctl;

/// A file or directory that is removed when this is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// A path in the directory for temporary files. What was there is removed.
    pub(crate) fn new(name: &str) -> Self {
        let scratch = Self(std::env::temp_dir().join(format!("vmem-checkpoint-{name}")));
        scratch.remove();
        scratch
    }

    /// An empty store of checkpoints.
    pub(crate) fn store(name: &str, slot: &Slot) -> Result<Self> {
        let store = Self::new(name);
        Vmemctl::checkpoint(slot, &[], "init", &["--store", store.path()?])?.expect(slot, 0)?;
        Ok(store)
    }

    pub(crate) fn path(&self) -> Result<&str> {
        self.0.to_str().context("a path that is no text")
    }

    /// As QEMU has it.
    pub(crate) fn uri(&self) -> String {
        format!("file:{}", self.0.display())
    }

    fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}
