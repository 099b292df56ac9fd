// SPDX-License-Identifier: GPL-2.0-or-later
//! How long sparse memory takes over a network with a delay. Not run by default: it takes long, and the time is that of this machine.
//!
//! `cargo test --release -p vmem-engine -- --ignored --nocapture sparse`

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use rustix::event::{EventfdFlags, eventfd};
use vmem::{PageIndex, PageRange, PageSet, Progress};
use vmem_source::memory::Memory as Exported;

use super::*;
use crate::sink::RegionState;

/// A region of any size without memory: it notes which pages have come.
struct Presence {
    absent: Mutex<PageSet>,
    wanted: OwnedFd,
}

impl Presence {
    fn new(pages: PageRange) -> Self {
        Self {
            absent: Mutex::new(PageSet::all_of(pages)),
            wanted: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        }
    }

    fn settle(&self, ranges: &[PageRange]) -> Progress {
        let mut absent = self.absent.lock().expect("no panic");
        let mut pages = 0;
        for range in ranges {
            pages += absent.runs_of(*range).map(|run| run.count()).sum::<u64>();
            absent.remove(*range);
        }
        Progress {
            ranges: ranges.len(),
            pages,
            error: None,
        }
    }
}

fn ranges(fills: &[(PageIndex, &[u8])]) -> Vec<PageRange> {
    let range = |(first, bytes): &(PageIndex, &[u8])| PageRange::new(*first, (bytes.len() / PAGE_SIZE) as u64);
    fills.iter().filter_map(range).collect()
}

impl Sink for Presence {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wanted.as_fd()
    }
    fn take(&self, _: usize) -> Result<Vec<PageIndex>, vmem::Error> {
        Ok(Vec::new())
    }
    fn fill(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        self.settle(&ranges(fills))
    }
    fn stage(&self, fills: &[(PageIndex, &[u8])]) -> Progress {
        self.settle(&ranges(fills))
    }
    fn mark_cached(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges)
    }
    fn mark_zero(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges)
    }
    fn mark_unreadable(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges)
    }
    fn make_present(&self, ranges: &[PageRange]) -> Progress {
        self.settle(ranges)
    }
    fn read(&self, _: PageRange, _: &mut [u8]) -> Result<(), vmem::Error> {
        Ok(())
    }
    fn make_plain(&self) -> Result<(), vmem::Error> {
        Ok(())
    }
    fn absent(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), vmem::Error> {
        let absent = self.absent.lock().expect("no panic").clone();
        absent.runs_of(pages).for_each(each);
        Ok(())
    }
    fn state(&self) -> Result<RegionState, vmem::Error> {
        Ok(RegionState {
            present: 0,
            unreadable: 0,
            backed: 0,
            mappings: 1,
            plain: false,
        })
    }
}

/// A relay whose bytes arrive after `delay`, in each direction, however many there are.
fn delayed(source: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(source) else { continue };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let _ = to.set_nodelay(true);
                let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(4096);
                thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                            break;
                        }
                    }
                });
                thread::spawn(move || {
                    for (due, bytes) in receiver {
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if to.write_all(&bytes).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    address
}

/// A source of a memfd of `pages` pages, of which every `step`th has contents.
fn memfd(pages: u64, step: u64) -> (File, Source) {
    let file = File::from(rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(pages * PAGE_SIZE as u64).expect("a size");
    for page in (0..pages).step_by(step as usize) {
        file.write_all_at(&page.to_le_bytes(), page * PAGE_SIZE as u64 + 8)
            .expect("room");
    }
    let memory = Exported::open(&format!("ram=/proc/self/fd/{}", file.as_raw_fd())).expect("memory");
    let source = Source::of(([127, 0, 0, 1], 0).into(), vec![memory]);
    (file, source)
}

/// Fills a region from such a memory, over a network with a delay of 10 ms there and back.
fn fill(pages: u64, step: u64) -> Duration {
    let (_file, source) = memfd(pages, step);
    let connect = to(delayed(source.address, Duration::from_millis(5)));
    let first = connect(Lane::Urgent).expect("a source");
    let export = first.exports()[0].clone();
    let sink = Arc::new(Presence::new(export.pages));
    let target = Target {
        export,
        name: "ram".to_owned(),
        sink: Arc::clone(&sink) as Arc<dyn Sink>,
    };
    let stats = Arc::new(Stats::new().expect("counters"));
    let release = Arc::new(Release::new(Permission::Never));
    let began = Instant::now();
    let (mut engine, _) =
        Engine::start(vec![target], first, None, connect, OPTIONS, Arc::clone(&stats), release).expect("an engine");
    while !engine.is_idle() {
        if let Some(Event::Ended(result)) = engine.next_event(Duration::from_millis(5)) {
            result.expect("an end");
        }
    }
    let elapsed = began.elapsed();
    assert!(sink.absent.lock().expect("no panic").is_empty());
    println!(
        "{} GiB, {} data pages: {:.3} s",
        pages >> 18,
        get(&stats.data),
        elapsed.as_secs_f64()
    );
    engine.stop();
    elapsed
}

#[test]
#[ignore = "measures"]
fn sparse_memory_takes_as_long_as_its_data() {
    const TIB: u64 = 1 << 28;
    println!("holes alone:");
    fill(TIB, TIB);
    println!("1 % data, scattered, and that much data alone:");
    let sparse = fill(TIB / 8, 100);
    let data = fill(TIB / 800, 1);
    let ratio = sparse.as_secs_f64() / data.as_secs_f64();
    println!("ratio {ratio:.2}");
    assert!(ratio <= 1.2, "{ratio}");
}
