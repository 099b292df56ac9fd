// SPDX-License-Identifier: GPL-2.0-or-later
//! What a watchdog sees of the lanes: which of them are stuck, and which ones only wait.

use vmem_wait::Liveness;

use super::*;

/// How long work may take. A busy machine may keep a thread for some of it.
const PATIENCE: Duration = Duration::from_millis(500);

fn watched(options: Options) -> (Liveness, Options) {
    let liveness = Liveness::new(PATIENCE);
    let watched = Options {
        liveness: Some(liveness.clone()),
        ..options
    };
    (liveness, watched)
}

/// Whether no thread is overdue for several times as long as work may take.
fn stays_alive(liveness: &Liveness) -> bool {
    let until = Instant::now() + PATIENCE * 4;
    while Instant::now() < until {
        if liveness.overdue().is_some() {
            return false;
        }
        thread::sleep(PATIENCE / 20);
    }
    true
}

#[test]
fn lanes_that_have_nothing_to_do_are_alive() {
    let file = source_file(8, 1);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(8));
    let (liveness, options) = watched(OPTIONS);
    let (engine, _) = start(&[Arc::clone(&memory)], to(source.address), options);
    wait_until(|| memory.present() == 8);
    assert!(stays_alive(&liveness), "{:?} is overdue", liveness.overdue());
    engine.stop();
}

#[test]
fn lane_that_waits_for_a_silent_source_is_alive_within_its_time_limit_alone() {
    let file = source_file(4000, 2);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::gated_stream(source.address);
    link.gate.open(3);
    let memory = Arc::new(Memory::new(4000));
    let (liveness, options) = watched(Options {
        patience: PATIENCE * 8,
        ..OPTIONS
    });
    let (engine, _) = start(&[Arc::clone(&memory)], to(link.address), options);
    wait_until(|| link.gate.passed.load(Ordering::Relaxed) == 3);
    assert!(stays_alive(&liveness), "{:?} is overdue", liveness.overdue());
    assert!(memory.present() < 100, "the stream does stand still");
    wait_until(|| liveness.overdue().as_deref() == Some("stream"));
    link.gate.open(u64::MAX);
    wait_until(|| memory.present() == 4000 && liveness.overdue().is_none());
    engine.stop();
}

#[test]
fn lane_whose_call_on_a_region_does_not_return_is_overdue() {
    let file = source_file(8, 3);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(8));
    let (liveness, options) = watched(Options {
        background: false,
        ..OPTIONS
    });
    let (engine, _) = start(&[Arc::clone(&memory)], to(source.address), options);
    assert_eq!(liveness.overdue(), None);
    let stall = memory.stall_after(3);
    wait_until(|| liveness.overdue().as_deref() == Some("urgent"));
    drop(stall);
    wait_until(|| memory.present() == 1 && liveness.overdue().is_none());
    engine.stop();
}
