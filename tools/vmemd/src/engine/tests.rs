// SPDX-License-Identifier: GPL-2.0
//! The engine on memory of its own, a real server, and a network that misbehaves.

mod link;
mod memory;

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use tempfile::NamedTempFile;
use vmem::PAGE_SIZE;
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::memory::Memory as Exported;
use vmem_source::serve::{Limits, Server};
use vmem_source::{Answer, Readiness};

use super::stats::get;
use super::*;
use link::{Link, Weather};
use memory::{Memory, Page};

const STREAM: u8 = 2;

/// Memory of `pages` pages whose contents are made from `seed`: one in four is zero, one in eight repeats its neighbour.
fn source_file(pages: u64, seed: u64) -> NamedTempFile {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut file = NamedTempFile::new_in("/dev/shm").expect("a file");
    let mut page = [0; PAGE_SIZE];
    for _ in 0..pages {
        match random() % 8 {
            0 | 1 => page = [0; PAGE_SIZE],
            2 => {}
            _ => page
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random().to_le_bytes())),
        }
        file.write_all(&page).expect("room");
    }
    file
}

/// What is offered of a file.
fn spec(name: &str, file: &NamedTempFile) -> String {
    format!("{name}={}", file.path().display())
}

/// A server of some files, until it is dropped.
struct Source {
    address: SocketAddr,
    stop: Arc<Stop>,
    served: Arc<std::sync::atomic::AtomicU64>,
}

impl Source {
    fn new(files: &[(&str, &NamedTempFile)]) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), files)
    }

    fn at(address: SocketAddr, files: &[(&str, &NamedTempFile)]) -> Self {
        let open = |(name, file): &(&str, &NamedTempFile)| Exported::open(&spec(name, file)).expect("memory");
        Self::of(address, files.iter().map(open).collect())
    }

    fn of(address: SocketAddr, memories: Vec<Exported>) -> Self {
        let served = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let sum = Arc::clone(&served);
        let server = Server::bind(address, memories, Limits::default(), None, move |event| {
            if let vmem_source::serve::Event::Ended { served, .. } = event {
                sum.fetch_add(served.data + served.zero + served.unreadable, Ordering::Relaxed);
            }
        })
        .expect("a server");
        let address = server.local_addr().expect("its address");
        let stop = Arc::new(Stop::new().expect("an eventfd"));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            use std::os::fd::AsFd;
            server.run(stopped.as_fd()).expect("a run");
        });
        Self { address, stop, served }
    }

    /// Pages that it sent on connections that have ended.
    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.set();
    }
}

const OPTIONS: Options = Options {
    background: true,
    window: 1024,
    prefetch: 0,
    retry: Duration::from_secs(20),
};

fn to(address: SocketAddr) -> Connect {
    Arc::new(move |lane| {
        let endpoint = Endpoint::new(&address.to_string(), Security::Loopback, Duration::from_secs(5));
        endpoint.connect(lane).map(|peer| Box::new(peer) as Box<dyn PageSource>)
    })
}

/// An engine that fills `memories` from `connect`.
fn start(memories: &[Arc<Memory>], connect: Connect, options: Options) -> (Engine, Arc<Stats>) {
    start_releasing(memories, connect, options, Permission::Never)
}

fn start_releasing(memories: &[Arc<Memory>], connect: Connect, options: Options, permission: Permission) -> (Engine, Arc<Stats>) {
    let first = connect(Lane::Urgent).expect("a source");
    let target = |(export, memory): (&Export, &Arc<Memory>)| Target {
        export: export.clone(),
        name: export.name.to_string(),
        sink: Arc::clone(memory) as Arc<dyn Sink>,
    };
    let targets = first.exports().iter().zip(memories).map(target).collect();
    let stats = Arc::new(Stats::new().expect("a histogram"));
    let release = Arc::new(Release::new(permission));
    let (engine, _) = Engine::start(targets, first, connect, options, Arc::clone(&stats), release).expect("an engine");
    (engine, stats)
}

fn wait_until(condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < until, "it does not come to this");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How much memory a file takes.
fn blocks(file: &NamedTempFile) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.as_file().metadata().expect("metadata").blocks()
}

/// Waits until the engine has nothing more to do, or fails.
fn finish(engine: &mut Engine) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(60);
    while !engine.is_idle() {
        assert!(Instant::now() < until, "the engine does not come to an end");
        if let Some(Event::Ended(result)) = engine.next_event(Duration::from_millis(20)) {
            result?;
        }
    }
    Ok(())
}

/// Waits for a failure.
fn failure(engine: &mut Engine) -> Failure {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < until, "the engine does not fail");
        if let Some(Event::Ended(Err(failure))) = engine.next_event(Duration::from_millis(20)) {
            return failure;
        }
    }
}

/// Every page is the source's, or is not present. Returns how many are present.
fn check(memory: &Memory, file: &NamedTempFile) -> u64 {
    let (bytes, pages) = memory.contents();
    let wanted = std::fs::read(file.path()).expect("the source");
    let mut present = 0;
    for (pgoff, _) in pages.iter().enumerate().filter(|(_, page)| **page == Page::Present) {
        present += 1;
        let at = pgoff * PAGE_SIZE;
        assert!(
            bytes[at..at + PAGE_SIZE] == wanted[at..at + PAGE_SIZE],
            "page {pgoff} is wrong"
        );
    }
    present
}

#[test]
fn all_pages_arrive_once_and_as_they_are() {
    let file = source_file(2000, 1);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(2000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 2000);
    assert_eq!(get(&stats.data) + get(&stats.zero), 2000);
    assert!(get(&stats.zero) >= 250, "one page in four is zero: {}", get(&stats.zero));
    assert_eq!((get(&stats.duplicates), memory.refused()), (0, 0));
    assert_eq!(stats.service_times(), None);
    engine.stop();
}

#[test]
fn several_regions_and_programs_at_once() {
    let files = [source_file(700, 2), source_file(1, 3), source_file(900, 4)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1]), ("c", &files[2])]);
    let memories = [700, 1, 900].map(|pages| Arc::new(Memory::new(pages)));
    let (mut engine, stats) = start(&memories, to(source.address), OPTIONS);
    thread::scope(|scope| {
        for (memory, pages, step) in [
            (&memories[0], 700, 3),
            (&memories[0], 700, 5),
            (&memories[1], 1, 1),
            (&memories[2], 900, 7),
        ] {
            scope.spawn(move || {
                for touch in 0..pages {
                    assert!(memory.touch(touch * step % pages).is_some());
                }
            });
        }
    });
    finish(&mut engine).expect("a good end");
    for (memory, file) in memories.iter().zip(&files) {
        assert_eq!(check(memory, file), memory.present());
    }
    assert_eq!(memories.iter().map(|memory| memory.present()).sum::<u64>(), 1601);
    assert_eq!(
        get(&stats.duplicates),
        memories.iter().map(|memory| memory.refused()).sum::<u64>()
    );
    engine.stop();
}

#[test]
fn faults_are_answered_while_the_stream_stands_still() {
    let file = source_file(4000, 5);
    let source = Source::new(&[("ram", &file)]);
    // Pieces of 64 KiB of the stream pass a gate, of which a few are let through, and then no more.
    let link = Link::new(source.address, |_, lane| match lane {
        STREAM => Weather::Gate(1 << 16),
        _ => Weather::Fair,
    });
    link.gate.open(3);
    let memory = Arc::new(Memory::new(4000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    wait_until(|| link.gate.passed.load(Ordering::Relaxed) == 3);
    for pgoff in [3999, 2000, 1040, 3998, 1001] {
        assert!(memory.touch(pgoff).is_some(), "page {pgoff}");
    }
    assert_eq!(
        link.gate.passed.load(Ordering::Relaxed),
        3,
        "nothing more of the stream has passed"
    );
    assert!(memory.present() < 100, "the stream does stand still");
    assert_eq!(check(&memory, &file), memory.present());
    link.gate.open(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 4000);
    assert_eq!(get(&stats.requests), 5);
    assert!(stats.service_times().is_some());
    engine.stop();
}

#[test]
fn the_stream_follows_the_faults() {
    let file = source_file(8192, 6);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |_, lane| match lane {
        STREAM => Weather::Gate(1 << 16),
        _ => Weather::Fair,
    });
    let memory = Arc::new(Memory::new(8192));
    // One question at a time.
    let options = Options { window: 1, ..OPTIONS };
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(link.address), options);
    assert!(memory.touch(6000).is_some());
    link.gate.open(60);
    wait_until(|| memory.contents().1[6200] == Page::Present);
    let (_, pages) = memory.contents();
    assert_eq!(pages[5999], Page::Absent);
    assert_eq!(pages[4000], Page::Absent, "long before its turn");
    link.gate.open(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 8192);
    engine.stop();
}

#[test]
fn without_background_only_faults_are_fetched() {
    let file = source_file(1000, 7);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(1000));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (engine, stats) = start(&[Arc::clone(&memory)], to(source.address), options);
    for pgoff in [999, 3, 500, 4] {
        assert!(memory.touch(pgoff).is_some());
    }
    assert_eq!(check(&memory, &file), 4);
    assert_eq!(get(&stats.requests), 4);
    engine.stop();
    wait_until(|| source.served() >= 4);
    assert_eq!(source.served(), 4);
}

#[test]
fn a_storm_of_faults_is_answered_in_full() {
    let file = source_file(5000, 8);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(5000));
    (0..5000).for_each(|pgoff| memory.want(pgoff));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), options);
    for pgoff in 0..5000 {
        assert!(memory.touch(pgoff).is_some());
    }
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 5000);
    assert_eq!((get(&stats.requests), get(&stats.duplicates)), (5000, 0));
    engine.stop();
}

#[test]
fn connections_that_break_are_made_again() {
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
fn damaged_bytes_never_reach_a_page() {
    let file = source_file(1000, 10);
    let source = Source::new(&[("ram", &file)]);
    // In the list of exports, in a header, in a list of runs, in a page, in the last page of a frame: elsewhere on each connection.
    let stream = [30, 50, 105, 118, 125, 3000, 70_000, 262_300, 300_000, 530_000];
    let urgent = [105, 125, 4000, 9000, 20_000, 26, 80];
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
fn a_source_that_is_gone_ends_the_run_and_leaves_pages_absent() {
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
    assert!(matches!(&failure, Failure::Source(error) if error.is_lost()), "{failure:?}");
    assert_eq!(failure.code(), 2);
    engine.stop();
    assert!(check(&memory, &file) < 3000);
}

/// A source that says what it has, and never anything else.
struct Mute {
    exports: Vec<Export>,
    never: Stop,
}

impl PageSource for Mute {
    fn exports(&self) -> &[Export] {
        &self.exports
    }

    fn ask(&mut self, _: usize, _: &[vmem::PageRange]) -> Result<(), SourceError> {
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        use std::os::fd::AsFd;
        Readiness::When(self.never.as_fd())
    }

    fn next(&mut self) -> Result<Answer<'_>, SourceError> {
        Err(SourceError::Closed { within: false })
    }
}

#[test]
fn a_source_that_greets_and_never_answers_is_given_up() {
    let export = Export {
        name: vmem::Name::new("ram").expect("a name"),
        pages: 10,
        identity: 0,
    };
    let connect: Connect = Arc::new(move |_| {
        let (exports, never) = (vec![export.clone()], Stop::new().expect("an eventfd"));
        Ok(Box::new(Mute { exports, never }) as Box<dyn PageSource>)
    });
    let memory = Arc::new(Memory::new(10));
    memory.want(3);
    let options = Options {
        retry: Duration::from_secs(3),
        ..OPTIONS
    };
    let (mut engine, _) = start(&[memory], connect, options);
    assert!(matches!(failure(&mut engine), Failure::Source(_)));
    engine.stop();
}

#[test]
fn a_source_that_comes_back_with_other_memory_is_refused() {
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
        matches!(&failure, Failure::OtherMemory(name) if name.as_str() == "ram"),
        "{failure:?}"
    );
    assert_eq!(failure.code(), 7, "never to be tried again");
    engine.stop();
    assert!(check(&memory, &file) < 3000, "and no page of the other file is there");
}

#[test]
fn a_new_daemon_goes_on_where_the_old_one_was_stopped() {
    let file = source_file(3000, 14);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |_, lane| match lane {
        STREAM => Weather::Gate(1 << 16),
        _ => Weather::Fair,
    });
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
fn pages_that_the_source_has_lost_are_unreadable_and_the_others_arrive() {
    let file = source_file(1000, 15);
    let source = Source::new(&[("ram", &file)]);
    let wanted = std::fs::read(file.path()).expect("the source");
    let shrunk = File::options().write(true).open(file.path()).expect("the source");
    let memory = Arc::new(Memory::new(1000));
    let connect = to(source.address);
    connect(Lane::Urgent).expect("a source");
    shrunk.set_len(600 * PAGE_SIZE as u64).expect("a size");
    let (mut engine, _) = start(&[Arc::clone(&memory)], connect, OPTIONS);
    assert_eq!(memory.touch(999), None, "a program is not kept waiting");
    finish(&mut engine).expect("a good end");
    let (bytes, pages) = memory.contents();
    assert!(pages[..600].iter().all(|page| *page == Page::Present));
    assert!(pages[600..].iter().all(|page| *page == Page::Unreadable));
    assert!(bytes[..600 * PAGE_SIZE] == wanted[..600 * PAGE_SIZE]);
    // A later daemon, and a source that has them again, cure it.
    shrunk.write_all_at(&wanted, 0).expect("room");
    engine.stop();
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 1000);
    engine.stop();
}

#[test]
fn stopping_does_not_wait_for_a_source_that_does_not_answer() {
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

#[test]
fn the_source_gives_back_what_has_arrived_and_not_before_it_may() {
    let records = tempfile::tempdir().expect("a directory");
    let file = source_file(3000, 17);
    let wanted = std::fs::read(file.path()).expect("the source");
    let exported = Exported::open_releasable(&spec("ram", &file), records.path()).expect("memory");
    let source = Source::of(([127, 0, 0, 1], 0).into(), vec![exported]);
    let memory = Arc::new(Memory::new(3000));
    let (mut engine, _) = start_releasing(&[Arc::clone(&memory)], to(source.address), OPTIONS, Permission::Pending);
    wait_until(|| memory.present() == 3000);
    assert!(!engine.has_told());
    assert!(
        std::fs::read(file.path()).expect("the source") == wanted,
        "nothing is given back yet"
    );
    engine.shared.release.set(Permission::Given);
    finish(&mut engine).expect("a good end");
    assert!(engine.has_told());
    // What was said last is on its way.
    wait_until(|| blocks(&file) == 0);
    assert!(memory.contents().0 == wanted);
    engine.stop();
}

#[test]
fn the_source_keeps_what_would_be_lost_with_the_daemon() {
    let records = tempfile::tempdir().expect("a directory");
    let files = [source_file(300, 18), source_file(300, 19)];
    let exported =
        |name: &str, file: &NamedTempFile| Exported::open_releasable(&spec(name, file), records.path()).expect("memory");
    let memories = vec![exported("a", &files[0]), exported("b", &files[1])];
    let source = Source::of(([127, 0, 0, 1], 0).into(), memories);
    let regions = [300, 300].map(|pages| Arc::new(Memory::new(pages)));
    regions[1].set_mapped(false);
    let (mut engine, _) = start_releasing(&regions, to(source.address), OPTIONS, Permission::Given);
    wait_until(|| blocks(&files[0]) == 0);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(check(&regions[1], &files[1]), 300, "nothing of it is given back");
    assert!(!engine.has_told());
    regions[1].set_mapped(true);
    finish(&mut engine).expect("a good end");
    assert!(engine.has_told());
    wait_until(|| blocks(&files[1]) == 0);
    engine.stop();
}

#[test]
fn a_region_without_memory_keeps_no_other_waiting() {
    let files = [source_file(2000, 20), source_file(2000, 21)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1])]);
    for background in [true, false] {
        let regions = [2000, 2000].map(|pages| Arc::new(Memory::new(pages)));
        regions[0].set_room(100);
        // Programs want more than there is memory for, of the region that comes first.
        (0..500).for_each(|pgoff| regions[0].want(pgoff * 3));
        let options = Options { background, ..OPTIONS };
        let (mut engine, _) = start(&regions, to(source.address), options);
        wait_until(|| regions[0].present() == 100);
        for pgoff in [1999, 3, 1000, 77] {
            assert!(regions[1].touch(pgoff).is_some(), "page {pgoff}, background: {background}");
        }
        if background {
            wait_until(|| regions[1].present() == 2000);
        }
        let event = engine.next_event(Duration::from_secs(1));
        assert!(matches!(&event, Some(Event::Short { name }) if name == "a"), "{event:?}");
        assert_eq!((regions[0].present(), engine.is_idle()), (100, false));
        // Little by little, and in the end enough.
        for room in [101, 150, u64::MAX] {
            thread::sleep(Duration::from_millis(300));
            regions[0].set_room(room);
        }
        for pgoff in 0..500 {
            assert!(
                regions[0].touch(pgoff * 3).is_some(),
                "page {pgoff}, background: {background}"
            );
        }
        finish(&mut engine).expect("a good end");
        assert_eq!(check(&regions[0], &files[0]), if background { 2000 } else { 500 });
        check(&regions[1], &files[1]);
        engine.stop();
    }
}

#[test]
fn a_page_whose_touch_timed_out_is_asked_for_before_it_counts_as_unreadable() {
    let files = [source_file(300, 22), source_file(300, 23)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1])]);
    let regions = [300, 300].map(|pages| Arc::new(Memory::new(pages)));
    (10..300).for_each(|pgoff| regions[0].time_out(pgoff));
    let options = Options {
        background: false,
        ..OPTIONS
    };
    let (mut engine, _) = start(&regions, to(source.address), options);
    (0..10).for_each(|pgoff| assert!(regions[0].touch(pgoff).is_some()));
    wait_until(|| engine.is_idle());
    assert!(!engine.has_asked_for_unreadable(0).expect("a thread"));
    assert!(!engine.is_idle(), "they are on their way");
    finish(&mut engine).expect("a good end");
    assert!(engine.has_asked_for_unreadable(0).expect("no thread"));
    assert_eq!(check(&regions[0], &files[0]), 300);
    assert_eq!(regions[1].present(), 0, "nothing of the other");
    engine.stop();
}
