// SPDX-License-Identifier: GPL-2.0
//! QEMU's process.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use vmem_process::{Identity, Process};

use crate::backend_file::BackendFile;

/// A QEMU that was found alive, or that had ended already.
#[derive(Debug)]
pub struct QemuProcess {
    /// `None`: QEMU had ended.
    process: Option<Process>,
}

impl QemuProcess {
    /// The process `pid`, if it has all of these files open, which are the guest's memory. A proxy that listens at QEMU's socket has not.
    pub fn with_files(pid: i32, files: &[PathBuf]) -> Option<Self> {
        let process = Process::open(pid).ok()?;
        let is_qemu = !files.is_empty() && files.iter().all(|path| BackendFile::find(&process, path).is_ok());
        // The kernel cannot have reused the number if the process still lives, so the files were its own.
        let lives = !process.wait(Duration::ZERO);
        (is_qemu && lives).then_some(Self { process: Some(process) })
    }

    /// The process with this identity, which was recorded.
    pub fn find(identity: &Identity) -> Self {
        Self {
            process: Process::find(identity),
        }
    }

    /// What [`find`](Self::find) finds the process by.
    ///
    /// # Errors
    ///
    /// The process has ended, or `/proc` cannot be read.
    pub fn identity(&self) -> io::Result<Identity> {
        self.process.as_ref().ok_or(io::ErrorKind::NotFound)?.identity()
    }

    /// Whether the process has ended, now or within `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.process.as_ref().is_none_or(|process| process.wait(limit))
    }

    /// Kills the process. SIGKILL works even while the process waits for a page.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::KILL);
        }
    }
}

impl From<Process> for QemuProcess {
    fn from(process: Process) -> Self {
        Self { process: Some(process) }
    }
}
