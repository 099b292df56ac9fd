// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest's disk: a file that both hosts have, as if on a network, behind a vhost-user back end (`qemu-storage-daemon`). That is a process of its own,
//! and it writes into the guest's memory what it reads from the disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, ensure};

use crate::command::spawn;
use crate::network::Host;
use crate::patience::wait_until;

/// Its size.
const BYTES: u64 = 16 << 20;

/// A back end; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct BackEnd(Child);

/// Where the disk of a guest is.
fn path(guest: u8) -> PathBuf {
    format!("/dev/shm/guest{guest}-disk").into()
}

/// Makes an empty disk for a guest.
pub(crate) fn create(guest: u8) -> Result<()> {
    let file = File::create(path(guest)).context("the guest's disk")?;
    file.set_len(BYTES).context("the guest's disk")
}

/// Removes it.
pub(crate) fn remove(guest: u8) {
    let _ = fs::remove_file(path(guest));
}

impl BackEnd {
    /// Starts one on this host, which listens at `socket` when this returns.
    pub(crate) fn start(host: Host, guest: u8, socket: &Path, log: &Path) -> Result<Self> {
        // Without locks: the other host has the disk open, too, until its QEMU ends, and uses it only while the guest runs there.
        let disk = format!("driver=file,node-name=disk,filename={},locking=off", path(guest).display());
        let export = format!(
            "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={},writable=on",
            socket.display()
        );
        let mut command = host.command(&["qemu-storage-daemon", "--blockdev", &disk, "--export", &export]);
        let mut process = spawn(&mut command, log)?;
        let listens = wait_until("qemu-storage-daemon listens", || {
            ensure!(
                process.try_wait()?.is_none(),
                "qemu-storage-daemon has ended: {}",
                fs::read_to_string(log).unwrap_or_default()
            );
            Ok(socket.exists())
        });
        let back_end = Self(process);
        listens.map(|()| back_end)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
