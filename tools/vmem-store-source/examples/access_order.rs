// SPDX-License-Identifier: GPL-2.0
//! Measures what a recorded access order is worth: how long it takes until all pages of a working set are there, with it and without it.
//!
//! `tools/testing/cargo run --release -p vmem-store-source --example access_order [MIB [MILLISECONDS [ROUNDS]]]`
//!
//! Prints one JSON object on a line for each restore, and one with the medians and their ratio. The store is in memory, and each of its operations takes
//! the given time (25 ms) to the first byte, and a connection 80 MB/s. The engine, the source and the store are those of a restore; the region is
//! memory of this process. The working set is 1/20 of the memory, in runs of 16 pages, two thirds of which lie in a
//! tenth of the memory, as writes of guests do. A program touches it in an order of its own,
//! a page at a time, and waits for each. Without a recorded order, pages come as the program touches them, and behind that as they lie in the store.

use std::collections::BTreeSet;
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vmem::{PAGE_SIZE, PageIndex, PageRange, PageSet, Progress};
use vmem_engine::{Connect, Engine, Event, Options, Permission, RegionState, Release, Sink, Stats, Target};
use vmem_source::{Lane, PageSource};
use vmem_store::objects::{Fetched, Memory, ObjectError, ObjectMeta, Objects, Part, Put};
use vmem_store::{CommitOptions, InitOptions, OpenOptions, Store, Touch, WriteOptions};
use vmem_store_source::{Selector, StoredPages};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Pages of a run of the working set.
const RUN: u64 = 16;

/// Bytes that a connection brings in a second.
const BANDWIDTH: f64 = 80e6;

/// A place that is far away.
#[derive(Debug)]
struct Far {
    memory: Memory,
    latency: Mutex<Duration>,
}

impl Far {
    fn wait(&self, bytes: usize) {
        let latency = *self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if !latency.is_zero() {
            thread::sleep(latency + Duration::from_secs_f64(bytes as f64 / BANDWIDTH));
        }
    }
}

impl Objects for Far {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        self.wait(bytes.len());
        self.memory.put(name, bytes, put)
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        let fetched = self.memory.get(name, part)?;
        self.wait(fetched.bytes.len());
        Ok(fetched)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.wait(0);
        self.memory.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.wait(0);
        self.memory.delete(name)
    }
}

struct State {
    absent: PageSet,
    left: u64,
    requests: BTreeSet<u64>,
}

/// A region, as far as the engine can tell. Contents are dropped: what is measured is when they are there.
struct Region {
    state: Mutex<State>,
    changed: Condvar,
    wanted: OwnedFd,
    pages: PageRange,
}

impl Region {
    fn new(pages: PageRange) -> Outcome<Self> {
        Ok(Self {
            state: Mutex::new(State {
                absent: PageSet::all_of(pages),
                left: pages.count(),
                requests: BTreeSet::new(),
            }),
            changed: Condvar::new(),
            wanted: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            pages,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Touches a page. True if it had to be waited for.
    fn touch(&self, page: PageIndex) -> Outcome<bool> {
        let mut state = self.lock();
        if !state.absent.contains(page) {
            return Ok(false);
        }
        state.requests.insert(page.get());
        rustix::io::write(&self.wanted, &1_u64.to_ne_bytes())?;
        while state.absent.contains(page) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(true)
    }

    fn settle(&self, ranges: impl Iterator<Item = PageRange>) -> Progress {
        let mut state = self.lock();
        let mut progress = Progress {
            ranges: 0,
            pages: 0,
            error: None,
        };
        for range in ranges {
            let came: u64 = state.absent.runs_of(range).map(|run| run.count()).sum();
            state.absent.remove(range);
            state.left -= came;
            progress.ranges += 1;
            progress.pages += came;
        }
        drop(state);
        self.changed.notify_all();
        progress
    }
}

impl Sink for Region {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wanted.as_fd()
    }

    fn take(&self, max: usize) -> Result<Vec<PageIndex>, vmem::Error> {
        let mut state = self.lock();
        let taken: Vec<u64> = state.requests.iter().copied().take(max).collect();
        state.requests.retain(|page| !taken.contains(page));
        if state.requests.is_empty() {
            // Not readable any more until the next request.
            let _ = rustix::io::read(&self.wanted, &mut [0; 8]);
        }
        Ok(taken.into_iter().filter_map(PageIndex::new).collect())
    }

    fn fill(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        let range = |(first, contents): &(PageIndex, &[u8])| PageRange::new(*first, (contents.len() / PAGE_SIZE) as u64);
        self.settle(fills.iter().filter_map(range))
    }

    fn stage(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        self.fill(fills)
    }

    fn mark_cached(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges.iter().copied())
    }

    fn mark_zero(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges.iter().copied())
    }

    fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges.iter().copied())
    }

    fn make_present(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges.iter().copied())
    }

    fn read(&self, _: PageRange, to: &mut [u8]) -> Result<(), vmem::Error> {
        to.fill(0);
        Ok(())
    }

    fn make_plain(&self) -> Result<(), vmem::Error> {
        Ok(())
    }

    fn absent(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), vmem::Error> {
        self.lock().absent.runs_of(pages).for_each(each);
        Ok(())
    }

    fn state(&self) -> Result<RegionState, vmem::Error> {
        Ok(RegionState {
            present: self.pages.count() - self.lock().left,
            unreadable: 0,
            mappings: 1,
            plain: false,
        })
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The runs of the working set, in the order in which they are touched. Each is there once.
fn working_set(pages: u64) -> Vec<PageRange> {
    let (mut numbers, mut seen, mut runs) = (0x9e37_79b9_7f4a_7c15, BTreeSet::new(), Vec::new());
    while (runs.len() as u64) < pages / 20 / RUN {
        let within = if random(&mut numbers) % 3 > 0 { pages / 10 } else { pages };
        let first = random(&mut numbers) % (within / RUN) * RUN;
        if seen.insert(first) {
            runs.extend(PageRange::from_pgoff(first, RUN));
        }
    }
    runs
}

/// Writes a checkpoint of so many pages, half of each of which compresses.
fn write(store: &Store, pages: PageRange) -> Outcome {
    let memories = [("ram".to_owned(), pages.count() * PAGE_SIZE as u64)];
    let writer = store.begin(&"guest0".parse()?, None, &memories, &WriteOptions::default())?;
    let mut numbers = 1;
    let mut page = [0; PAGE_SIZE];
    for at in pages.iter() {
        for word in page[..PAGE_SIZE / 2].chunks_exact_mut(8) {
            word.copy_from_slice(&random(&mut numbers).to_ne_bytes());
        }
        writer.put_pages(0, at, &page)?;
    }
    writer.commit(CommitOptions::default())?;
    Ok(())
}

/// What a restore took.
struct Restore {
    working_set: Duration,
    waits: u64,
    reads: u64,
}

/// Restores the checkpoint until all pages of the working set are there.
fn restore(far: &Arc<Far>, runs: &[PageRange]) -> Outcome<Restore> {
    let reads = far.memory.counts().gets;
    let began = Instant::now();
    let place = Arc::clone(far);
    let store = Store::open(place, OpenOptions::default())?;
    let checkpoint = Selector {
        guest: "guest0".parse()?,
        sequence: None,
    };
    let pages = Arc::new(StoredPages::open_in(store, &checkpoint, "a benchmark", Arc::new(|| Ok(())))?);
    let export = pages.exports()[0].clone();
    let region = Arc::new(Region::new(export.pages)?);
    let connect: Connect = Arc::new(move |lane| pages.source(lane).map(|source| Box::new(source) as Box<dyn PageSource>));
    let target = Target {
        export,
        name: "ram".to_owned(),
        sink: Arc::clone(&region) as Arc<dyn Sink>,
    };
    let options = Options {
        background: true,
        streams: 1,
        window: 1024,
        prefetch: 32,
        retry: Duration::from_secs(60),
        seed: None,
        yields: false,
        touches: None,
    };
    let (stats, release) = (Arc::new(Stats::new()?), Arc::new(Release::new(Permission::Never)));
    let first = connect(Lane::Urgent)?;
    let (mut engine, _) = Engine::start(vec![target], first, None, connect, options, stats, release)?;
    let mut waits = 0;
    for page in runs.iter().flat_map(|run| run.iter()) {
        waits += u64::from(region.touch(page)?);
    }
    let working_set = began.elapsed();
    while let Some(event) = engine.next_event(Duration::ZERO) {
        if let Event::Ended(result) = event {
            result?;
        }
    }
    let reads = far.memory.counts().gets - reads;
    engine.stop();
    Ok(Restore {
        working_set,
        waits,
        reads,
    })
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let mib = arguments.next().transpose()?.unwrap_or(512).clamp(16, 65536);
    let latency = Duration::from_millis(arguments.next().transpose()?.unwrap_or(25));
    let rounds = arguments.next().transpose()?.unwrap_or(5).max(1);
    let pages = PageRange::of_len(mib << 20).ok_or("no pages")?;
    let far = Arc::new(Far {
        memory: Memory::new(),
        latency: Mutex::new(Duration::ZERO),
    });
    let place = Arc::clone(&far);
    let store = Store::init(place, &InitOptions::default(), OpenOptions::default())?;
    write(&store, pages)?;
    let runs = working_set(pages.count());
    let mut medians = Vec::new();
    for has_order in [false, true] {
        if has_order {
            let image = store.image(&store.latest(&"guest0".parse()?)?)?;
            let touches: Vec<_> = runs
                .iter()
                .map(|pages| Touch {
                    backend: 0,
                    pages: *pages,
                })
                .collect();
            store.record_order(&image, &touches)?;
        }
        let mut times = Vec::new();
        for _ in 0..rounds {
            *far.latency.lock().unwrap_or_else(PoisonError::into_inner) = latency;
            let took = restore(&far, &runs)?;
            *far.latency.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
            let seconds = took.working_set.as_secs_f64();
            println!(
                "{{\"order\":{has_order},\"seconds\":{seconds:.3},\"waits\":{},\"reads\":{}}}",
                took.waits, took.reads
            );
            times.push(seconds);
        }
        medians.push(median(&mut times));
    }
    println!(
        "{{\"mib\":{mib},\"latency_ms\":{},\"working_set_pages\":{},\"rounds\":{rounds},\"without_seconds\":{:.3},\"with_seconds\":{:.3},\"ratio\":{:.3},\"goal\":0.5}}",
        latency.as_millis(),
        runs.len() as u64 * RUN,
        medians[0],
        medians[1],
        medians[1] / medians[0]
    );
    Ok(())
}
