// SPDX-License-Identifier: GPL-2.0-or-later
//! Where a process is, for when nothing moves.

use std::fs;
use std::path::{Path, PathBuf};

/// Prints where each thread of a process is, and the state of the regions that it holds. A thread is printed before the next one is
/// looked at: reading may hang, too.
pub fn print_state(process: i32) {
    println!("process {process}");
    let directory = Path::new("/proc").join(process.to_string());
    for thread in entries(&directory.join("task")) {
        let status = read(&thread.join("status"));
        println!(
            "  thread {}: {} in {}\n{}",
            thread.display(),
            status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: ?"),
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

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
}

fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
