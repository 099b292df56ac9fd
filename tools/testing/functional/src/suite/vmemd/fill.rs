// SPDX-License-Identifier: GPL-2.0-or-later
//! What a region is filled with, and in which order.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vmem::{Access, PAGE_SIZE, Sharing};

use super::{Daemon, PAGES, Program, SIZE, Scratch, Source, check_page, map, open, wait_info};
use crate::failure::{Outcome, ensure, equal};
use crate::program::Program as Reader;
use crate::setting::{bytes_of, contents};
use crate::world::{module_users, nodes, wait_until};

crate::tests![
    a_program_gets_the_source_s_memory_and_keeps_it_as_plain_memory,
    files_with_holes_and_memfds_are_exported_side_by_side,
    no_background_fetches_only_touched_pages,
    pages_ahead_of_equal_steps_are_fetched_and_no_others,
    four_streams_and_compression_bring_every_page_once,
];

fn a_program_gets_the_source_s_memory_and_keeps_it_as_plain_memory() -> Outcome {
    let file = Scratch::new("plain", PAGES)?;
    let source = Source::new(&[&file.export("plain")])?;
    let program = Program::new("plain", &file.0)?;
    // However fast the pages come, the reader waits for the last of them before the first comes.
    let mut daemon = Daemon::new(&source.address, &["--hold"])?;
    let handle = open("plain")?;
    // It is a process: a thread that waits would keep the region when the test has failed.
    let reader = Reader::start(|| {
        check_page(&handle.map(Access::ReadWrite, Sharing::Shared)?, PAGES - 1)?;
        Ok(vec![])
    })?;
    wait_info(&handle, "program and reader wait", |info| info.waiters == 2)?;
    daemon.tell("start")?;
    reader.join()?;
    drop(handle);
    let end = daemon.end()?.with_code(0)?;
    equal!(end.number("data_bytes")? + end.number("zero_bytes")?, SIZE);
    equal!(end.number("zero_bytes")?, SIZE / 5);
    ensure!(end.number("faults")? > 0, "{}", end.output);
    // The program has the memory, and no use of the module is left.
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(nodes()?, Vec::<String>::new());
    program.succeeds()
}

fn four_streams_and_compression_bring_every_page_once() -> Outcome {
    for (compression, is_smaller) in [("none", false), ("lz4", true), ("zstd", true), ("zstd:9", true)] {
        let file = Scratch::new("streams", PAGES)?;
        let source = Source::new(&[&file.export("streams")])?;
        let options = ["--hold", "--streams", "4", "--compress", compression];
        let mut daemon = Daemon::new(&source.address, &options)?;
        let handle = open("streams")?;
        daemon.tell("start")?;
        let memory = map(&handle)?;
        // No page is touched before: all of them come over the stream.
        wait_info(&handle, "all pages are present", |info| info.present == PAGES)?;
        for pgoff in 0..PAGES {
            check_page(&memory, pgoff)?;
        }
        let end = daemon.end()?.with_code(0)?;
        let (data, zero) = (end.number("data_bytes")?, end.number("zero_bytes")?);
        equal!((data + zero, zero), (SIZE, SIZE / 5));
        let wire = end.number("wire_bytes")?;
        ensure!((wire < data / 4 * 3) == is_smaller, "{compression}: {wire} bytes for {data}");
    }
    Ok(())
}

fn files_with_holes_and_memfds_are_exported_side_by_side() -> Outcome {
    let file = Scratch::new("holes", 100)?;
    File::options().write(true).open(&file.0)?.set_len(SIZE)?;
    let memfd = File::from(memfd_create("exported", MemfdFlags::CLOEXEC)?);
    memfd.write_all_at(&bytes_of(&contents(7)), 7 * PAGE_SIZE as u64)?;
    memfd.set_len(10 * PAGE_SIZE as u64)?;
    let fd = format!("memfd=/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd());
    let source = Source::new(&[&file.export("holes"), &fd])?;
    let daemon = Daemon::new(&source.address, &[])?;
    let (holes, other) = (open("holes")?, open("memfd")?);
    let (holes_memory, other_memory) = (map(&holes)?, map(&other)?);
    for pgoff in 0..100 {
        check_page(&holes_memory, pgoff)?;
    }
    for (memory, pgoff, expected) in [
        (&holes_memory, 1500, None),
        (&other_memory, 6, None),
        (&other_memory, 7, Some(7)),
    ] {
        let mut page = vec![1; PAGE_SIZE];
        memory.read_at(pgoff * PAGE_SIZE, &mut page)?;
        equal!(page, expected.map_or(vec![0; PAGE_SIZE], |of| bytes_of(&contents(of))));
    }
    let end = daemon.end()?.with_code(0)?;
    equal!(end.number("data_bytes")?, 81 * PAGE_SIZE as u64);
    Ok(())
}

fn no_background_fetches_only_touched_pages() -> Outcome {
    let file = Scratch::new("demand", PAGES)?;
    let source = Source::new(&[&file.export("demand")])?;
    let daemon = Daemon::new(&source.address, &["--no-background"])?;
    let handle = open("demand")?;
    let memory = map(&handle)?;
    for pgoff in [1999, 3, 14, 1000] {
        check_page(&memory, pgoff)?;
    }
    let info = handle.info()?;
    equal!((info.present, info.requests), (4, 4));
    daemon.process.terminate()?;
    let end = daemon.end()?.with_code(6)?;
    equal!((end.number("faults")?, end.number("duplicate_bytes")?), (4, 0));
    equal!(handle.info()?.present, 4);
    Ok(())
}

fn pages_ahead_of_equal_steps_are_fetched_and_no_others() -> Outcome {
    let file = Scratch::new("ahead", PAGES)?;
    let source = Source::new(&[&file.export("ahead")])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--prefetch", "8"])?;
    let handle = open("ahead")?;
    let memory = map(&handle)?;
    for pgoff in [1999, 3, 14, 1000] {
        check_page(&memory, pgoff)?;
    }
    equal!(handle.info()?.present, 4);
    // The third request on a walk brings four pages more, the next one eight.
    for pgoff in [100, 110, 120] {
        check_page(&memory, pgoff)?;
    }
    wait_info(&handle, "four pages come unasked", |info| info.present == 4 + 3 + 4)?;
    for pgoff in [130, 140, 150, 160] {
        check_page(&memory, pgoff)?;
    }
    let info = handle.info()?;
    equal!((info.present, info.requests), (11, 7));
    check_page(&memory, 170)?;
    wait_info(&handle, "eight pages come unasked", |info| info.present == 11 + 1 + 8)?;
    check_page(&memory, 250)?;
    equal!(handle.info()?.requests, 8);
    daemon.process.terminate()?;
    let end = daemon.end()?.with_code(6)?;
    equal!((end.number("faults")?, end.number("duplicate_bytes")?), (8, 0));
    Ok(())
}
