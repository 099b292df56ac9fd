// SPDX-License-Identifier: GPL-2.0-or-later
//! Several connections of the stream: each page comes over one of them, and the loss of one costs nothing but time.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use vmem::PageRange;
use vmem_source::memory::Memory as Exported;
use vmem_source::serve::{Limits, Server};
use vmem_wait::StopEvent;

use super::source::spec;
use super::*;

fn with(streams: usize) -> Options {
    Options { streams, ..OPTIONS }
}

/// How many connections of the stream a source is asked for, and what they come to.
fn counting(connect: Connect) -> (Connect, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let connect: Connect = Arc::new(move |lane| {
        if lane == Lane::Stream {
            count.fetch_add(1, Ordering::Relaxed);
        }
        connect(lane)
    });
    (connect, asked)
}

#[test]
fn every_page_arrives_once_over_any_number_of_streams() {
    for streams in [1, 2, 8] {
        let file = source_file(4000, 31);
        let source = Source::new(&[("ram", &file)]);
        let memory = Arc::new(Memory::new(4000));
        let (connect, asked) = counting(to(source.address));
        let (mut engine, stats) = start(&[Arc::clone(&memory)], connect, with(streams));
        finish(&mut engine).expect("a good end");
        assert_eq!(check(&memory, &file), 4000);
        assert_eq!(get(&stats.data) + get(&stats.zero), 4000);
        assert_eq!((get(&stats.duplicates), memory.refused()), (0, 0), "{streams} streams");
        assert_eq!(asked.load(Ordering::Relaxed), streams as u64);
        engine.stop();
    }
}

#[test]
fn programs_touch_several_regions_while_four_streams_fill_them() {
    let files = [source_file(1500, 32), source_file(1, 33), source_file(900, 34)];
    let source = Source::new(&[("a", &files[0]), ("b", &files[1]), ("c", &files[2])]);
    let memories = [1500, 1, 900].map(|pages| Arc::new(Memory::new(pages)));
    let (mut engine, stats) = start(&memories, to(source.address), with(4));
    thread::scope(|scope| {
        for (memory, pages, step) in [(&memories[0], 1500, 7), (&memories[1], 1, 1), (&memories[2], 900, 7)] {
            scope.spawn(move || (0..pages).for_each(|touch| assert!(memory.touch(touch * step % pages).is_some())));
        }
    });
    finish(&mut engine).expect("a good end");
    for (memory, file) in memories.iter().zip(&files) {
        check(memory, file);
    }
    assert_eq!(memories.iter().map(|memory| memory.present()).sum::<u64>(), 2401);
    let refused = memories.iter().map(|memory| memory.refused()).sum::<u64>();
    assert_eq!(get(&stats.duplicates), refused);
    assert!(
        refused <= get(&stats.requests),
        "a fault costs one page twice at most: {refused}"
    );
    engine.stop();
}

/// Each connection in turn breaks within an answer: what it had not brought comes over another one or the next, and nothing twice.
#[test]
fn pages_of_a_lost_stream_come_over_another_one_and_none_comes_twice() {
    for lost in 0..3 {
        let file = source_file(3000, 35);
        let source = Source::new(&[("ram", &file)]);
        let streams = AtomicU64::new(0);
        let link = Link::new(source.address, move |_, lane| {
            match lane == STREAM && streams.fetch_add(1, Ordering::Relaxed) == lost {
                true => Weather::Cut(350_000),
                false => Weather::Fair,
            }
        });
        let memory = Arc::new(Memory::new(3000));
        let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), with(3));
        finish(&mut engine).expect("a good end");
        assert_eq!(check(&memory, &file), 3000);
        assert_eq!(get(&stats.data) + get(&stats.zero), 3000);
        assert_eq!(get(&stats.duplicates), 0, "stream {lost}");
        engine.stop();
    }
}

#[test]
fn streams_that_break_again_and_again_bring_every_page() {
    let file = source_file(3000, 36);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |number, lane| match lane {
        STREAM => Weather::Cut(300_000 + number * 40_009),
        _ => Weather::Fair,
    });
    let memory = Arc::new(Memory::new(3000));
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), with(4));
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 3000);
    assert!(get(&stats.reconnects) >= 2, "{}", get(&stats.reconnects));
    engine.stop();
}

/// Connections of the stream after the first `good` ones fail with an error that may pass.
fn failing_after(address: SocketAddr, good: u64) -> Connect {
    let inner = to(address);
    let asked = AtomicU64::new(0);
    Arc::new(
        move |lane| match lane == Lane::Stream && asked.fetch_add(1, Ordering::Relaxed) >= good {
            true => Err(vmem_source::Error::Closed { mid_frame: false }),
            false => inner(lane),
        },
    )
}

#[test]
fn stream_that_is_lost_for_good_leaves_its_pages_to_the_others() {
    let file = source_file(6000, 37);
    let source = Source::new(&[("ram", &file)]);
    let streams = AtomicU64::new(0);
    let link = Link::new(source.address, move |_, lane| match lane {
        STREAM if streams.fetch_add(1, Ordering::Relaxed) == 0 => Weather::Cut(200_000),
        STREAM => Weather::Gate(1 << 16),
        _ => Weather::Fair,
    });
    let memory = Arc::new(Memory::new(6000));
    let options = Options {
        retry: Duration::from_millis(300),
        ..with(2)
    };
    let (mut engine, _) = start(&[Arc::clone(&memory)], failing_after(link.address, 2), options);
    // The other one goes on after the time limit of the lost one.
    thread::sleep(Duration::from_millis(900));
    link.gate.open(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 6000);
    engine.stop();
}

#[test]
fn loss_of_all_streams_ends_the_run() {
    let file = source_file(6000, 38);
    let source = Source::new(&[("ram", &file)]);
    let link = Link::new(source.address, |_, lane| match lane {
        STREAM => Weather::Cut(200_000),
        _ => Weather::Fair,
    });
    let memory = Arc::new(Memory::new(6000));
    let options = Options {
        retry: Duration::from_millis(300),
        ..with(3)
    };
    let (mut engine, _) = start(&[Arc::clone(&memory)], failing_after(link.address, 3), options);
    let failure = failure(&mut engine);
    assert!(matches!(&failure, Error::Source(error) if error.is_lost()), "{failure:?}");
    engine.stop();
    assert!(check(&memory, &file) < 6000);
}

#[test]
fn source_that_takes_few_connections_gets_fewer_streams() {
    let file = source_file(2000, 39);
    let memory = Exported::open(&spec("ram", &file)).expect("memory");
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), vec![memory], limits, None, |_| {}).expect("a server");
    let (address, stop) = (
        server.local_addr().expect("its address"),
        StopEvent::new().expect("an eventfd"),
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::fd::AsFd;
            server.run(stop.as_fd()).expect("a run");
        });
        let memory = Arc::new(Memory::new(2000));
        let (mut engine, stats) = start(&[Arc::clone(&memory)], to(address), with(8));
        finish(&mut engine).expect("a good end");
        assert_eq!(check(&memory, &file), 2000);
        assert_eq!(get(&stats.duplicates), 0);
        engine.stop();
        stop.set();
    });
}

#[test]
fn region_without_memory_is_filled_over_several_streams_once_there_is_some() {
    let file = source_file(3000, 40);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(3000));
    memory.set_room(700);
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(source.address), with(4));
    wait_until(|| memory.present() == 700);
    thread::sleep(Duration::from_millis(300));
    assert!(!engine.is_idle(), "pages are missing");
    memory.set_room(u64::MAX);
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 3000);
    assert_eq!(get(&stats.data) + get(&stats.zero), 3000);
    engine.stop();
}

#[test]
fn source_is_notified_of_every_page_whichever_stream_is_lost() {
    use std::os::unix::fs::MetadataExt;
    for lost in [None, Some(0), Some(1)] {
        let records = tempfile::tempdir().expect("a directory");
        let file = source_file(3000, 41);
        let wanted = std::fs::read(file.path()).expect("the source");
        let exported = Exported::open_releasable(&spec("ram", &file), records.path()).expect("memory");
        let source = Source::of(([127, 0, 0, 1], 0).into(), vec![exported]);
        let streams = AtomicU64::new(0);
        let link = Link::new(source.address, move |_, lane| {
            match lane == STREAM && Some(streams.fetch_add(1, Ordering::Relaxed)) == lost {
                true => Weather::Cut(350_000),
                false => Weather::Fair,
            }
        });
        let memory = Arc::new(Memory::new(3000));
        let release = Arc::new(Release::new(Permission::Pending));
        let (mut engine, _) = start_releasing(&[Arc::clone(&memory)], to(link.address), with(3), Arc::clone(&release));
        wait_until(|| memory.present() == 3000);
        assert!(!engine.is_release_complete());
        release.set(Permission::Given);
        finish(&mut engine).expect("a good end");
        assert!(engine.is_release_complete(), "{lost:?}");
        wait_until(|| file.as_file().metadata().expect("metadata").blocks() == 0);
        assert!(memory.contents().0 == wanted);
        engine.stop();
    }
}

/// A source that wants some pages to be fetched first, and notes what is fetched.
struct Preferring {
    source: Box<dyn PageSource>,
    fetched: Arc<Mutex<Vec<PageRange>>>,
}

impl PageSource for Preferring {
    fn exports(&self) -> &[Export] {
        self.source.exports()
    }

    fn preferred(&mut self) -> Vec<(usize, PageRange)> {
        let pages = |first, count| PageRange::from_pgoff(first, count).expect("pages");
        // The second is beyond the end, and the third is no export.
        vec![(0, pages(2000, 5)), (0, pages(2999, 2)), (1, pages(0, 1)), (0, pages(700, 2))]
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), vmem_source::Error> {
        self.fetched.lock().expect("no panic").extend(ranges);
        self.source.fetch(export, ranges)
    }

    fn readiness(&self) -> vmem_source::Readiness<'_> {
        self.source.readiness()
    }

    fn next_answer(&mut self) -> Result<vmem_source::Answer<'_>, vmem_source::Error> {
        self.source.next_answer()
    }
}

#[test]
fn stream_begins_with_the_pages_that_the_source_prefers() {
    let file = source_file(3000, 36);
    let source = Source::new(&[("ram", &file)]);
    let memory = Arc::new(Memory::new(3000));
    let (fetched, inner) = (Arc::new(Mutex::new(Vec::new())), to(source.address));
    let of = Arc::clone(&fetched);
    let connect: Connect = Arc::new(move |lane| {
        let (source, fetched) = (inner(lane)?, Arc::clone(&of));
        Ok(Box::new(Preferring { source, fetched }) as Box<dyn PageSource>)
    });
    let (mut engine, _) = start(&[Arc::clone(&memory)], connect, with(1));
    finish(&mut engine).expect("a good end");
    assert_eq!(check(&memory, &file), 3000);
    let first: Vec<_> = fetched.lock().expect("no panic")[..2]
        .iter()
        .map(|pages| (pages.first().get(), pages.count()))
        .collect();
    assert_eq!(first, [(2000, 5), (700, 2)]);
    engine.stop();
}
