// SPDX-License-Identifier: GPL-2.0-or-later
//! What a host has for a guest: a tap, a directory, files for its memory. Gone when dropped.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::disk::BackEnd;
use crate::evidence;
use crate::network::Host;

/// Where the directories of all slots are.
pub(crate) const DIRECTORIES: &str = "/run/vmem-migration";

/// How many there have been: what is left of them is told apart by it.
static SLOTS: AtomicU32 = AtomicU32::new(0);

/// Place for one guest on one host.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) host: Host,
    number: u8,
    directory: PathBuf,
    /// What is behind the guest's disk here, if it has one.
    disk: Option<BackEnd>,
}

impl Slot {
    /// Makes the directory and the tap of the guest of this number, and starts what is behind its disk, if it has one.
    pub(crate) fn new(host: Host, number: u8, has_disk: bool) -> Result<Self> {
        let mut slot = Self {
            host,
            number,
            directory: format!(
                "{DIRECTORIES}/{:03}-{}-guest{}",
                SLOTS.fetch_add(1, Ordering::Relaxed),
                host.name(),
                number
            )
            .into(),
            disk: None,
        };
        slot.clear();
        fs::create_dir_all(&slot.directory).context("a directory in /run")?;
        host.add_tap(&slot.tap())?;
        if has_disk {
            slot.disk = Some(BackEnd::start(host, number, &slot.disk_socket(), &slot.log("disk"))?);
        }
        Ok(slot)
    }

    /// The guest's network device on this host.
    pub(crate) fn tap(&self) -> String {
        format!("tap{}", self.number)
    }

    /// What the guest writes to its serial console.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    /// The QMP socket for this program. A QMP socket talks to one client at a time.
    pub(crate) fn own_qmp(&self) -> PathBuf {
        self.directory.join("own.qmp")
    }

    /// The QMP socket for `vmemctl`.
    pub(crate) fn qmp(&self) -> PathBuf {
        self.directory.join("vmemctl.qmp")
    }

    /// Where the back end of the guest's disk listens.
    pub(crate) fn disk_socket(&self) -> PathBuf {
        self.directory.join("disk.vhost-user")
    }

    /// QEMU's socket for the guest agent.
    pub(crate) fn agent(&self) -> PathBuf {
        self.directory.join("agent")
    }

    /// Where `vmemctl` notes what is going on.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// QEMU's process number.
    pub(crate) fn pid(&self) -> PathBuf {
        self.directory.join("pid")
    }

    /// Where a program's messages go.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// The name of its directory, also among the results of the run.
    pub(crate) fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Keeps what this process writes to its standard error, though nobody can see the file any more.
    pub(crate) fn keep_errors(&self, pid: Pid) {
        let _ = fs::copy(format!("/proc/{}/fd/2", pid.as_raw_nonzero()), self.log("qemu-errors"));
    }

    /// What a program has written to its log so far.
    pub(crate) fn read_log(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    /// A file in shared memory for one of the guest's backends.
    pub(crate) fn shared_memory(&self, backend: usize) -> String {
        format!("/dev/shm/{}-guest{}-ram{backend}", self.host.name(), self.number)
    }

    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.directory);
        for backend in 0..2 {
            let _ = fs::remove_file(self.shared_memory(backend));
        }
        let _ = self.host.remove_tap(&self.tap());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        evidence::copy();
        self.disk = None;
        self.clear();
    }
}
