// SPDX-License-Identifier: GPL-2.0
//! Where everybody is, for when nothing moves.

use std::fs;
use std::path::{Path, PathBuf};

/// Prints where each thread of these processes is, and the state of the regions that they hold.
pub(crate) fn dump(processes: impl Iterator<Item = (String, i32)>) {
    for (what, pid) in processes {
        println!("{what}, process {pid}");
        let directory = Path::new("/proc").join(pid.to_string());
        for thread in entries(&directory.join("task")) {
            let status = read(&thread.join("status"));
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: ?");
            println!(
                "  {state}, in {}\n{}",
                read(&thread.join("wchan")),
                read(&thread.join("stack"))
            );
        }
        for descriptor in entries(&directory.join("fdinfo")) {
            let info = read(&descriptor);
            if info.contains("vmem-") {
                println!("  {}:\n{info}", descriptor.display());
            }
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
}

fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
