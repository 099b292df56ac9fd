// SPDX-License-Identifier: GPL-2.0-or-later
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
    ///
    /// # Errors
    ///
    /// The process may live: it cannot be looked up, for example because no descriptor is left.
    pub fn find(identity: &Identity) -> io::Result<Self> {
        Process::look_up(identity).map(|process| Self { process })
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    #[test]
    fn process_that_cannot_be_looked_up_does_not_count_as_ended() {
        let this = std::env::current_exe().expect("this program");
        let limited = "ulimit -n 32; exec \"$0\" --exact process::tests::without_descriptors --ignored --nocapture";
        let output = Command::new("sh")
            .args(["-c", limited])
            .arg(this)
            .output()
            .expect("a process");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "a process of another test"]
    fn without_descriptors() {
        let this = i32::try_from(std::process::id()).expect("a number");
        let identity = Process::open(this).and_then(|this| this.identity()).expect("it lives");
        assert!(QemuProcess::find(&identity).is_ok_and(|this| !this.ends_within(Duration::ZERO)));
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        let found = QemuProcess::find(&identity);
        drop(files);
        assert!(found.is_err(), "{found:?}");
    }
}
