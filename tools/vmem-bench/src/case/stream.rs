// SPDX-License-Identifier: GPL-2.0-or-later
//! Case 4: vmemd streams a region over a loopback socket, while a program touches pages that are not there yet.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vmem::{PAGE_SIZE, PageIndex};
use vmem_figures::quantile;

use super::{Bench, Round};
use crate::contents::verify;
use crate::failure::{During, Failure, Outcome};
use crate::order::shuffled;
use crate::peer::{Kind, VMEM};
use crate::transfer::{MemoryFile, Source, Transfer};

/// Pages in all: 64 MiB.
const PAGES: u64 = 16384;
/// The most faults that are measured during one transfer.
const FAULTS: usize = 400;
/// Transfers of one round, whose faults are measured together. The p99 of one transfer would be that of its four slowest faults, and differ
/// from transfer to transfer by more than what it is to show.
const TRANSFERS: u64 = 10;
/// How much is copied at once by who only copies.
const BUFFER: usize = 128 << 10;

const COPY: &str = "socket to tmpfs";
const STREAM: &str = "stream on";
const QUIET: &str = "stream off";

pub(super) fn round(bench: &Bench, number: u64, round: &mut Round) -> Outcome {
    let source = || Source::of(MemoryFile::full("source", PAGES, &bench.contents)?);
    round.add("throughput", "MiB/s", VMEM, vmemd(&source()?)?);
    round.add("throughput", "MiB/s", COPY, copy(bench)?);
    let source = source()?;
    for (by, options) in [(STREAM, &[][..]), (QUIET, &["--no-background"])] {
        let mut times = Vec::new();
        for transfer in 0..TRANSFERS {
            let order = number * TRANSFERS + transfer;
            times.extend(faults(&Transfer::start(&source, options)?, order)?);
        }
        times.sort_by(f64::total_cmp);
        for (what, part) in [("fault p50", 0.5), ("fault p90", 0.9), ("fault p99", 0.99)] {
            if let Some(time) = quantile(&times, part) {
                round.add(what, "us", by, time);
            }
        }
        round.add("faults measured", "in a round", by, times.len() as f64);
    }
    Ok(())
}

fn mib_per_second(time: Duration) -> f64 {
    (PAGES * PAGE_SIZE as u64) as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// From when vmemd may ask for the first page to when all are present, with a program that has mapped the region and waits.
fn vmemd(source: &Source) -> Outcome<f64> {
    let mut transfer = Transfer::hold(source, &[])?;
    let _memory = transfer.map()?;
    let since = Instant::now();
    transfer.go()?;
    while !transfer.is_complete()? {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(mib_per_second(since.elapsed()))
}

/// The same bytes, from a socket into a file in memory, by the shortest program for it.
fn copy(bench: &Bench) -> Outcome<f64> {
    let from = MemoryFile::full("from", PAGES, &bench.contents)?;
    let to = MemoryFile::new("to")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("listen")?;
    let mut out = TcpStream::connect(listener.local_addr().during("listen")?).during("connect")?;
    let (mut socket, _) = listener.accept().during("accept")?;
    let since = Instant::now();
    let sender = std::thread::spawn(move || -> Outcome {
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        loop {
            let len = from.file.read_at(&mut buffer, at).during("read a file")?;
            if len == 0 {
                return Ok(());
            }
            out.write_all(&buffer[..len]).during("write to a socket")?;
            at += len as u64;
        }
    });
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let len = socket.read(&mut buffer).during("read from a socket")?;
        if len == 0 {
            break;
        }
        to.file.write_all_at(&buffer[..len], at).during("write a file")?;
        at += len as u64;
    }
    let time = since.elapsed();
    sender
        .join()
        .unwrap_or_else(|_| Err(Failure::Wrong("a thread panicked".into())))?;
    if at != PAGES * PAGE_SIZE as u64 {
        return Err(Failure::Wrong(format!("{at} bytes were copied")));
    }
    Ok(mib_per_second(time))
}

/// How long touches of pages that were absent just before take, in microseconds.
fn faults(transfer: &Transfer, seed: u64) -> Outcome<Vec<f64>> {
    let memory = transfer.map()?;
    let mut times = Vec::new();
    for page in shuffled(PAGES, seed) {
        if times.len() == FAULTS || transfer.is_complete()? {
            break;
        }
        let present = transfer.handle().present_map()?;
        if PageIndex::new(page).is_some_and(|page| present.contains(page)) {
            continue;
        }
        let since = Instant::now();
        let word = memory.read(page as usize);
        times.push(since.elapsed().as_nanos() as f64 / 1e3);
        verify(Kind::Vmem.name(), page, word)?;
    }
    Ok(times)
}
