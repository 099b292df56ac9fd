// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands of the user around checkpoints of a program.

use std::fs;

use vmem::PAGE_SIZE;

use super::store::{Store, memory_of};
use crate::failure::{Outcome, ensure, equal};

const FILE: &str = "/dev/shm/vmem-checkpoint-hooks";

pub(super) fn executed(store: &Store) -> Outcome {
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    file.set_len(8 * PAGE_SIZE as u64)?;
    let (pid, memory) = memory_of(&file);
    let said = store.directory.join("said");
    let say = |word: &str| format!("echo {word} $VMEM_GUEST $VMEM_RESULT $VMEM_NUMBER >> {}", said.display());
    let (before, resumed, after) = (say("before"), say("resumed"), say("after"));
    let failing = format!("{before}; exit 3");
    let create = |before: &str| {
        let subject = ["--name", "data", "--pid", &pid, "--memory", &memory];
        let commands = ["--before", before, "--resumed", &resumed, "--after", &after];
        store.end("create", &[&subject[..], &commands].concat())
    };
    let made = create(&before)?;
    let failed = create(&failing)?;
    let _ = fs::remove_file(FILE);

    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    equal!(failed.status.code(), Some(1));
    let why = String::from_utf8_lossy(&failed.stderr);
    ensure!(
        why.contains("the command of --before: it has failed (exit status: 3)"),
        "{why}"
    );
    let lines = fs::read_to_string(&said)?;
    equal!(
        lines.lines().collect::<Vec<_>>(),
        [
            "before data",
            "resumed data",
            "after data made 1",
            "before data",
            "resumed data",
            "after data failed"
        ]
    );
    ensure!(!store.run("list", &[])?.contains("data@2"), "there is a checkpoint");
    Ok(())
}
