// SPDX-License-Identifier: GPL-2.0-or-later
//! What tests of other crates need of a store in a directory.

use std::fs;
use std::path::{Path, PathBuf};

/// The packs of a store, empty if the directory cannot be read.
#[must_use]
pub fn packs(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(packs(&path)),
            path if path.extension().is_some_and(|ending| ending == "vpk") => found.push(path),
            _ => {}
        }
    }
    found
}
