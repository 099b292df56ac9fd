// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections and sources are lost.

use vmem_source::{Answer, Readiness};
use vmem_wait::StopEvent;

use super::*;

#[test]
fn broken_connections_are_reopened_and_every_page_arrives() {
    let file = source_file(1500, 9);
    let source = Source::new(&[("ram", &file)]);
    // Each connection breaks later than the one before: in the greeting, in the list, in a header, in pages.
    let link = Link::new(source.address, |number, _| {
        Weather::Cut(match number {
            0 | 1 => 700 + number * 90_000,
            _ => 10 + number * number * number * 4001,
        })
    });
    let memory = Arc::new(Memory::new(1500));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    thread::scope(|scope| {
        scope.spawn(|| (0..1500).rev().for_each(|pgoff| assert!(memory.touch(pgoff).is_some())));
    });
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 1500);
    assert!(get(&stats.reconnects) >= 2, "{}", get(&stats.reconnects));
    engine.stop();
}

#[test]
fn damaged_bytes_on_the_network_never_reach_a_page() {
    let file = source_file(1000, 10);
    let source = Source::new(&[("ram", &file)]);
    // In the list of exports, in a header, in a list of runs, in a page, in the last page of a frame: elsewhere on each connection.
    // That list ends at byte 120.
    let stream = [30, 50, 121, 134, 141, 3000, 70_000, 262_300, 300_000, 530_000];
    let urgent = [121, 141, 4000, 9000, 20_000, 26, 80];
    let used = [const { std::sync::atomic::AtomicU64::new(0) }; 3];
    let link = Link::new(source.address, move |_, lane| {
        let turn = used[usize::from(lane)].fetch_add(1, Ordering::Relaxed) as usize;
        let places = if lane == STREAM { &stream[..] } else { &urgent[..] };
        places.get(turn).map_or(Weather::Fair, |place| Weather::Damage(*place))
    });
    let memory = Arc::new(Memory::new(1000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    thread::scope(|scope| {
        scope.spawn(|| (0..1000).rev().for_each(|pgoff| assert!(memory.touch(pgoff).is_some())));
    });
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 1000);
    assert!(get(&stats.reconnects) >= 5, "{}", get(&stats.reconnects));
    engine.stop();
}

#[test]
fn lost_source_ends_the_run_after_the_retry_limit() {
    let file = source_file(3000, 11);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |_, _| Weather::Cut(400_000));
    let memory = Arc::new(Memory::new(3000));
    let options = Options {
        retry: Duration::from_millis(500),
        ..OPTIONS
    };
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(link.address), options);
    link.close();
    memory.want(2999);
    let failure = failure(&mut engine);
    assert!(matches!(&failure, Error::Source(error) if error.is_lost()), "{failure:?}");
    engine.stop();
    assert!(check(&memory, &file) < 3000);
}

/// A source that says what it has, and never anything else.
struct Mute {
    exports: Vec<Export>,
    never: StopEvent,
}

impl PageSource for Mute {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn fetch(&mut self, _: usize, _: &[vmem::PageRange]) -> Result<(), vmem_source::Error> {
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        use std::os::fd::AsFd;
        Readiness::When(self.never.as_fd())
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, vmem_source::Error> {
        Err(vmem_source::Error::Closed { mid_frame: false })
    }
}

#[test]
fn source_that_connects_but_never_answers_ends_the_run() {
    let export = Export {
        name: vmem::Name::new("ram").expect("a name"),
        pages: vmem::PageRange::of_pages(10).expect("pages"),
        padding: 0,
        identity: 0,
    };
    let connect: Connect = Arc::new(move |_| {
        let (exports, never) = (vec![export.clone()], StopEvent::new().expect("an eventfd"));
        Ok(Box::new(Mute { exports, never }) as Box<dyn PageSource>)
    });
    let memory = Arc::new(Memory::new(10));
    memory.want(3);
    let options = Options {
        retry: Duration::from_secs(3),
        ..OPTIONS
    };
    let (mut engine, _) = start(&[memory], connect, options);
    assert!(matches!(failure(&mut engine), Error::Source(_)));
    engine.stop();
}

#[test]
fn source_with_other_memory_after_reconnect_is_refused() {
    let (file, other) = (source_file(3000, 12), source_file(3000, 13));
    let source = Source::new(&[("ram", &file)]);
    let address = source.address;
    let link = Link::new(
        address,
        |number, _| if number < 2 { Weather::Cut(300_000) } else { Weather::Fair },
    );
    // From now on, new connections find the other file.
    let impostor = Source::new(&[("ram", &other)]);
    let (good, bad) = (to(link.address), to(impostor.address));
    let calls = std::sync::atomic::AtomicU64::new(0);
    let connect: Connect = Arc::new(move |lane| match calls.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => good(lane),
        _ => bad(lane),
    });
    let memory = Arc::new(Memory::new(3000));
    let (mut engine, _) = start(&[Arc::clone(&memory)], connect, OPTIONS);
    let failure = failure(&mut engine);
    assert!(
        matches!(&failure, Error::MemoryChanged(name) if name.as_str() == "ram"),
        "{failure:?}"
    );
    engine.stop();
    assert!(check(&memory, &file) < 3000, "and no page of the other file is there");
}

#[test]
fn new_daemon_continues_after_a_stopped_one() {
    let file = source_file(3000, 14);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::gated_stream(source.address);
    link.gate.open(30);
    let memory = Arc::new(Memory::new(3000));
    let (engine, _) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    wait_until(|| memory.present() >= 300);
    engine.stop();
    let before = memory.present();
    assert!((300..3000).contains(&before), "{before}");
    // A program waits while there is no daemon.
    let waiting = {
        let memory = Arc::clone(&memory);
        thread::spawn(move || memory.touch(2999))
    };
    wait_until(|| !memory.take(1).expect("requests").is_empty());
    memory.attach();
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    finish(&mut engine).expect("a good end");
    assert!(waiting.join().expect("no panic").is_some());
    assert_eq!(check(&memory, &file), 3000);
    let fetched = get(&stats.data) + get(&stats.zero) + get(&stats.duplicates);
    assert!(
        fetched <= 3000 - before + 1,
        "what was present was not fetched again: {fetched}"
    );
    engine.stop();
}

#[test]
fn stop_does_not_wait_for_a_silent_source() {
    let file = source_file(100, 16);
    let source = Source::new(&[("ram", &file)]);
    // Nothing passes the gate but the list of exports.
    let link = Link::new(source.address, |_, _| Weather::Gate(1 << 16));
    link.gate.open(4);
    let memory = Arc::new(Memory::new(100));
    let (engine, _) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    memory.want(99);
    thread::sleep(Duration::from_millis(100));
    let since = Instant::now();
    engine.stop();
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
}
