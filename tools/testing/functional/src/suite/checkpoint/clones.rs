// SPDX-License-Identifier: GPL-2.0-or-later
//! Clones: guests, and programs, that share the regions of a base and have what they write for themselves.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmem::{MapHandle, PAGE_SIZE};
use vmem_mapping::{Access, Mapping, Sharing};

use super::guest::{Guest, Restored, ask, check_instant, go_on, segments, status};
use super::store::{Restore, Store, memory_of, noise, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::boot::{FIRST, SEGMENT, SEGMENTS};
use crate::suite::qemu::MEMORY;
use crate::world::wait_until;

/// How a clone has its memory.
const PRIVATE: &str = "share=off,readonly=on,rom=off";

const FILE: &str = "/dev/shm/vmem-checkpoint-clones";
const REGION: &str = "data.vmem-checkpo";
pub(super) const PAGES: usize = 3000;

/// A clone with a QEMU, which is killed at the end.
struct Clone {
    name: String,
    qmp: PathBuf,
    process: i32,
}

impl Clone {
    /// The command that makes one whose memory has these options. These words begin its QEMU's command.
    fn command(store: &Store, guest: &Guest, name: &str, memory: &str, before: &[&str]) -> Outcome<(Command, PathBuf)> {
        let qmp = guest.directory.join(name);
        let mut command = store.without_store("clone")?;
        command.args(["--json", "--base", "guest0", "--paused", "--qmp"]).arg(&qmp);
        if guest.has_disk() {
            command.arg("--disks").arg(disks(store)?);
        }
        command.arg("--").args(before);
        command.args(guest.taker(name, memory)).stdin(Stdio::null());
        Ok((command, qmp))
    }

    fn new(store: &Store, guest: &Guest, name: &str) -> Outcome<Self> {
        let (mut command, qmp) = Self::command(store, guest, name, PRIVATE, &[])?;
        let output = command.output()?;
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "{name}: {said} {errors}");
        let line = said
            .lines()
            .find(|line| line.contains("\"event\":\"cloned\""))
            .ok_or("no event")?;
        ensure!(!said.contains("vmgenid"), "{said}");
        println!("  {name}: {line}");
        Ok(Self {
            name: name.to_owned(),
            qmp,
            process: number(line, "\"process\":")? as i32,
        })
    }

    fn kill(&self) -> Outcome {
        Ok(kill_process(Pid::from_raw(self.process).ok_or("no process")?, Signal::KILL)?)
    }

    /// What its guest has written, as QEMU has it.
    fn memory(&self) -> Outcome<Vec<u8>> {
        memory(&self.qmp, FIRST, SEGMENTS * SEGMENT)
    }

    /// Makes a checkpoint of it.
    fn create(&self, store: &Store, more: &[&str]) -> Outcome<String> {
        let qmp = self.qmp.to_string_lossy();
        let said = store.run("create", &[&["--json", "--qmp", &qmp], more].concat())?;
        let line = said
            .lines()
            .find(|line| line.contains("\"event\":\"checkpoint\""))
            .ok_or("no event")?;
        println!("  {line}");
        Ok(line.to_owned())
    }

    fn generation(&self) -> Outcome<String> {
        ask(&self.qmp, "{\"execute\": \"query-vm-generation-id\"}")
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Memory of a guest, as QEMU has it.
fn memory(qmp: &Path, first: usize, bytes: usize) -> Outcome<Vec<u8>> {
    let file = qmp.with_extension("memory");
    let arguments = format!(
        "{{\"val\": {first}, \"size\": {bytes}, \"filename\": \"{}\"}}",
        file.display()
    );
    ask(qmp, &format!("{{\"execute\": \"pmemsave\", \"arguments\": {arguments}}}"))?;
    let found = fs::read(&file)?;
    fs::remove_file(&file)?;
    equal!(found.len(), bytes);
    Ok(found)
}

/// Fails unless what is restored from this checkpoint is this guest, which stands still.
fn check_restored(store: &Store, guest: &Guest, checkpoint: &str, clone: &Clone) -> Outcome {
    let region = format!("{}.ram", checkpoint.split('@').next().unwrap_or_default());
    let restored = Restored::in_region(store, guest, checkpoint, &region, &["--paused"])?;
    restored.check()?;
    let (before, after) = (
        memory(&clone.qmp, 0, MEMORY as usize)?,
        memory(&restored.qmp, 0, MEMORY as usize)?,
    );
    let differ: Vec<_> = (0..MEMORY as usize / PAGE_SIZE)
        .filter(|page| before[page * PAGE_SIZE..][..PAGE_SIZE] != after[page * PAGE_SIZE..][..PAGE_SIZE])
        .collect();
    // The restored guest has another generation ID.
    ensure!(
        differ.len() <= 1,
        "{checkpoint}: pages {differ:?} are not those of {}",
        clone.name
    );
    // What is shown: memory of the display, which is not the guest's.
    let screen = 0xb8000..0xb8000 + 4000;
    ensure!(
        before[screen.clone()] == after[screen.clone()] && before[screen].iter().any(|byte| *byte > b' '),
        "the screen is another one, or empty"
    );
    restored.end()
}

pub(super) fn checkpointed(store: &Store, guest: &Guest) -> Outcome {
    guest.create(store, &[])?;
    let base = store.begin("base", "guest0@1", &[], "ready")?;
    let one = Clone::new(store, guest, "one")?;
    let two = Clone::new(store, guest, "two")?;
    go_on(&one.qmp)?;
    // While it runs: the second one goes on from the first, and has what was written since.
    let first = one.create(store, &[])?;
    ensure!(
        first.contains("\"checkpoint\":\"one@1\"") && first.contains("\"parent\":\"guest0@1\""),
        "{first}"
    );
    let pages = number(&first, "\"pages\":")?;
    // The guest writes 128 pages, and QEMU some.
    ensure!((128..2048).contains(&pages), "{pages} pages are the clone's own");
    equal!(status(&one.qmp)?, "running");
    let second = one.create(store, &[])?;
    ensure!(second.contains("\"parent\":\"one@1\""), "{second}");
    for checkpoint in ["one@1", "one@2"] {
        let restored = Restored::in_region(store, guest, checkpoint, "one.ram", &["--paused"])?;
        restored.check()?;
        restored.end()?;
    }
    // While it stands still.
    ask(&one.qmp, "{\"execute\": \"stop\"}")?;
    let third = one.create(store, &[])?;
    ensure!(third.contains("\"running\":false"), "{third}");
    equal!(status(&one.qmp)?, "paused");
    check_restored(store, guest, "one@3", &one)?;
    // Another clone under the name of the first, which has not run: what it has not written is as the base has it, and not as the first has it.
    let fourth = two.create(store, &["--name", "one"])?;
    ensure!(fourth.contains("\"parent\":\"one@3\""), "{fourth}");
    let own = number(&fourth, "\"copied_pages\":")?;
    ensure!(own < 128 && number(&fourth, "\"pages\":")? >= 128, "{fourth}");
    check_restored(store, guest, "one@4", &two)?;
    // Killed at any moment, it leaves the guest running and nothing half.
    ask(&one.qmp, "{\"execute\": \"cont\"}")?;
    for delay in (0..16).map(|step| Duration::from_millis(20 * step)) {
        let mut child = store.command("create")?.arg("--qmp").arg(&one.qmp).spawn()?;
        sleep(delay);
        child.kill()?;
        child.wait()?;
        wait_until("the clone runs", || {
            Ok(status(&one.qmp).is_ok_and(|status| status == "running"))
        })?;
    }
    let refused = |more: &[&str]| -> Outcome<String> {
        let qmp = one.qmp.to_string_lossy();
        let output = store.end("create", &[&["--qmp", &qmp], more].concat())?;
        ensure!(!output.status.success(), "a checkpoint was made with {more:?}");
        equal!(status(&one.qmp)?, "running");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let said = refused(&["--copies", "16K"])?;
    ensure!(said.contains("of memory for itself"), "{said}");
    // Without the base, nothing proves what the other pages are.
    end(base)?;
    let said = refused(&[])?;
    ensure!(said.contains("of no base that lives"), "{said}");
    drop((one, two));
    wait_gone("guest0.ram")
}

/// The directory of overlays.
fn disks(store: &Store) -> Outcome<String> {
    let directory = store.directory.join("disks");
    fs::create_dir_all(&directory)?;
    Ok(directory.to_string_lossy().into_owned())
}

/// Checkpoints of a clone have its disk at the instant.
pub(super) fn with_disks(store: &Store, guest: &Guest) -> Outcome {
    let directory = disks(store)?;
    let disks = ["--disks", &directory];
    guest.create(store, &disks)?;
    let base = store.begin("base", "guest0@1", &[], "ready")?;
    let one = Clone::new(store, guest, "one")?;
    let two = Clone::new(store, guest, "two")?;
    go_on(&one.qmp)?;
    let block = |qmp: &Path| ask(qmp, "{\"execute\": \"query-block\"}");
    for number in 1..=2 {
        let said = one.create(store, &disks)?;
        ensure!(
            said.contains("\"running\":true") && said.contains("\"name\":\"ide0-hd0\"") && said.contains("\"pause_seconds\":0."),
            "{said}"
        );
        equal!(status(&one.qmp)?, "running");
        // Under the overlay of the checkpoint are that of the clone, and the disk of the base.
        let block = block(&one.qmp)?;
        let depth = format!("\"backing_file_depth\": {}", number + 1);
        ensure!(block.contains(&depth) && block.contains("/disks/one-"), "{block}");
    }
    let other = block(&two.qmp)?;
    ensure!(
        !other.contains("/disks/one-") && other.contains("\"backing_file_depth\": 1"),
        "{other}"
    );
    // While it stands still: it stays so.
    ask(&one.qmp, "{\"execute\": \"stop\"}")?;
    let said = one.create(store, &disks)?;
    ensure!(said.contains("\"running\":false"), "{said}");
    equal!(status(&one.qmp)?, "paused");
    for checkpoint in ["one@1", "one@3"] {
        let shown = store.run("show", &[checkpoint])?;
        ensure!(
            shown.contains("disk        ide0-hd0: ") && !shown.contains("written since"),
            "{shown}"
        );
        let restored = Restored::in_region(store, guest, checkpoint, "one.ram", &["--paused", disks[0], disks[1]])?;
        restored.check()?;
        restored.end()?;
    }
    // Killed while the guest stands still, as an overlay that appears says: the deputy continues it.
    ask(&one.qmp, "{\"execute\": \"cont\"}")?;
    for _ in 0..3 {
        let count = || -> Outcome<usize> { Ok(fs::read_dir(&directory)?.count()) };
        let before = count()?;
        let mut child = store.command("create")?.args(disks).arg("--qmp").arg(&one.qmp).spawn()?;
        while count()? == before && child.try_wait()?.is_none() {
            sleep(Duration::from_micros(200));
        }
        child.kill()?;
        child.wait()?;
        wait_until("the clone runs", || {
            Ok(status(&one.qmp).is_ok_and(|status| status == "running"))
        })?;
    }
    drop((one, two));
    end(base)?;
    wait_gone("guest0.ram")
}

/// The whole number after this text.
pub(super) fn number(text: &str, before: &str) -> Outcome<u64> {
    let (_, rest) = text.split_once(before).ok_or(format!("no {before} in {text}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// Ends a command that goes on, as an operator does.
pub(super) fn end(mut command: Restore) -> Outcome {
    let child = command.child();
    kill_process(Pid::from_child(child), Signal::TERM)?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

pub(super) fn of_guest(store: &Store, guest: &Guest) -> Outcome {
    guest.create(store, &[])?;
    let mut base = store.begin("base", "guest0@1", &[], "ready")?;
    let node = Path::new("/dev/vmem/guest0.ram");
    equal!(fs::metadata(node)?.permissions().mode() & 0o777, 0o440);
    // The second is started while the base is being filled, or is complete: both are right.
    let mut clones = vec![Clone::new(store, guest, "one")?, Clone::new(store, guest, "two")?];
    base.hear("complete")?;
    clones.push(Clone::new(store, guest, "three")?);
    let region = MapHandle::open("guest0.ram", Access::ReadOnly)?;
    let shared = region.map(Access::ReadOnly, Sharing::Shared)?;
    let mut before = vec![0; SEGMENTS * SEGMENT];
    shared.read_at(FIRST, &mut before)?;
    let instant = check_instant(&clones[0].qmp, &segments(&before))?;
    for clone in &clones {
        equal!(status(&clone.qmp)?, "paused");
        ensure!(
            clone.memory()? == before,
            "{} has other memory than its checkpoint",
            clone.name
        );
    }
    let generations = clones.iter().map(Clone::generation).collect::<Outcome<Vec<_>>>()?;
    ensure!(
        generations[0] != generations[1] && generations[1] != generations[2] && generations[0] != generations[2],
        "{generations:?}"
    );
    // Each runs on by itself, one after the other, and stands still where its own writes are.
    let mut instants = Vec::new();
    for clone in &clones {
        go_on(&clone.qmp)?;
        wait_until("the clone writes", || Ok(clone.memory()? != before))?;
        ask(&clone.qmp, "{\"execute\": \"stop\"}")?;
        let memory = clone.memory()?;
        instants.push(check_instant(&clone.qmp, &segments(&memory))?);
        for other in clones.iter().skip(instants.len()) {
            ensure!(other.memory()? == before, "{} sees what {} writes", other.name, clone.name);
        }
        let mut after = vec![0; SEGMENTS * SEGMENT];
        shared.read_at(FIRST, &mut after)?;
        ensure!(after == before, "{} has changed the base", clone.name);
    }
    println!("  the checkpoint is of round {instant}, and the clones stand at {instants:?}");
    // A command that could write to the base starts nothing.
    let refused = |memory: &str, before: &[&str]| -> Outcome<String> {
        let output = Clone::command(store, guest, "refused", memory, before)?.0.output()?;
        ensure!(!output.status.success(), "a clone with {memory} was started");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let said = refused("share=off", &[])?;
    ensure!(said.contains(PRIVATE), "{said}");
    // QEMU's options say nothing of the other descriptors that its process has.
    let with_writer = ["sh", "-c", "exec 3<>\"$0\" && exec \"$@\"", "{memory:ram}"];
    let said = refused(PRIVATE, &with_writer)?;
    ensure!(said.contains("for writing"), "{said}");
    // A clone, and then the base, can end: the others go on.
    clones.remove(0).kill()?;
    end(base)?;
    for clone in &clones {
        go_on(&clone.qmp)?;
    }
    let said = refused(PRIVATE, &[])?;
    ensure!(said.contains("there is no base guest0"), "{said}");
    drop((clones, shared, region));
    wait_gone("guest0.ram")
}

/// Makes checkpoint data@1.
pub(super) fn checkpoint(store: &Store) -> Outcome {
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    for page in 0..PAGES {
        file.write_all_at(&noise(page as u64 + 1), (page * PAGE_SIZE) as u64)?;
    }
    let (pid, memory) = memory_of(&file);
    let made = store.run("create", &["--name", "data", "--pid", &pid, "--memory", &memory]);
    let _ = fs::remove_file(FILE);
    made.map(drop)
}

/// A private mapping of the base, by a descriptor that can only read.
fn map() -> Outcome<Mapping> {
    Ok(MapHandle::open(REGION, Access::ReadOnly)?.map(Access::ReadWrite, Sharing::Private)?)
}

fn check(mapping: &Mapping, page: usize) -> Outcome {
    let mut found = vec![0; PAGE_SIZE];
    mapping.read_at(page * PAGE_SIZE, &mut found)?;
    ensure!(found == noise(page as u64 + 1), "page {page} is not what was stored");
    Ok(())
}

pub(super) fn fetched_once(store: &Store) -> Outcome {
    checkpoint(store)?;
    let mut base = store.begin("base", "data@1", &["--no-background"], "ready")?;
    let region = MapHandle::open(REGION, Access::ReadOnly)?;
    // A write to a page that nobody has: the rest of the page is what was stored, and only this mapping has the write.
    let (first, second) = (map()?, map()?);
    first.write_at(7 * PAGE_SIZE, b"own")?;
    let mut found = vec![0; PAGE_SIZE];
    first.read_at(7 * PAGE_SIZE, &mut found)?;
    ensure!(
        found[..3] == *b"own" && found[3..] == noise(8)[3..],
        "a write has lost what was there"
    );
    check(&second, 7)?;
    // All of it, by both at once.
    thread::scope(|scope| -> Outcome {
        let touch = |mapping: &Mapping| (0..PAGES).filter(|page| *page != 7).try_for_each(|page| check(mapping, page));
        let threads: Vec<_> = [&first, &second].map(|mapping| scope.spawn(move || touch(mapping))).into();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    let info = region.info()?;
    let last = base.hear_last("complete", "\"duplicate_bytes\"")?;
    let bytes = |name: &str| number(&last, &format!("\"{name}\":"));
    let (data, zero, duplicate) = (bytes("data_bytes")?, bytes("zero_bytes")?, bytes("duplicate_bytes")?);
    println!(
        "  {} requests for {PAGES} pages; {data} bytes filled, {duplicate} twice",
        info.requests
    );
    equal!((data + zero, duplicate), ((PAGES * PAGE_SIZE) as u64, 0));
    ensure!(info.requests <= PAGES as u64, "{} requests", info.requests);
    // Complete: plain memory, which others can map as before. What was written stays where it was.
    let third = map()?;
    (0..PAGES).try_for_each(|page| check(&third, page))?;
    first.read_at(7 * PAGE_SIZE, &mut found)?;
    ensure!(found[..3] == *b"own", "a write was lost at the completion");
    check(&second, 7)?;
    equal!(base.child().try_wait()?.map(|status| status.to_string()), None);
    end(base)?;
    (8..PAGES).try_for_each(|page| check(&second, page))?;
    drop((first, second, third, region));
    wait_gone(REGION)
}

/// The vmemd that fills the region of data@1.
fn vmemd() -> Outcome<Option<Pid>> {
    vmemd_of(REGION)
}

/// The vmemd that fills this region.
pub(super) fn vmemd_of(region: &str) -> Outcome<Option<Pid>> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process may end at any moment.
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        if words.contains("vmemd\0--source") && words.contains(&format!("={region}\0")) {
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            return Ok(number.and_then(Pid::from_raw));
        }
    }
    Ok(None)
}

pub(super) fn killed(store: &Store) -> Outcome {
    checkpoint(store)?;
    let mut base = store.begin("base", "data@1", &["--no-background"], "ready")?;
    let mapping = map()?;
    check(&mapping, 10)?;
    let other = store.end("base", &["data@1"])?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(
        !other.status.success() && said.contains("there is a base data already"),
        "{said}"
    );
    kill_process(vmemd()?.ok_or("there is no vmemd")?, Signal::KILL)?;
    // Another one goes on, and nothing is lost.
    (0..PAGES / 2).try_for_each(|page| check(&mapping, page))?;
    // The base itself is killed: vmemd goes on for those who map it.
    base.child().kill()?;
    base.child().wait()?;
    (PAGES / 2..PAGES).try_for_each(|page| check(&mapping, page))?;
    wait_until("vmemd has nothing more to do", || Ok(vmemd()?.is_none()))?;
    (0..PAGES).try_for_each(|page| check(&mapping, page))?;
    drop(mapping);
    wait_gone(REGION)?;
    // The name is free again.
    let base = store.begin("base", "data@1", &["--no-background"], "ready")?;
    check(&map()?, PAGES - 1)?;
    // Nobody maps it: vmemd ends with it, though pages are absent.
    end(base)?;
    wait_gone(REGION)?;
    ensure!(vmemd()?.is_none(), "vmemd has nobody to fill pages for");
    // The base is killed, and nobody maps it: vmemd ends when it has brought all pages.
    let mut base = store.begin("base", "data@1", &[], "ready")?;
    base.child().kill()?;
    base.child().wait()?;
    wait_until("vmemd has nothing more to do", || Ok(vmemd()?.is_none()))?;
    wait_gone(REGION)
}
