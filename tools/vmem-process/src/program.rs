// SPDX-License-Identifier: GPL-2.0-or-later
//! Where vmem's own programs are.

use std::path::PathBuf;

/// The vmemd beside this program, or the one that `VMEMD` in the environment names.
pub fn vmemd() -> PathBuf {
    let beside = || std::env::current_exe().ok().map(|path| path.with_file_name("vmemd"));
    std::env::var_os("VMEMD")
        .map(PathBuf::from)
        .or_else(|| beside().filter(|path| path.exists()))
        .unwrap_or_else(|| PathBuf::from("vmemd"))
}
