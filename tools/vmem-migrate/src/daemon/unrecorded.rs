// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmemd that has the guest's socket, does not answer, and is not recorded. vmemctl signals no process that it cannot be sure of, so the
//! user has to end this one; the error names it.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::files::{PID, SOCKET};
use super::log;
use crate::record::StateDir;

/// Such a vmemd, for messages.
#[derive(Debug)]
pub(super) struct Unrecorded {
    socket: PathBuf,
    record: PathBuf,
    /// The processes that may be it: those that have the log of the guest's vmemd as their standard error. Not proven, so only for people.
    processes: Vec<i32>,
}

impl Unrecorded {
    /// That of the guest of `state_dir`.
    pub(super) fn find(state_dir: &StateDir) -> Self {
        Self {
            socket: state_dir.path(SOCKET),
            record: state_dir.path(PID),
            processes: processes(state_dir),
        }
    }
}

/// The processes whose standard error is the log.
fn processes(state_dir: &StateDir) -> Vec<i32> {
    let log = log(state_dir).ok().and_then(|log| fs::metadata(log).ok());
    let (Some(log), Ok(all)) = (log, fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let is_log = |number: &i32| {
        let file = fs::metadata(format!("/proc/{number}/fd/2"));
        file.is_ok_and(|file| (file.dev(), file.ino()) == (log.dev(), log.ino()))
    };
    let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<i32> = numbers.filter(is_log).collect();
    found.sort_unstable();
    found
}

impl Display for Unrecorded {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (socket, record) = (self.socket.display(), self.record.display());
        write!(
            f,
            "a vmemd of this guest listens at {socket} and does not answer, and {record} does not record its process; "
        )?;
        match &self.processes[..] {
            [] => write!(f, "find it (ss -xlp) and end it by hand"),
            numbers => {
                let numbers: Vec<_> = numbers.iter().map(i32::to_string).collect();
                write!(f, "it is process {}: end it by hand", numbers.join(" or "))
            }
        }
    }
}
