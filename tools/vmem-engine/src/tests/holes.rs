// SPDX-License-Identifier: GPL-2.0-or-later
//! Holes of a source are marked and not asked for; what a program touches does not wait for that.

use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::AtomicU64;

use vmem::PageRange;
use vmem_source::{Answer, Error as SourceError, Readiness, Reply};

use super::*;

/// What was asked of a source, and what came.
#[derive(Default)]
struct Counts {
    fetches: AtomicU64,
    pages: AtomicU64,
    maps: AtomicU64,
    replies: AtomicU64,
    /// Questions that were sent with no answer outstanding: each costs the delay of the network.
    round_trips: AtomicU64,
}

/// A source that counts, and answers a map or does not.
struct Counted {
    source: Box<dyn PageSource>,
    counts: Arc<Counts>,
    maps: bool,
    outstanding: u64,
}

impl Counted {
    fn asks(&mut self, pages: u64) {
        if self.outstanding == 0 {
            self.counts.round_trips.fetch_add(1, Ordering::Relaxed);
        }
        self.outstanding += pages;
    }
}

impl PageSource for Counted {
    fn exports(&self) -> &[Export] {
        self.source.exports()
    }

    fn fetch(&mut self, export: usize, ranges: &[PageRange]) -> Result<(), SourceError> {
        let pages = ranges.iter().map(|range| range.count()).sum();
        self.asks(pages);
        self.counts.fetches.fetch_add(1, Ordering::Relaxed);
        self.counts.pages.fetch_add(pages, Ordering::Relaxed);
        self.source.fetch(export, ranges)
    }

    fn can_map(&self) -> bool {
        self.maps && self.source.can_map()
    }

    fn map(&mut self, export: usize, pages: PageRange) -> Result<(), SourceError> {
        self.asks(pages.count());
        self.counts.maps.fetch_add(1, Ordering::Relaxed);
        self.source.map(export, pages)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.source.readiness()
    }

    fn next_answer(&mut self) -> Result<Answer<'_>, SourceError> {
        let answer = self.source.next_answer()?;
        self.outstanding -= answer.pages();
        Ok(answer)
    }

    fn next_reply(&mut self) -> Result<Reply<'_>, SourceError> {
        let reply = self.source.next_reply()?;
        self.counts.replies.fetch_add(1, Ordering::Relaxed);
        self.outstanding -= match &reply {
            Reply::Pages(answer) => answer.pages(),
            Reply::Holes(answer) => answer.holes.pages.count(),
        };
        Ok(reply)
    }
}

/// Counts what the stream asks of the source at `address`.
fn counting(address: SocketAddr, maps: bool) -> (Connect, Arc<Counts>) {
    let (connect, counts) = (to(address), Arc::new(Counts::default()));
    let of = Arc::clone(&counts);
    let counting: Connect = Arc::new(move |lane| {
        let source = connect(lane)?;
        if lane == Lane::Urgent {
            return Ok(source);
        }
        Ok(Box::new(Counted {
            source,
            counts: Arc::clone(&of),
            maps,
            outstanding: 0,
        }) as Box<dyn PageSource>)
    });
    (counting, counts)
}

/// A file of `pages` pages in which every hundredth has contents.
fn sparse_file(pages: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new_in("/dev/shm").expect("a file");
    for page in (0..pages).step_by(100) {
        file.seek(SeekFrom::Start(page * PAGE_SIZE as u64)).expect("a place");
        file.write_all(&[page as u8 | 1; PAGE_SIZE]).expect("room");
    }
    file.as_file().set_len(pages * PAGE_SIZE as u64).expect("a size");
    file
}

const PAGES: u64 = 16384;

/// Fills memory from a sparse file. Returns what was asked.
fn fill(maps: bool, streams: usize) -> Arc<Counts> {
    let (file, memory) = (sparse_file(PAGES), Arc::new(Memory::new(PAGES)));
    let source = Source::new(&[("ram", &file)]);
    let (connect, counts) = counting(source.address, maps);
    let options = Options { streams, ..OPTIONS };
    let (mut engine, stats) = start(&[Arc::clone(&memory)], connect, options);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    assert_eq!(
        (get(&stats.data), get(&stats.zero), get(&stats.duplicates)),
        (164, PAGES - 164, 0)
    );
    engine.stop();
    counts
}

#[test]
fn holes_cost_one_question_and_only_data_is_fetched() {
    let got = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let before = fill(false, 1);
    assert_eq!(
        (got(&before.maps), got(&before.pages), got(&before.fetches)),
        (0, PAGES, PAGES / 256)
    );
    let after = fill(true, 1);
    assert_eq!((got(&after.maps), got(&after.pages), got(&after.fetches)), (1, 164, 1));
    assert_eq!(got(&after.round_trips), 2, "one for the map, one for all data");
    assert!(got(&after.replies) <= 5, "{}", got(&after.replies));
}

#[test]
fn one_of_several_streams_asks_for_the_map_and_none_fetches_holes() {
    let got = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for streams in [2, 8] {
        let counts = fill(true, streams);
        assert_eq!((got(&counts.maps), got(&counts.pages)), (1, 164), "{streams} streams");
    }
}

#[test]
fn stream_that_is_lost_within_the_map_leaves_it_to_another_one() {
    let (file, memory) = (sparse_file(PAGES), Arc::new(Memory::new(PAGES)));
    let source = Source::new(&[("ram", &file)]);
    // The first streams that get a part of the map lose it.
    let link = Link::new(source.address, |number, lane| match (number, lane) {
        (1..=3, STREAM) => Weather::Cut(120 + 24 + 16 + 1000),
        _ => Weather::Fair,
    });
    let options = Options { streams: 3, ..OPTIONS };
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(link.address), options);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    engine.stop();
}

#[test]
fn urgent_page_arrives_while_the_map_does_not() {
    let (file, memory) = (sparse_file(PAGES), Arc::new(Memory::new(PAGES)));
    let source = Source::new(&[("ram", &file)]);
    // The greeting and the list of exports pass, in one piece or in two; the answer to the map does not, as a whole.
    let link = Link::new(source.address, |_, lane| match lane {
        STREAM => Weather::Gate(120),
        _ => Weather::Fair,
    });
    let connect = to(link.address);
    link.gate.open(2);
    let (mut engine, _) = start(&[Arc::clone(&memory)], connect, OPTIONS);
    assert_eq!(memory.touch(300).map(|page| page[0]), Some(300_u64 as u8 | 1));
    assert_eq!(memory.touch(301).map(|page| page[0]), Some(0), "a page of a hole");
    assert!(memory.present() < 100, "the map has come: {}", memory.present());
    link.gate.open(u64::MAX / 2);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    engine.stop();
}

#[test]
fn connection_that_is_lost_within_the_map_is_made_again() {
    let (file, memory) = (sparse_file(PAGES), Arc::new(Memory::new(PAGES)));
    let source = Source::new(&[("ram", &file)]);
    // The greeting and the list of exports have 24 and 24 + 8 + 64 bytes. The map is cut within its ranges.
    let link = Link::new(source.address, |number, lane| match (number, lane) {
        (1, STREAM) => Weather::Cut(120 + 24 + 16 + 1000),
        (2, STREAM) => Weather::Damage(120 + 24 + 16 + 1000),
        _ => Weather::Fair,
    });
    let (mut engine, stats) = start(&[Arc::clone(&memory)], to(link.address), OPTIONS);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    assert_eq!(get(&stats.reconnects), 2);
    engine.stop();
}

#[test]
fn hole_that_there_is_no_memory_for_is_asked_for_again() {
    let (file, memory) = (sparse_file(PAGES), Arc::new(Memory::new(PAGES)));
    let source = Source::new(&[("ram", &file)]);
    memory.set_room(2000);
    let (mut engine, _) = start(&[Arc::clone(&memory)], to(source.address), OPTIONS);
    wait_until(|| memory.present() == 2000);
    memory.set_room(u64::MAX);
    finish(&mut engine).expect("an end");
    assert_eq!(check(&memory, &file), PAGES);
    engine.stop();
}
