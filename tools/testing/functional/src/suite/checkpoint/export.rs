// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints that are exported to files.

use std::fs;
use std::path::Path;

use super::guest::{Guest, ask, check_instant, go_on, status};
use super::store::Store;
use crate::failure::{Outcome, ensure, equal};
use crate::suite::boot::{FIRST, SEGMENT, SEGMENTS};
use crate::suite::snapshot::guest::words;
use crate::world::wait_until;

/// Where the guest writes, in an image of its memory.
fn segments(memory: &[u8]) -> Outcome<Vec<Vec<u16>>> {
    let segment = |number: usize| -> Outcome<Vec<u16>> {
        let from = FIRST + number * SEGMENT;
        Ok(words(memory.get(from..from + SEGMENT).ok_or("a short image")?))
    };
    (0..SEGMENTS).map(segment).collect()
}

pub(super) fn loaded(store: &Store, guest: &mut Guest) -> Outcome {
    guest.create(store, &[])?;
    let [stream, raw, saved, qmp] = ["stream", "raw", "saved", "qmp"].map(|name| store.directory.join(name));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    store.run("export", &["guest0@1", "--format", "qemu", "--output", &text(&stream)])?;
    store.run("export", &["guest0@1", "--format", "raw", "--output", &text(&raw)])?;
    // What is there is kept.
    let again = store.end("export", &["guest0@1", "--format", "qemu", "--output", &text(&stream)])?;
    equal!(again.status.code(), Some(1));

    let mut qemu = guest.loaded(&stream, &qmp)?;
    wait_until("QEMU has loaded the stream", || {
        ensure!(qemu.runs()?, "QEMU has ended");
        Ok(status(&qmp).is_ok_and(|status| status == "paused"))
    })?;
    let save = format!(
        "{{\"execute\": \"pmemsave\", \"arguments\": {{\"val\": 0, \"size\": {}, \"filename\": \"{}\"}}}}",
        FIRST + SEGMENTS * SEGMENT,
        saved.display()
    );
    ask(&qmp, &save)?;
    let found = segments(&fs::read(&saved)?)?;
    check_instant(&qmp, &found)?;
    ensure!(
        segments(&fs::read(raw.join("ram.raw"))?)? == found,
        "the raw image is of another instant"
    );
    go_on(&qmp)
}
