// SPDX-License-Identifier: GPL-2.0-or-later
//! Measures the page protocol over loopback: how fast a stream is over 1, 2 and 4 connections, in clear text and TLS, with each compression;
//! and how long one page takes on the urgent lane.
//!
//! `tools/testing/cargo run --release -p vmem-source --example streams [MIB]`
//!
//! Server and destination share the processors of this machine, and loopback is no network: the figures compare the ways with each other. The
//! memory is made up: a third is words of text, a third pointers and small numbers as on a heap, a third noise (as of encrypted or compressed
//! data).

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmem::{PAGE_SIZE, PageRange};
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::memory::Memory;
use vmem_source::serve::{Limits, Server};
use vmem_source::{Compression, Contents, Lane, PageSource};
use vmem_tls::Identity;

/// Pages of one fetch, and fetches that are outstanding on all connections together, as those of the daemon.
const FETCH: u64 = 256;
const WINDOW: u64 = 4;

/// Single pages that are fetched for a median.
const SINGLE: usize = 2000;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A page of one of the kinds of contents.
fn page(number: u64, state: &mut u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "memory", "page", "the", "of", "guest", "is", "and", "a", "in", "region", "kernel", "to", "host", "it", "fault", "source",
    ];
    let mut page = Vec::with_capacity(PAGE_SIZE + 8);
    while page.len() < PAGE_SIZE {
        match number % 3 {
            0 => page.extend([WORDS[(random(state) % 16) as usize], " "].concat().bytes()),
            1 if random(state) % 3 == 0 => page.extend((0x7f12_3400_0000 | (random(state) & 0xf_fff0)).to_le_bytes()),
            1 => page.extend((random(state) % 200).to_le_bytes()),
            _ => page.extend(random(state).to_le_bytes()),
        }
    }
    page.truncate(PAGE_SIZE);
    page
}

/// Fetches pages, and copies them as a region would. Returns the bytes on the network.
fn fetch(mut source: impl PageSource, pages: PageRange, window: u64) -> Outcome<u64> {
    let mut copy = vec![0; FETCH as usize * PAGE_SIZE];
    let (mut left, mut outstanding, mut wire) = (Some(pages), 0, 0);
    while left.is_some() || outstanding > 0 {
        while let Some(rest) = left.filter(|_| outstanding < window) {
            let (next, after) = rest.split_at(FETCH);
            let next: Vec<_> = next.into_iter().collect();
            source.fetch(0, &next)?;
            outstanding += next.iter().map(|range| range.count()).sum::<u64>();
            left = after;
        }
        let answer = source.next_answer()?;
        outstanding -= answer.pages();
        wire += answer.wire_bytes();
        for (_, contents) in answer.contents() {
            if let Contents::Data(data) = contents {
                copy[..data.len()].copy_from_slice(data);
                black_box(&mut copy);
            }
        }
    }
    Ok(wire)
}

/// Fetches all pages over so many connections. Prints the throughput, and what was sent.
fn stream(endpoint: &Endpoint, pages: u64, streams: u64, what: &str) -> Outcome {
    let share = pages.div_ceil(streams);
    let mut sources = Vec::new();
    for number in 0..streams {
        let first = number * share;
        let part = PageRange::from_pgoff(first, share.min(pages - first)).ok_or("too few pages")?;
        sources.push((endpoint.connect(Lane::Stream)?, part));
    }
    let began = Instant::now();
    let wire: u64 = thread::scope(|scope| {
        let threads: Vec<_> = sources
            .into_iter()
            .map(|(source, part)| scope.spawn(move || fetch(source, part, (WINDOW * FETCH / streams).max(FETCH))))
            .collect();
        let wires = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread has panicked")?);
        wires.sum::<Outcome<u64>>()
    })?;
    let (bytes, seconds) = (pages * PAGE_SIZE as u64, began.elapsed().as_secs_f64());
    println!(
        "{what:<28} {streams} streams: {:7.0} MiB/s of pages, {:7.0} MiB/s on the network, ratio {:.2}",
        bytes as f64 / seconds / f64::from(1 << 20),
        wire as f64 / seconds / f64::from(1 << 20),
        bytes as f64 / wire as f64
    );
    Ok(())
}

/// Fetches single pages on the urgent lane. Prints the median time.
fn single(endpoint: &Endpoint, pages: u64, what: &str) -> Outcome {
    let mut source = endpoint.connect(Lane::Urgent)?;
    let (mut times, mut wire, mut state) = (Vec::new(), 0, 7);
    for _ in 0..SINGLE {
        let range = PageRange::from_pgoff(random(&mut state) % pages, 1).ok_or("no page")?;
        let began = Instant::now();
        source.fetch(0, &[range])?;
        wire += source.next_answer()?.wire_bytes();
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!(
        "{what:<28} one page: median {:5.1} us, p99 {:6.1} us, {} bytes",
        times[SINGLE / 2].as_secs_f64() * 1e6,
        times[SINGLE * 99 / 100].as_secs_f64() * 1e6,
        wire / SINGLE as u64
    );
    Ok(())
}

fn measure(identity: Option<&Identity>, address: SocketAddr, pages: u64) -> Outcome {
    let compressions = [
        Compression::None,
        Compression::Lz4,
        Compression::Zstd(1),
        Compression::Zstd(3),
    ];
    for compression in compressions {
        let security = identity.map_or(Security::Loopback, |identity| Security::Tls(identity.clone()));
        let endpoint = Endpoint::new(&address.to_string(), security, Duration::from_secs(10)).compress(compression, compression);
        let what = format!("{}, {compression}", if identity.is_some() { "TLS" } else { "clear text" });
        for streams in [1, 2, 4] {
            stream(&endpoint, pages, streams, &what)?;
        }
        single(&endpoint, pages, &what)?;
    }
    Ok(())
}

fn main() -> Outcome {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(192), |mib| mib.parse())?;
    let pages = mib * (1 << 20) / PAGE_SIZE as u64;
    let mut file = NamedTempFile::new_in("/dev/shm")?;
    let mut state = 1;
    for number in 0..pages {
        // Runs of 16 pages of a kind.
        file.write_all(&page(number / 16, &mut state))?;
    }
    let directory = tempfile::tempdir()?;
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    let identity = Identity::load(directory.path())?;
    for identity in [None, Some(identity)] {
        let memory = Memory::open(&format!("ram={}", file.path().display()))?;
        let server = Server::bind(
            ([127, 0, 0, 1], 0).into(),
            vec![memory],
            Limits::default(),
            identity.clone(),
            |_| {},
        )?;
        let address = server.local_addr()?;
        let (stop, stopped) = std::os::unix::net::UnixStream::pair()?;
        thread::scope(|scope| {
            let running = scope.spawn(move || server.run(stopped.as_fd()));
            let measured = measure(identity.as_ref(), address, pages);
            drop(stop);
            running.join().map_err(|_| "the server has panicked")??;
            measured
        })?;
    }
    Ok(())
}
