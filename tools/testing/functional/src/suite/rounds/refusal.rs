// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that cannot be tracked, and two sides that do not fit each other.

use std::fs;

use super::super::vmemd::{Daemon, Source, beside};
use super::memory::Memory;
use super::moves::{Receiver, Sender, name};
use super::writer::{Writer, Writes};
use crate::adopted::Adopted;
use crate::failure::{Outcome, ensure, equal};

crate::tests![
    memory_that_cannot_be_tracked_is_an_error_before_anything_listens,
    destination_that_does_not_stage_is_refused_before_finish,
    destination_that_does_not_stage_gets_all_pages_after_finish,
    destination_that_stages_is_refused_by_a_source_without_rounds,
    second_destination_that_stages_is_refused,
];

const PAGES: usize = 256;

/// vmemd's exit codes.
const LOCAL: i32 = 1;
const LOST: i32 = 2;
const UNTRUSTED: i32 = 3;

/// `vmemd serve --rounds` ends with an error that has these words, and has not listened.
fn refused(arguments: &[&str], words: &[&str]) -> Outcome {
    let socket = "/dev/shm/rounds-refused.control";
    let output = beside("vmemd")?
        .args(["serve", "--listen", "127.0.0.1:0", "--rounds", "auto", "--control", socket])
        .args(arguments)
        .output()?;
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    equal!(output.status.code(), Some(LOCAL));
    ensure!(said.is_empty(), "{said}");
    ensure!(fs::exists(socket).is_ok_and(|exists| !exists), "it has a control socket");
    ensure!(words.iter().all(|word| errors.contains(word)), "no {words:?} in {errors}");
    Ok(())
}

fn memory_that_cannot_be_tracked_is_an_error_before_anything_listens() -> Outcome {
    let memory = Memory::named("rounds-refused", PAGES)?;
    let memories = [memory];
    let [memory] = &memories;
    let writer = Writer::idle(&memories)?;
    let (path, pid) = (memory.path(), writer.pid().to_string());
    let export = format!("ram={path}");
    refused(&[&export], &[&path, "--process"])?;
    // This process has it open. The first one of the machine has not.
    refused(&["--process", "1", &export], &[&path, "process 1"])?;
    refused(&["--process", "1000000", &export], &[&path, "process 1000000"])?;
    // Of two exports one cannot be tracked.
    let other = "other=/proc/self/exe";
    refused(&["--process", &pid, &export, other], &["/proc/self/exe"])?;
    let region = "ram=/dev/vmem/rounds-none";
    refused(&[region], &["/dev/vmem/rounds-none"])?;
    let tracker = Adopted::new(&memory.file)?;
    tracker.track()?;
    refused(&["--process", &pid, &export], &[&path, "adopted already"])?;
    drop(tracker);
    writer.goes_on()?;
    memory.wait_untracked()
}

fn destination_that_does_not_stage_is_refused_before_finish() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writer = Writer::new(&memories, 1, 16, Writes::anywhere)?;
    let sender = Sender::new(&memories, writer.pid(), &["--rounds", "auto"])?;
    let end = Daemon::new(&sender.source.address, &[])?.end()?.with_code(UNTRUSTED)?;
    ensure!(
        end.errors.contains("before the list of the remaining pages is complete"),
        "{}",
        end.errors
    );
    drop(sender);
    writer.goes_on()
}

fn destination_that_does_not_stage_gets_all_pages_after_finish() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writer = Writer::new(&memories, 1, 16, Writes::mixed)?;
    let mut sender = Sender::new(&memories, writer.pid(), &["--rounds", "auto"])?;
    writer.stop()?;
    equal!(sender.finish()?, PAGES as u64);
    let daemon = Daemon::new(&sender.source.address, &[])?;
    let handle = super::super::vmemd::open(&name(0))?;
    let mapping = super::super::vmemd::map(&handle)?;
    let expected = memories[0].bytes()?;
    let mut found = vec![0; expected.len()];
    mapping.read_at(0, &mut found)?;
    ensure!(found == expected, "the pages are not those of the source");
    daemon.end()?.with_code(0).map(drop)
}

fn destination_that_stages_is_refused_by_a_source_without_rounds() -> Outcome {
    let memories = [Memory::named("rounds-none", PAGES)?];
    let source = Source::new(&[&format!("none={}", memories[0].path())])?;
    let end = Daemon::new(&source.address, &["--hold", "--stage"])?.end()?.with_code(LOST)?;
    ensure!(
        end.errors.contains("the source sends no pages while its program runs"),
        "{}",
        end.errors
    );
    Ok(())
}

fn second_destination_that_stages_is_refused() -> Outcome {
    let memories = [Memory::memfd(PAGES)?];
    let writers = [Writer::new(&memories, 1, 16, Writes::anywhere)?];
    let sender = Sender::new(&memories, writers[0].pid(), &["--rounds", "auto"])?;
    let address = sender.source.address.clone();
    let receiver = Receiver::new(1, &address, &[])?;
    let mut moved = super::moves::Move::of(&memories, &writers, sender, receiver);
    moved.sender.round()?;
    let region = format!("{}=second", name(0));
    let end = Daemon::new(&address, &["--hold", "--stage", "--region", &region])?
        .end()?
        .with_code(LOST)?;
    ensure!(end.errors.contains("another connection stages pages"), "{}", end.errors);
    // The first one does not notice it.
    moved.sender.round()?;
    moved.switch().map(drop)
}
