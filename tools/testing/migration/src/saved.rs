// SPDX-License-Identifier: GPL-2.0-or-later
//! Results in a file, as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads results from a file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let json = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&json).with_context(|| format!("{} holds no results", path.display()))
}

/// Writes results to a file, which has the old contents or the new ones, whatever happens meanwhile.
pub(crate) fn write(results: &impl Serialize, path: &Path) -> Result<()> {
    let json = serde_json::to_string(results).context("results as JSON")?;
    let new = path.with_extension("new");
    fs::write(&new, json + "\n").with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}
