// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints of a program's memory.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmem::PAGE_SIZE;
use vmem_mapping::{Access, Mapping, Sharing};

use super::store::{Store, memory_of, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::vmemd::{map, open};
use crate::world::run_command;

const PAGES: usize = 2000;
const FILE: &str = "/dev/shm/vmem-checkpoint-program";

/// Writes the number of its round to the beginning of each page, in order and without end.
fn write(mapping: &Mapping, stop: &AtomicBool) -> Outcome {
    for round in 1_u64.. {
        for page in 0..PAGES {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            mapping.write_at(page * PAGE_SIZE, &round.to_ne_bytes())?;
        }
    }
    Ok(())
}

pub(super) fn exact(store: &Store) -> Outcome {
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    let mapping = Arc::new(Mapping::new(&file, 0, PAGES * PAGE_SIZE, Access::ReadWrite, Sharing::Shared)?);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (mapping, stop) = (Arc::clone(&mapping), Arc::clone(&stop));
        move || write(&mapping, &stop)
    });
    let (pid, memory) = memory_of(&file);
    let made = store.run(
        "create",
        &[
            "--json", "--name", "data", "--pid", &pid, "--memory", &memory, "--every", "0.3", "--count", "3",
        ],
    );
    stop.store(true, Ordering::Relaxed);
    writer.join().map_err(|_| "the writer panicked")??;
    let _ = fs::remove_file(FILE);
    let made = made?;
    ensure!(
        made.lines().filter(|line| line.contains("\"event\":\"checkpoint\"")).count() == 3,
        "{made}"
    );
    let mut last = 0;
    for checkpoint in ["data@1", "data@2", "data@3"] {
        let restore = store.restore(checkpoint, &[], "ready")?;
        let region = open("data.vmem-checkpo")?;
        let restored = map(&region)?;
        let word = |page: usize| -> Outcome<u64> {
            let mut bytes = [0; 8];
            restored.read_at(page * PAGE_SIZE, &mut bytes)?;
            Ok(u64::from_ne_bytes(bytes))
        };
        let first = word(0)?;
        let mut round = first;
        for page in 1..PAGES {
            let found = word(page)?;
            ensure!(
                found == round || (found + 1 == round && round == first),
                "page {page} of {checkpoint} has {found} after {round}"
            );
            round = found;
        }
        ensure!(
            first >= last,
            "{checkpoint} is of round {first}, and the one before of {last}"
        );
        last = first;
        restore.end()?;
        drop((restored, region));
        wait_gone("data.vmem-checkpo")?;
    }
    equal!(store.run("list", &["data"])?.lines().count(), 3);
    Ok(())
}

/// A memory that is named is restored, and a part of it exported.
pub(super) fn parts(store: &Store) -> Outcome {
    let memory_bytes: Vec<u8> = (0..8_u8).flat_map(|page| [page + 1; PAGE_SIZE]).collect();
    fs::write(FILE, &memory_bytes)?;
    let file = fs::File::options().read(true).write(true).open(FILE)?;
    let (pid, memory) = memory_of(&file);
    let made = store.run("create", &["--name", "data", "--pid", &pid, "--memory", &memory]);
    fs::remove_file(FILE)?;
    made?;

    let unknown = store.end("restore", &["data", "--memory", "c"])?;
    let why = String::from_utf8_lossy(&unknown.stderr);
    ensure!(why.contains("it has: vmem-checkpoint-program"), "{why}");
    let mut restore = store.restore("data", &["--memory", "vmem-checkpoint-program", "--no-record"], "ready")?;
    let name = restore.region()?;
    // All pages are there, and nobody needs them yet.
    let note = restore.hear("note")?;
    let node = format!("ends when a program maps /run/vmem/{name},");
    ensure!(note.contains("all pages are present") && note.contains(&node), "{note}");
    let region = open(&name)?;
    let mapping = map(&region)?;
    let mut found = vec![0; memory_bytes.len()];
    mapping.read_at(0, &mut found)?;
    ensure!(found == memory_bytes, "it is not what it was");
    restore.end()?;
    drop((mapping, region));
    wait_gone(&name)?;

    let output = store.directory.join("part");
    let (path, range) = (output.to_string_lossy(), format!("{PAGE_SIZE}+8K"));
    let part = ["--memory", "vmem-checkpoint-program", "--range", &range];
    store.run(
        "export",
        &[&["data", "--format", "raw", "--output", &path][..], &part].concat(),
    )?;
    ensure!(
        fs::read(&output)? == memory_bytes[PAGE_SIZE..3 * PAGE_SIZE],
        "the file has another part"
    );
    Ok(())
}

/// Who reads a checkpoint is named, and counts no more once it was killed.
pub(super) fn killed(store: &Store) -> Outcome {
    fs::write(FILE, vec![7; 8 * PAGE_SIZE])?;
    let file = fs::File::options().read(true).write(true).open(FILE)?;
    let (pid, memory) = memory_of(&file);
    let made = store.run("create", &["--name", "data", "--pid", &pid, "--memory", &memory]);
    fs::remove_file(FILE)?;
    made?;
    let mut restore = store.restore("data", &["--no-record", "--no-background"], "ready")?;
    let region = restore.region()?;
    let remove = || -> Outcome<Option<String>> {
        let removed = store.end("rm", &["data@1"])?;
        let text = String::from_utf8_lossy(&removed.stderr).into_owned();
        Ok((!removed.status.success()).then_some(text))
    };
    let restores = format!("process {} on host ", restore.child().id());
    let text = remove()?.ok_or("it was removed")?;
    ensure!(text.contains(&restores) && text.contains(" its lease ends in "), "{text}");
    restore.child().kill()?;
    restore.child().wait()?;
    // vmemd lives.
    let text = remove()?.ok_or("it was removed")?;
    ensure!(!text.contains(&restores), "{text}");
    let (_, number) = text.split_once("(process ").ok_or(text.clone())?;
    let number = number.split(' ').next().unwrap_or_default();
    ensure!(
        fs::read_to_string(format!("/proc/{number}/comm"))?.trim() == "vmemd",
        "{text}"
    );
    run_command("kill", &["-KILL", number])?;
    wait_gone(&region)?;
    equal!(remove()?, None);
    equal!(store.run("list", &[])?, "");
    Ok(())
}
