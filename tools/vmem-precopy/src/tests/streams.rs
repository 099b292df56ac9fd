// SPDX-License-Identifier: GPL-2.0-or-later
//! Rounds of a program that writes all the time, over several connections of a real server: no page is overtaken by its older contents.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vmem_pages::{PageRange, PageSet};
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::memory::Memory;
use vmem_source::serve::{Limits as ServerLimits, Server};
use vmem_source::{Contents, ExportHoles, StagingEvent, StagingSource};
use vmem_wait::StopEvent;

use crate::limits::{Limits, Mode};
use crate::memory::{DirtyMemory, Logged};
use crate::order::mix;
use crate::plan::Options;
use crate::rounds::PreCopy;

const PAGE_SIZE: usize = 4096;

/// Memory in a file, whose writes are logged.
#[derive(Clone)]
struct Written(Arc<Inner>);

struct Inner {
    file: File,
    pages: PageRange,
    log: Mutex<PageSet>,
}

impl Written {
    fn new(file: &NamedTempFile, pages: u64) -> Self {
        file.as_file().set_len(pages * PAGE_SIZE as u64).expect("room");
        let pages = PageRange::of_pages(pages).expect("pages");
        Self(Arc::new(Inner {
            file: file.reopen().expect("the file"),
            pages,
            log: Mutex::new(PageSet::none_of(pages)),
        }))
    }

    fn log(&self) -> MutexGuard<'_, PageSet> {
        self.0.log.lock().expect("no panic")
    }

    /// Writes to a page: a number that says which write it is, at both ends of the page.
    fn write(&self, page: u64, value: u64) {
        let mut log = self.log();
        let at = page * PAGE_SIZE as u64;
        self.0.file.write_all_at(&value.to_le_bytes(), at).expect("room");
        let end = at + PAGE_SIZE as u64 - 8;
        self.0.file.write_all_at(&value.to_le_bytes(), end).expect("room");
        log.insert(PageRange::from_pgoff(page, 1).expect("a page"));
    }
}

impl DirtyMemory for Written {
    fn pages(&self) -> PageRange {
        self.0.pages
    }

    fn peek(&self, pages: PageRange) -> Logged {
        dirty_of(&self.log(), pages)
    }

    fn clean(&self, pages: PageRange) -> Logged {
        // A write between the two would be lost.
        let mut log = self.log();
        let logged = dirty_of(&log, pages);
        log.remove(pages);
        logged
    }
}

fn dirty_of(log: &PageSet, pages: PageRange) -> Logged {
    let mut dirty = PageSet::none_of(pages);
    log.runs_of(pages).for_each(|run| dirty.insert(run));
    Logged { dirty, error: None }
}

/// What a destination has staged of a memory: for each page its contents.
type Staged = Mutex<Vec<Option<Vec<u8>>>>;

/// Stages the holes of all memory as zero. No connection asks for pages before.
fn stage_holes(source: &mut dyn StagingSource, pages: u64, staged: &Staged) {
    source
        .map(0, PageRange::of_pages(pages).expect("pages"))
        .expect("no page was asked for");
    let mut known = 0;
    while known < pages {
        match source.next_event().expect("an event") {
            StagingEvent::Holes(ExportHoles { holes, .. }) => {
                known += holes.pages.count();
                let mut staged = staged.lock().expect("no panic");
                let holes = holes.ranges.iter().flat_map(|hole| hole.iter());
                holes.for_each(|page| staged[page.get() as usize] = Some(vec![0; PAGE_SIZE]));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Stages what comes over a connection. Some connections are slow at times, so that others could overtake them.
fn stage(source: &mut dyn StagingSource, number: u64, staged: &Staged) -> Vec<PageRange> {
    let (mut outstanding, mut is_over, mut random) = (0, false, number);
    let mut remainder = Vec::new();
    loop {
        while !is_over && outstanding < 2 {
            source.next(64).expect("room");
            outstanding += 1;
        }
        random = mix(random);
        if number % 2 == 1 && random % 8 == 0 {
            thread::sleep(Duration::from_micros((random >> 8) & 0xfff));
        }
        match source.next_event().expect("an event") {
            StagingEvent::Pages(answer) => {
                for (range, contents) in answer.contents() {
                    let mut pages = match contents {
                        Contents::Data(data) => Some(data.chunks(PAGE_SIZE)),
                        Contents::Zero => None,
                        Contents::Same => {
                            let staged = staged.lock().expect("no panic");
                            assert!(range.iter().all(|page| staged[page.get() as usize].is_some()));
                            continue;
                        }
                        Contents::Unreadable | Contents::Known(_) => panic!("{range}: {contents:?}"),
                    };
                    for page in range.iter() {
                        let page_contents = match &mut pages {
                            Some(pages) => pages.next().expect("as many as the range").to_vec(),
                            None => vec![0; PAGE_SIZE],
                        };
                        staged.lock().expect("no panic")[page.get() as usize] = Some(page_contents);
                    }
                }
            }
            StagingEvent::Batch { over, .. } => {
                is_over |= over;
                outstanding -= 1;
            }
            StagingEvent::Remainder(pages) => remainder.extend(pages.ranges),
            StagingEvent::Holes(holes) => panic!("nobody has asked for {holes:?}"),
            StagingEvent::End => return remainder,
        }
    }
}

/// Ends the threads of a move that has failed, which would be waited for otherwise.
struct Guard<'a> {
    stop: &'a StopEvent,
    running: &'a AtomicBool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.stop.set();
        self.running.store(false, Ordering::Relaxed);
    }
}

/// Moves the memory of a program that writes for a while, most often to a few pages. Returns how many pages are left.
fn moves(streams: usize, pages: u64, hot: u64, seed: u64, maps: bool, runs: Duration) -> u64 {
    let file = NamedTempFile::new_in("/dev/shm").expect("a file");
    let memory = Written::new(&file, pages);
    let options = Options {
        mode: Mode::Hybrid,
        limits: Limits {
            downtime: Duration::from_millis(1),
            ..Limits::XEN
        },
        seed,
    };
    let precopy = Arc::new(PreCopy::new(vec![Box::new(memory.clone())], options).expect("rounds"));
    let exported = Memory::open(&format!("ram={}", file.path().display())).expect("memory");
    let server = Server::bind(
        ([127, 0, 0, 1], 0).into(),
        vec![exported],
        ServerLimits::default(),
        None,
        |_| {},
    );
    let server = server.expect("a port").with_rounds(precopy.clone());
    let address = server.local_addr().expect("an address").to_string();
    let (stop, running) = (StopEvent::new().expect("an eventfd"), AtomicBool::new(true));
    let staged: Staged = Mutex::new(vec![None; pages as usize]);
    let remainder: Vec<PageRange> = thread::scope(|scope| {
        scope.spawn(|| server.run(stop.as_fd()).expect("a run"));
        let _guard = Guard {
            stop: &stop,
            running: &running,
        };
        let endpoint = Endpoint::new(&address, Security::Loopback, Duration::from_secs(10));
        let mut sources = endpoint.connect_rounds(streams).expect("rounds");
        assert_eq!(sources.len(), streams);
        assert!(sources[0].can_map() && !sources[1..].iter().any(StagingSource::can_map));
        let program = scope.spawn(|| {
            let mut random = seed;
            for value in 1.. {
                if !running.load(Ordering::Relaxed) {
                    return;
                }
                random = mix(random);
                memory.write((random >> 8) % if random % 4 == 0 { pages } else { hot.min(pages) }, value);
                if value % 16 == 0 {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        });
        if maps {
            stage_holes(&mut sources[0], pages, &staged);
        }
        // A connection stays until all have ended: its loss before the list would lose the rounds.
        let stagers: Vec<_> = (0..)
            .zip(sources)
            .map(|(number, mut source)| {
                let staged = &staged;
                scope.spawn(move || (stage(&mut source, number, staged), source))
            })
            .collect();
        thread::sleep(runs);
        running.store(false, Ordering::Relaxed);
        program.join().expect("a program");
        precopy.finish().expect("a log");
        let lists = stagers.into_iter().map(|stager| stager.join().expect("a destination"));
        let (lists, _sources): (Vec<_>, Vec<_>) = lists.unzip();
        assert!(lists[1..].iter().all(Vec::is_empty), "the first one has the list");
        lists.concat()
    });
    let mut is_left = PageSet::none_of(PageRange::of_pages(pages).expect("pages"));
    remainder.iter().for_each(|range| is_left.insert(*range));
    let staged = staged.into_inner().expect("no panic");
    let mut expected = vec![0; PAGE_SIZE];
    for page in PageRange::of_pages(pages).expect("pages").iter() {
        if is_left.contains(page) {
            continue;
        }
        let at = page.get() * PAGE_SIZE as u64;
        memory.0.file.read_exact_at(&mut expected, at).expect("the source");
        let found = staged[page.get() as usize].as_ref().expect("every other page was sent");
        assert!(*found == expected, "{page} has older contents over {streams} streams");
    }
    let statistics = precopy.statistics();
    assert!(maps || statistics.sent >= pages - is_left.runs().map(|run| run.count()).sum::<u64>());
    is_left.runs().map(|run| run.count()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn staged_pages_have_their_last_contents_over_any_number_of_streams(
        streams in prop::sample::select(vec![1_usize, 2, 3, 8]),
        pages in 1..4000_u64,
        hot in 1..1500_u64,
        seed in any::<u64>(),
        maps in any::<bool>(),
        runs in 50..300_u64,
    ) {
        moves(streams, pages, hot, seed, maps, Duration::from_millis(runs));
    }
}

/// The bandwidth is that of all connections together, in the time in which any of them had something to send.
#[test]
fn bandwidth_is_that_of_all_connections_together() {
    let file = NamedTempFile::new_in("/dev/shm").expect("a file");
    let memory = Written::new(&file, 4096);
    let precopy = PreCopy::new(vec![Box::new(memory)], Options::default()).expect("rounds");
    let (began, bytes) = (Instant::now(), std::sync::atomic::AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let batch = precopy.next(256).expect("a batch");
                    let Some(pages) = &batch.pages else { return };
                    thread::sleep(Duration::from_millis(40));
                    let data = pages.pages();
                    let sent = vmem_source::rounds::Sent {
                        data,
                        bytes: data * PAGE_SIZE as u64,
                        elapsed: Duration::from_millis(40),
                        ..Default::default()
                    };
                    // In two parts, as if a half of it were sent over another connection.
                    let mut half = batch.clone();
                    half.pages.iter_mut().for_each(|pages| pages.ranges.clear());
                    precopy.sent(&half, &Default::default());
                    precopy.sent(&batch, &sent);
                    bytes.fetch_add(sent.bytes, Ordering::Relaxed);
                    if began.elapsed() > Duration::from_secs(10) {
                        return;
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(400));
        let bandwidth = precopy.statistics().bandwidth.expect("something was sent");
        // What one connection sends in its time is a quarter of it.
        let expected = (bytes.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()) as u64;
        assert!((expected / 2..2 * expected).contains(&bandwidth), "{bandwidth} of {expected}");
        precopy.finish().expect("a log");
    });
}
