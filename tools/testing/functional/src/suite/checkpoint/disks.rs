// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints with the guest's disk.

use std::fs;
use std::io::Write;

use super::guest::{Guest, Restored, ask};
use super::store::Store;
use crate::failure::{Outcome, ensure, equal};

/// Overlays of checkpoints that are removed are merged, and those of others stay as they are.
fn merged(store: &Store, guest: &Guest, disks: &str) -> Outcome {
    for _ in 3..=5 {
        guest.create(store, &["--disks", disks])?;
    }
    let removed = store.run("rm", &["guest0@3", "guest0@4"])?;
    equal!(
        removed
            .matches("no checkpoint of this store refers to this disk file")
            .count(),
        2
    );
    let qmp = guest.qmp().to_string_lossy().into_owned();
    for (arguments, depth) in [(&["--dry-run"][..], 5), (&[], 4)] {
        let said = store.run("merge-overlays", &[&["--qmp", &qmp], arguments].concat())?;
        ensure!(said.lines().count() == 2 && said.contains("ide0-hd0"), "{said}");
        let block = ask(&guest.qmp(), "{\"execute\": \"query-block\"}")?;
        ensure!(block.contains(&format!("\"backing_file_depth\": {depth}")), "{block}");
    }
    for checkpoint in ["guest0@1", "guest0@2", "guest0@5"] {
        store.run("show", &["--json", checkpoint])?;
        let shown = store.run("show", &[checkpoint])?;
        ensure!(!shown.contains("written since"), "{shown}");
    }
    equal!(guest.status()?, "running");
    equal!(store.run("merge-overlays", &["--qmp", &qmp])?, "");
    Ok(())
}

pub(super) fn kept(store: &Store, guest: &mut Guest) -> Outcome {
    let directory = store.directory.join("disks");
    fs::create_dir(&directory)?;
    let disks = directory.to_string_lossy().into_owned();
    for number in 1..=2 {
        let said = guest.create(store, &["--disks", &disks])?;
        ensure!(said.contains("\"name\":\"ide0-hd0\""), "{said}");
        equal!(fs::read_dir(&directory)?.count(), number);
        equal!(guest.status()?, "running");
        let block = ask(&guest.qmp(), "{\"execute\": \"query-block\"}")?;
        ensure!(block.contains(&format!("\"backing_file_depth\": {number}")), "{block}");
    }
    // The first one has the boot disk, the second one the first overlay.
    for (checkpoint, format) in [("guest0@1", "raw"), ("guest0@2", "qcow2")] {
        let shown = store.run("show", &[checkpoint])?;
        ensure!(
            shown.contains("disk        ide0-hd0: ") && shown.contains(&format!("({format})\n")),
            "{shown}"
        );
        let restored = Restored::new(store, guest, checkpoint, &["--paused", "--disks", &disks])?;
        let block = ask(&restored.qmp, "{\"execute\": \"query-block\"}")?;
        ensure!(block.contains("guest0-restored-"), "{block}");
        restored.check()?;
        restored.end()?;
    }
    merged(store, guest, &disks)?;
    // Somebody writes to the disk of the first one.
    fs::File::options()
        .append(true)
        .open(guest.boot_disk())?
        .write_all(&[0; 512])?;
    let qmp = directory.join("qmp").to_string_lossy().into_owned();
    let output = store.end("restore", &["guest0@1", "--qmp", &qmp, "--disks", &disks, "--", "false"])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && stderr.contains("was written since the checkpoint"),
        "{:?} {stderr}",
        output.status
    );
    ensure!(guest.qemu.runs()?, "QEMU has ended");
    Ok(())
}
