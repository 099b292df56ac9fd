// SPDX-License-Identifier: GPL-2.0
//! Checkpoints of a program's memory.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmem::PAGE_SIZE;
use vmem_mapping::{Access, Mapping, Sharing};

use super::store::{Store, memory_of, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::vmemd::{map, open};

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

/// Of two memories one is restored, and a part of the other one exported.
pub(super) fn parts(store: &Store) -> Outcome {
    let files = ["a", "b"].map(|name| PathBuf::from(format!("/dev/shm/vmem-checkpoint-{name}")));
    let mut open_files = Vec::new();
    for (number, path) in (1..).zip(&files) {
        fs::write(path, [number; 8 * PAGE_SIZE])?;
        open_files.push(fs::File::options().read(true).write(true).open(path)?);
    }
    let [first, second] = open_files.as_slice() else {
        return Err("two files".into());
    };
    let ((pid, first), (_, second)) = (memory_of(first), memory_of(second));
    let made = store.run(
        "create",
        &["--name", "data", "--pid", &pid, "--memory", &first, "--memory", &second],
    );
    files.iter().try_for_each(fs::remove_file)?;
    made?;

    let unknown = store.end("restore", &["data", "--memory", "c"])?;
    let why = String::from_utf8_lossy(&unknown.stderr);
    ensure!(why.contains("it has: vmem-checkpoint-a, vmem-checkpoint-b"), "{why}");
    let mut restore = store.restore("data", &["--memory", "vmem-checkpoint-b"], "ready")?;
    let names: Vec<String> = regions()?;
    let [name] = names.as_slice() else {
        return Err(format!("the regions are {names:?}").into());
    };
    let region = open(name)?;
    let mut found = [0; 8 * PAGE_SIZE];
    map(&region)?.read_at(0, &mut found)?;
    ensure!(found == [2; 8 * PAGE_SIZE], "it is another memory");
    restore.hear("complete")?;
    drop((restore, region));
    wait_gone(name)?;

    let output = store.directory.join("part");
    let (path, range) = (output.to_string_lossy(), format!("{PAGE_SIZE}+8K"));
    let part = ["--memory", "vmem-checkpoint-a", "--range", &range];
    store.run(
        "export",
        &[&["data", "--format", "raw", "--output", &path][..], &part].concat(),
    )?;
    equal!(fs::read(&output)?, [1; 2 * PAGE_SIZE]);
    Ok(())
}

/// The names of all regions.
fn regions() -> Outcome<Vec<String>> {
    let entries = fs::read_dir(vmem::DIRECTORY)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Outcome<Vec<String>> = names.collect();
    Ok(names?.into_iter().filter(|name| name != "control").collect())
}
