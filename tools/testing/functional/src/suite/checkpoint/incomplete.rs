// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints of memory whose pages have not all come: each page of them is compared with what it was at the instant.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use vmem::{MapHandle, PAGE_SIZE};
use vmem_mapping::Mapping;

use super::clones::{PAGES, checkpoint, end, number, vmemd_of};
use super::guest::{Guest, Restored};
use super::store::{Restore, Store, memory_of, noise, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::qemu::MEMORY;
use crate::suite::vmemd::{map, open};
use crate::world::wait_until;

crate::tests![
    checkpoint_refers_to_what_incomplete_memory_is_filled_from,
    checkpoints_go_on_over_the_completion_of_memory,
    checkpoint_of_memory_that_is_filled_from_elsewhere_waits_until_a_signal,
    checkpoint_of_memory_that_nobody_fills_is_refused,
    checkpoint_of_a_restored_guest_refers_to_what_is_still_in_the_store,
];

const TOUCHED: std::ops::Range<usize> = 100..200;
const WRITTEN: std::ops::Range<usize> = 190..260;
/// Of these, some are present and some are absent.
const DISCARDED: std::ops::Range<usize> = 150..155;
const DISCARDED_ABSENT: std::ops::Range<usize> = 1000..1100;

/// A program whose memory is restored from data@1, page by page when it touches it.
struct Program {
    restore: Restore,
    /// Its region.
    name: String,
    region: MapHandle,
    memory: Mapping,
    /// What each page has, for the program.
    pages: Vec<Vec<u8>>,
}

impl Program {
    fn new(store: &Store) -> Outcome<Self> {
        let restore = store.restore("data@1", &["--no-background", "--no-record"], "ready")?;
        let name = restore.region()?;
        let region = open(&name)?;
        let memory = map(&region)?;
        Ok(Self {
            restore,
            name,
            region,
            memory,
            pages: (0..PAGES).map(|page| noise(page as u64 + 1)).collect(),
        })
    }

    /// Reads, writes and discards some pages.
    fn work(&mut self) -> Outcome {
        for page in TOUCHED {
            self.check(page)?;
        }
        for page in WRITTEN {
            self.write(page, &noise(100_000 + page as u64))?;
        }
        self.discard(DISCARDED)?;
        self.discard(DISCARDED_ABSENT)
    }

    fn check(&self, page: usize) -> Outcome {
        let mut found = vec![0; PAGE_SIZE];
        self.memory.read_at(page * PAGE_SIZE, &mut found)?;
        ensure!(found == self.pages[page], "page {page} is another one");
        Ok(())
    }

    fn write(&mut self, page: usize, contents: &[u8]) -> Outcome {
        self.memory.write_at(page * PAGE_SIZE, contents)?;
        self.pages[page] = contents.to_vec();
        Ok(())
    }

    fn discard(&mut self, pages: std::ops::Range<usize>) -> Outcome {
        self.memory.remove(pages.start * PAGE_SIZE, pages.len() * PAGE_SIZE)?;
        self.pages[pages].fill(vec![0; PAGE_SIZE]);
        Ok(())
    }

    fn end_restore(&mut self, signal: Signal) -> Outcome {
        let child = self.restore.child();
        kill_process(Pid::from_child(child), signal)?;
        child.wait()?;
        Ok(())
    }

    fn absent(&self) -> Outcome<u64> {
        Ok(PAGES as u64 - self.region.info()?.present)
    }

    /// What says to `create` that this is the memory.
    fn options(&self) -> Vec<String> {
        let (pid, memory) = (std::process::id().to_string(), format!("/dev/vmem/{}", self.name));
        let words = ["--name", "new", "--pid", &pid, "--memory", &memory];
        words.map(str::to_owned).into()
    }

    fn create(&self, store: &Store) -> Outcome<String> {
        let options = self.options();
        let options: Vec<&str> = ["--json"].into_iter().chain(options.iter().map(String::as_str)).collect();
        let said = store.run("create", &options)?;
        println!("  {}", said.trim_end());
        Ok(said)
    }

    /// Ends it, with its vmemd, which gives its lease back.
    fn end(self) -> Outcome {
        let Self {
            restore,
            name,
            region,
            memory,
            ..
        } = self;
        // As long as it lives, it starts a vmemd again.
        drop(restore);
        if let Some(vmemd) = vmemd_of(&name)? {
            kill_process(vmemd, Signal::TERM)?;
            kill_process(vmemd, Signal::CONT)?;
        }
        wait_until("vmemd has ended", || Ok(vmemd_of(&name)?.is_none()))?;
        drop((memory, region));
        wait_gone(&name)
    }

    fn vmemd(&self) -> Outcome<Pid> {
        Ok(vmemd_of(&self.name)?.ok_or("there is no vmemd")?)
    }

    fn signal_vmemd(&self, signal: Signal) -> Outcome {
        Ok(kill_process(self.vmemd()?, signal)?)
    }
}

/// Fails unless these are the pages of this checkpoint, which is being restored.
fn check_restored(restore: Restore, checkpoint: &str, pages: &[Vec<u8>]) -> Outcome {
    let name = restore.region()?;
    let region = open(&name)?;
    let memory = map(&region)?;
    let mut found = vec![0; PAGE_SIZE];
    for (number, page) in pages.iter().enumerate() {
        memory.read_at(number * PAGE_SIZE, &mut found)?;
        ensure!(found == *page, "page {number} of {checkpoint} is not what it was");
    }
    restore.end()?;
    drop((memory, region));
    wait_gone(&name)
}

fn checkpoint_refers_to_what_incomplete_memory_is_filled_from() -> Outcome {
    let store = &Store::new()?;
    checkpoint(store)?;
    let mut program = Program::new(store)?;
    program.work()?;
    // The restore has ended, and its vmemd stands still: nothing can come.
    program.end_restore(Signal::TERM)?;
    program.signal_vmemd(Signal::STOP)?;
    let absent = program.absent()?;
    let said = program.create(store)?;
    ensure!(
        said.contains("\"parent\":\"data@1\"") && said.contains("\"origin\":\"data@1\""),
        "{said}"
    );
    equal!(number(&said, "\"referred_pages\":")?, absent);
    // Those that were written are stored, and those that came are as in the parent.
    equal!(number(&said, "\"stored_pages\":")?, WRITTEN.len() as u64);
    let first = program.pages.clone();
    program.signal_vmemd(Signal::CONT)?;
    // A process that knows nothing of the first one, and other pages that have come.
    for page in 2000..2010 {
        program.check(page)?;
    }
    program.write(2005, &noise(77))?;
    program.write(DISCARDED_ABSENT.start, &noise(78))?;
    let said = program.create(store)?;
    ensure!(said.contains("\"parent\":\"data@1\""), "{said}");
    let second = program.pages.clone();
    program.end()?;
    // Nothing of the first one is needed by name.
    store.run("rm", &["data@1"])?;
    store.run("gc", &["--grace", "0.001"])?;
    for (checkpoint, pages) in [("new@1", first), ("new@2", second)] {
        check_restored(store.restore(checkpoint, &["--no-record"], "ready")?, checkpoint, &pages)?;
    }
    Ok(())
}

fn checkpoints_go_on_over_the_completion_of_memory() -> Outcome {
    let store = &Store::new()?;
    checkpoint(store)?;
    let mut program = Program::new(store)?;
    let mut command = store.command("create")?;
    command.arg("--json").args(program.options()).args(["--every", "0.2"]);
    let mut creates = Restore::start(command, "checkpoint")?;
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(1));
    let (memory, region) = (&program.memory, &program.region);
    let checkpoints = thread::scope(|scope| -> Outcome<Vec<String>> {
        // The number of its round, into the beginning of each page, in order and without end. The first round brings all pages, and pauses
        // for one more instant.
        let writer = scope.spawn(|| -> Outcome {
            for round in 1_u64.. {
                for page in 0..PAGES {
                    if round == 1 && page == PAGES / 2 {
                        let before = made.load(Ordering::Relaxed);
                        while made.load(Ordering::Relaxed) < before + 2 && !stop.load(Ordering::Relaxed) {
                            sleep(Duration::from_millis(1));
                        }
                    }
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    memory.write_at(page * PAGE_SIZE, &round.to_ne_bytes())?;
                }
            }
            Ok(())
        });
        let mut checkpoints = vec![creates.said().to_owned()];
        let is_complete = |line: &String| number(line, "\"referred_pages\":").is_ok_and(|pages| pages == 0);
        let mut hear = || -> Outcome {
            while checkpoints.iter().filter(|line| is_complete(line)).count() < 2 || !region.info()?.plain {
                checkpoints.push(creates.hear("checkpoint")?);
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let heard = hear();
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| "the writer panicked")??;
        heard.map(|()| checkpoints)
    })?;
    end(creates)?;
    program.restore.hear("complete")?;
    program.restore.child().wait()?;
    drop((program.memory, program.region, program.restore));
    wait_gone(&program.name)?;
    let referred: Vec<u64> = checkpoints
        .iter()
        .map(|line| number(line, "\"referred_pages\":"))
        .collect::<Outcome<_>>()?;
    println!("  {referred:?} pages were absent at the instants");
    equal!(referred[0], PAGES as u64);
    ensure!(referred.iter().any(|pages| (1..PAGES as u64).contains(pages)), "{referred:?}");
    let (last, between) = (referred.len(), referred.iter().filter(|pages| **pages > 0).count());
    let some = BTreeSet::from([2, between, last]);
    some.into_iter().try_for_each(|number| check_rounds(store, number))
}

/// Fails unless the pages of this checkpoint are those of one instant of the writer.
fn check_rounds(store: &Store, number: usize) -> Outcome {
    let restore = store.restore(&format!("new@{number}"), &["--no-record"], "ready")?;
    let name = restore.region()?;
    let region = open(&name)?;
    let memory = map(&region)?;
    let mut found = vec![0; PAGE_SIZE];
    let mut rounds = Vec::new();
    for page in 0..PAGES {
        memory.read_at(page * PAGE_SIZE, &mut found)?;
        let expected = noise(page as u64 + 1);
        ensure!(found[8..] == expected[8..], "page {page} of new@{number} is another one");
        let (word, _) = found.split_first_chunk().ok_or("a short page")?;
        rounds.push(if found == expected { 0 } else { u64::from_ne_bytes(*word) });
    }
    let first = rounds[0];
    ensure!(
        rounds
            .windows(2)
            .all(|pair| pair[1] == pair[0] || (pair[1] + 1 == pair[0] && pair[0] == first)),
        "new@{number} is not of one instant: {rounds:?}"
    );
    restore.end()?;
    drop((memory, region));
    wait_gone(&name)
}

/// The origin that a process makes known.
fn origin_of(pid: Pid) -> Outcome<String> {
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|link| link == Path::new("/memfd:vmem-origin (deleted)")) {
            let mut text = String::new();
            File::open(path)?.read_to_string(&mut text)?;
            return Ok(text);
        }
    }
    Err("vmemd does not say what it fills its regions from".into())
}

/// A memfd like that of a vmemd.
fn forged(text: &str) -> Outcome<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let mut file = File::from(memfd_create("vmem-origin", flags)?);
    file.write_all(text.as_bytes())?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file)
}

fn checkpoint_of_memory_that_is_filled_from_elsewhere_waits_until_a_signal() -> Outcome {
    let store = &Store::new()?;
    checkpoint(store)?;
    // Another store, with another checkpoint of this name, of which this process says that the memory is filled from it.
    let location = store.directory.join("other").to_string_lossy().into_owned();
    let run = |command: &str, arguments: &[&str]| -> Outcome<String> {
        let output = store.command_at(command, &location)?.args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    run("init", &[])?;
    let file = store.directory.join("zeros");
    let zeros = File::options().read(true).write(true).create_new(true).open(&file)?;
    zeros.set_len((PAGES * PAGE_SIZE) as u64)?;
    let (pid, memory) = memory_of(&zeros);
    run("create", &["--name", "data", "--pid", &pid, "--memory", &memory])?;
    let mut command = store.command_at("restore", &location)?;
    command.args(["--json", "data@1", "--no-background", "--no-record"]);
    let restore = Restore::start(command, "ready")?;
    let name = restore.region()?;
    let other = origin_of(vmemd_of(&name)?.ok_or("no vmemd")?)?;
    let was = open(&name)?.info()?.id;
    drop(restore);
    kill_process(vmemd_of(&name)?.ok_or("no vmemd")?, Signal::KILL)?;
    wait_gone(&name)?;

    let mut program = Program::new(store)?;
    program.work()?;
    let proven = origin_of(program.vmemd()?)?;
    let region = format!("\"{}\"", program.region.info()?.id);
    let text = other.replace(&format!("\"{was}\""), &region);
    ensure!(proven.contains(&region) && text.contains(&region), "{proven} {text}");
    let _forged = forged(&text)?;
    program.signal_vmemd(Signal::STOP)?;
    let absent = program.absent()?;
    let begin = || -> Outcome<Restore> {
        let mut command = store.command_at("create", &location)?;
        command.arg("--json").args(program.options());
        let mut create = Restore::start(command, "absent")?;
        let said = create.said().to_owned();
        equal!(
            (number(&said, "\"referred_pages\":")?, number(&said, "\"awaited_pages\":")?),
            (0, absent)
        );
        create.hear("waiting")?;
        Ok(create)
    };
    let mut create = begin()?;
    kill_process(Pid::from_child(create.child()), Signal::TERM)?;
    ensure!(!create.child().wait()?.success(), "a checkpoint lacks pages and was made");
    equal!(run("list", &["new"])?, "");
    // The pages come, and are written before they are stored.
    let mut create = begin()?;
    let at_instant = program.pages.clone();
    program.signal_vmemd(Signal::CONT)?;
    program.write(2500, &noise(79))?;
    create.hear("checkpoint")?;
    ensure!(create.child().wait()?.success(), "create failed");
    program.end()?;
    let mut command = store.command_at("restore", &location)?;
    command.args(["--json", "new@1", "--no-record"]);
    check_restored(Restore::start(command, "ready")?, "new@1", &at_instant)
}

fn checkpoint_of_memory_that_nobody_fills_is_refused() -> Outcome {
    let store = &Store::new()?;
    checkpoint(store)?;
    let mut program = Program::new(store)?;
    program.work()?;
    program.end_restore(Signal::KILL)?;
    program.signal_vmemd(Signal::KILL)?;
    wait_until("nobody serves the region", || Ok(!program.region.info()?.attached))?;
    let options = program.options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let output = store.end("create", &options)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && errors.contains("no vmemd serves the region"),
        "{errors}"
    );
    equal!(store.run("list", &["new"])?, "");
    // What is there is still the program's.
    for page in TOUCHED {
        program.check(page)?;
    }
    program.end()
}

fn checkpoint_of_a_restored_guest_refers_to_what_is_still_in_the_store() -> Outcome {
    let (store, guest) = (&Store::new()?, &Guest::new()?);
    guest.create(store, &[])?;
    let restored = Restored::new(store, guest, "guest0@1", &["--no-background", "--no-record"])?;
    // It runs, and most of its memory is in the store.
    let qmp = restored.qmp.to_string_lossy().into_owned();
    let said = store.run("create", &["--json", "--qmp", &qmp, "--name", "new"])?;
    println!("  {}", said.trim_end());
    let referred = number(&said, "\"referred_pages\":")?;
    ensure!(
        said.contains("\"parent\":\"guest0@1\"") && said.contains("\"running\":true") && referred > MEMORY / 4096 / 4,
        "{said}"
    );
    restored.quit()?;
    let restored = Restored::in_region(store, guest, "new@1", "new.ram", &["--paused"])?;
    restored.check()?;
    restored.end()
}
