// SPDX-License-Identifier: GPL-2.0-or-later
//! Holes of the source's memory, which need not be asked for.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use vmem::PAGE_SIZE;

use super::{Daemon, Source, map, open};
use crate::failure::{Outcome, ensure, equal};
use crate::link::Link;
use crate::setting::{bytes_of, contents};

crate::tests![large_sparse_memory_is_present_after_little_has_been_sent];

/// 64 GiB.
const PAGES: u64 = 1 << 24;
/// Pages with contents.
const DATA: u64 = 200;

fn large_sparse_memory_is_present_after_little_has_been_sent() -> Outcome {
    let memfd = File::from(memfd_create("sparse", MemfdFlags::CLOEXEC)?);
    memfd.set_len(PAGES * PAGE_SIZE as u64)?;
    // Not at equal distances, and one at each end.
    let data: Vec<u64> = (0..DATA)
        .map(|number| number * number * (PAGES - 1) / ((DATA - 1) * (DATA - 1)))
        .collect();
    for page in &data {
        memfd.write_all_at(&bytes_of(&contents(*page)), page * PAGE_SIZE as u64)?;
    }
    let fd = format!("sparse=/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd());
    let source = Source::new(&[&fd])?;
    let link = Link::new(&source.address, 1 << 30)?;
    let began = Instant::now();
    // Page tables of holes would take memory.
    let daemon = Daemon::new(&link.address, &["--no-populate"])?;
    let handle = open("sparse")?;
    let memory = map(&handle)?;
    // Somebody waits for a page of the last hole, whatever is marked meanwhile.
    for page in [PAGES - 2, data[DATA as usize / 2], 1] {
        let mut found = vec![1; PAGE_SIZE];
        memory.read_at(page as usize * PAGE_SIZE, &mut found)?;
        let expected = if data.contains(&page) {
            bytes_of(&contents(page))
        } else {
            vec![0; PAGE_SIZE]
        };
        ensure!(found == expected, "page {page} is not that of the source");
    }
    let end = daemon.end()?.with_code(0)?;
    println!("64 GiB, {DATA} pages of data: {:.3} s", began.elapsed().as_secs_f64());
    equal!(end.number("data_bytes")?, DATA * PAGE_SIZE as u64);
    equal!(
        end.number("data_bytes")? + end.number("zero_bytes")?,
        PAGES * PAGE_SIZE as u64
    );
    // The data is 0.8 MiB. Answers to questions about all pages would take 3 MiB more.
    ensure!(link.passed() < 3 << 19, "{} bytes were sent", link.passed());
    for page in data {
        let mut found = vec![1; PAGE_SIZE];
        memory.read_at(page as usize * PAGE_SIZE, &mut found)?;
        ensure!(found == bytes_of(&contents(page)), "page {page} is not that of the source");
    }
    Ok(())
}
