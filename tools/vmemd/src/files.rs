// SPDX-License-Identifier: GPL-2.0-or-later
//! How many files may be open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of an export, and of a connection: with TLS there is a pair of sockets more.
const OF_EXPORT: u64 = 3;
const OF_CONNECTION: u64 = 7;

/// Lets as many files be open as the system's administrator allows. The usual limit is for programs that use select(2).
pub(crate) fn raise_limit() {
    let limits = getrlimit(Resource::Nofile);
    // What cannot be is said when it matters.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        },
    );
}

/// How many files may be open; none for as many as there can be.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Whether so many connections and exports could be more than may be open.
pub(crate) fn warning(connections: u64, exports: usize) -> Option<String> {
    let need = connections * OF_CONNECTION + exports as u64 * OF_EXPORT;
    limit().filter(|limit| *limit < need).map(|limit| {
        format!(
            "{connections} connections and {exports} exports can take {need} open files, and the limit is {limit} (ulimit -Hn)"
        )
    })
}

/// Whether this is what a limit of open files gives.
pub(crate) fn are_too_many(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
}

/// Which limit it is that was met, if it was one.
pub(crate) fn hint(error: &io::Error) -> String {
    match limit() {
        Some(limit) if are_too_many(error) => format!(" (the limit is {limit}: ulimit -Hn)"),
        _ => String::new(),
    }
}
