// SPDX-License-Identifier: GPL-2.0
//! QEMU's process.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Identity, Process};
use crate::served::ServedFile;

/// A QEMU that was found alive, or that had ended already.
#[derive(Debug)]
pub(super) struct QemuProcess {
    /// `None`: QEMU had ended.
    process: Option<Process>,
}

impl QemuProcess {
    /// The process `pid`, if it has all regions open. A proxy that listens at QEMU's socket has not.
    pub(super) fn with_regions(pid: i32, regions: &[String]) -> Option<Self> {
        let process = Process::open(pid).ok()?;
        let is_open = |name: &String| ServedFile::find(pid, &Path::new("/dev/vmem").join(name)).is_ok();
        let is_qemu = !regions.is_empty() && regions.iter().all(is_open);
        // The kernel cannot have reused the number if the process still lives, so the files were its own.
        let lives = !process.wait(Duration::ZERO);
        (is_qemu && lives).then_some(Self { process: Some(process) })
    }

    /// The recorded process.
    pub(super) fn find(identity: &Identity) -> Self {
        Self {
            process: Process::find(identity),
        }
    }

    /// The process with this number, for tests.
    #[cfg(test)]
    pub(super) fn open(pid: i32) -> Self {
        Self {
            process: Some(Process::open(pid).expect("a process")),
        }
    }

    /// What [`find`](Self::find) finds the process by.
    pub(super) fn identity(&self) -> io::Result<Identity> {
        self.process.as_ref().ok_or(io::ErrorKind::NotFound)?.identity()
    }

    /// Whether the process has ended, now or within `limit`.
    pub(super) fn ends_within(&self, limit: Duration) -> bool {
        self.process.as_ref().is_none_or(|process| process.wait(limit))
    }

    /// Kills the process. SIGKILL works even while the process waits for a page.
    pub(super) fn kill(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::KILL);
        }
    }
}
