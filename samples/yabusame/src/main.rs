// SPDX-License-Identifier: GPL-2.0
//! The test program of 2011, on the library.
//!
//! Eight pages, two processes. The daemon fills page 0 ahead and answers requests with pages filled by a running number. The reader
//! touches the pages out of order, with a pause before the third and the seventh touch, and says what it reads. When all is there, the
//! region becomes plain memory, the daemon ends, and the reader reads everything once more.
#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::process::{Child, Command, exit};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmem::{
    Access, Control, Fill, Mapping, PAGE_SIZE, PageIndex, PageRange, Region, RegionBuilder, Sharing,
};

const PAGES: u64 = 8;
/// What page 0 is filled with. The requests are answered with the numbers after it.
const FIRST_NUMBER: u8 = 100;
/// The pages in the order of their touch, each with the number that it then holds.
const TOUCHES: [(u64, u8); PAGES as usize] = [
    (7, 101),
    (1, 102),
    (6, 103),
    (2, 104),
    (0, FIRST_NUMBER),
    (5, 105),
    (3, 106),
    (4, 107),
];
const PAUSE: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => read(),
        ["serve", id] => id.parse().context("the number of a region").and_then(serve),
        _ => {
            eprintln!("usage: yabusame");
            exit(2);
        }
    };
    if let Err(error) = result {
        eprintln!("yabusame: {error:#}");
        exit(1);
    }
}

/// The reader. It creates the region and then keeps only a descriptor that maps it.
fn read() -> Result<()> {
    let region = RegionBuilder::new(PAGES * PAGE_SIZE as u64).create(&Control::open()?)?;
    let handle = region.map_handle()?;
    let id = region.id().to_string();
    // The daemon attaches by itself; until it has, nobody is the region's daemon.
    drop(region);
    let daemon = Command::new(std::env::current_exe()?)
        .args(["serve", &id])
        .spawn();
    let daemon = watch(daemon.context("cannot start the daemon")?);

    handle.wait_ready()?;
    let memory = handle.map(Access::ReadWrite, Sharing::Shared)?;
    println!("reader: the daemon is ready, the region is mapped");
    for (touch, (pgoff, expected)) in (1..).zip(TOUCHES) {
        if touch == 3 || touch == 7 {
            println!("reader: sleeps");
            thread::sleep(PAUSE);
        }
        check(&memory, pgoff, expected)?;
        println!("reader: touch {touch}: page {pgoff} holds {expected}");
    }

    if daemon.join().is_err() {
        bail!("the daemon was not watched to its end");
    }
    ensure!(
        handle.info()?.plain,
        "the daemon is gone and the region is not plain memory"
    );
    for (pgoff, expected) in TOUCHES {
        check(&memory, pgoff, expected)?;
    }
    println!("reader: the daemon is gone, the memory is plain, all pages hold what they held");
    Ok(())
}

/// Fails unless the whole page holds the number.
fn check(memory: &Mapping, pgoff: u64, expected: u8) -> Result<()> {
    let mut page = [0; PAGE_SIZE];
    memory.read_at(pgoff as usize * PAGE_SIZE, &mut page)?;
    match page.iter().find(|byte| **byte != expected) {
        None => Ok(()),
        Some(byte) => bail!("page {pgoff} holds {byte} and not {expected}"),
    }
}

/// Ends this process if the daemon fails: the reader would wait for its pages without end.
fn watch(mut daemon: Child) -> thread::JoinHandle<()> {
    thread::spawn(move || match daemon.wait() {
        Ok(status) if status.success() => (),
        Ok(status) => {
            eprintln!("yabusame: the daemon failed: {status}");
            exit(1);
        }
        Err(error) => {
            eprintln!("yabusame: cannot wait for the daemon: {error}");
            exit(1);
        }
    })
}

/// The daemon.
fn serve(id: u64) -> Result<()> {
    let region = Control::open()?.attach_id(id)?;
    let mut number = FIRST_NUMBER;

    // Ahead of the first request, the way of 2011: into the staging file, then marked, then into the page tables.
    let ahead = PageRange::from(PageIndex::holding(0).context("page 0")?);
    region
        .staging()
        .write_all_at(&[number; PAGE_SIZE], ahead.bytes().start)?;
    region.mark_cached(&[ahead]).complete()?;
    region.make_pages_present(&[ahead]).complete()?;
    println!("daemon: filled {ahead} ahead with {number}");

    region.ready()?;
    while region.present_map()?.present() < PAGES {
        for page in region.next_requests(PAGES as usize)? {
            number += 1;
            answer(&region, page, number)?;
            println!("daemon: filled {page} with {number}");
        }
    }
    region.make_vma_anonymous()?;
    println!("daemon: all pages are present, the region is plain memory");
    Ok(())
}

/// Fills and marks in one call.
fn answer(region: &Region, page: PageIndex, number: u8) -> Result<()> {
    let filled = region
        .fill(&[Fill::new(page, &[number; PAGE_SIZE])?])
        .complete()?;
    ensure!(
        filled == 1,
        "{page} was present before its request was answered"
    );
    Ok(())
}
