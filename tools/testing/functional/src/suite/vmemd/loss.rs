// SPDX-License-Identifier: GPL-2.0-or-later
//! The daemon or the source goes away while programs wait for pages.

use std::thread;
use std::time::Duration;

use vmem::{MapHandle, PAGE_SIZE};

use super::{Daemon, PAGES, Program, SIZE, Scratch, Source, check_page, map, open, wait_info};
use crate::failure::{Outcome, ensure, equal};

crate::tests![
    a_killed_daemon_is_replaced_by_the_next_one,
    sigterm_leaves_a_mapped_region_to_the_next_daemon,
    programs_wait_for_a_source_that_comes_back,
    a_source_that_stays_away_is_exit_code_2_and_programs_wait_on,
    a_source_that_comes_back_with_other_memory_is_refused,
    a_complete_region_waits_without_its_source_until_somebody_maps_it,
];

/// A program that has some of its pages, and whose daemon fetches nothing but what it touches.
fn half_way(name: &str) -> Outcome<(Scratch, Source, Daemon, Program, MapHandle)> {
    let file = Scratch::new(name, PAGES)?;
    let source = Source::new(&[&file.export(name)])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--retry", "60"])?;
    let program = Program::new(name, &file.0)?;
    let handle = open(name)?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    Ok((file, source, daemon, program, handle))
}

/// The next daemon takes over, and fetches only what is not there.
fn goes_on(source: &Source, program: Program, handle: MapHandle) -> Outcome {
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    let before = handle.info()?.present;
    drop(handle);
    let end = Daemon::new(&source.address, &["--attach"])?.end()?.with_code(0)?;
    equal!(
        end.number("data_bytes")? + end.number("zero_bytes")?,
        SIZE - before * PAGE_SIZE as u64
    );
    program.succeeds()
}

fn a_killed_daemon_is_replaced_by_the_next_one() -> Outcome {
    let (_file, source, mut daemon, program, handle) = half_way("killed")?;
    daemon.process.kill()?;
    goes_on(&source, program, handle)
}

fn sigterm_leaves_a_mapped_region_to_the_next_daemon() -> Outcome {
    let (_file, source, daemon, program, handle) = half_way("stopped")?;
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    goes_on(&source, program, handle)
}

fn programs_wait_for_a_source_that_comes_back() -> Outcome {
    let (file, mut source, daemon, program, handle) = half_way("back")?;
    source.process.kill()?;
    wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    let before = handle.info()?.present;
    ensure!(before < PAGES, "the program was done already");
    drop(handle);
    let _again = Source::at(&source.address, &[&file.export("back")])?;
    let end = daemon.end()?.with_code(0)?;
    ensure!(
        end.output.contains("{\"event\":\"lost\",\"connection\":\"urgent\""),
        "{}",
        end.output
    );
    equal!(end.number("reconnects")?, 1);
    program.succeeds()
}

fn a_source_that_stays_away_is_exit_code_2_and_programs_wait_on() -> Outcome {
    let file = Scratch::new("away", PAGES)?;
    let mut source = Source::new(&[&file.export("away")])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--retry", "0.5"])?;
    let program = Program::new("away", &file.0)?;
    let handle = open("away")?;
    wait_info(&handle, "the program has some pages", |info| info.present > 20)?;
    source.process.kill()?;
    daemon.end()?.with_code(2)?;
    let info = wait_info(&handle, "the program waits", |info| info.waiters == 1)?;
    ensure!(!info.attached && info.sigbus == 0, "{info:?}");
    drop(handle);
    let source = Source::new(&[&file.export("away")])?;
    Daemon::new(&source.address, &["--resume"])?.end()?.with_code(0)?;
    program.succeeds()
}

fn a_source_that_comes_back_with_other_memory_is_refused() -> Outcome {
    let (_file, mut source, daemon, mut program, handle) = half_way("other")?;
    source.process.kill()?;
    let other = Scratch::new("another", PAGES)?;
    let _other = Source::at(&source.address, &[&other.export("other")])?;
    let before = wait_info(&handle, "the program waits", |info| info.waiters == 1)?.present;
    let end = daemon.end()?.with_code(7)?;
    ensure!(end.errors.contains("other memory as other"), "{}", end.errors);
    equal!(handle.info()?.present, before);
    program.process.kill()
}

fn a_complete_region_waits_without_its_source_until_somebody_maps_it() -> Outcome {
    let file = Scratch::new("waits", PAGES)?;
    let mut source = Source::new(&[&file.export("waits")])?;
    let mut daemon = Daemon::new(&source.address, &["--retry", "0.1"])?;
    daemon.wait_line("\"phase\":\"waiting\"")?;
    // The source is not needed any more.
    source.process.kill()?;
    thread::sleep(Duration::from_millis(500));
    let handle = open("waits")?;
    let info = handle.info()?;
    ensure!(info.present == PAGES && info.attached && !info.plain, "{info:?}");
    let memory = map(&handle)?;
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    ensure!(!end.output.contains("lost"), "{}", end.output);
    for pgoff in 0..PAGES {
        check_page(&memory, pgoff)?;
    }
    Ok(())
}
