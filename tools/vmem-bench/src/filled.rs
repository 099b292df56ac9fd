// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory that the ways of the write side are compared on.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;
use vmem_bench_sys::Memory;

use crate::contents::{Contents, POOL};
use crate::failure::{During, Outcome};
use crate::peer::{map, shmem_file};

/// A file of so many pages, all there, and a mapping of it in whose page tables none is.
pub(crate) fn filled_file(pages: u64, contents: &Contents) -> Outcome<(File, Memory)> {
    let file = shmem_file(pages)?;
    for first in (0..pages).step_by(POOL) {
        let run = (pages - first).min(POOL as u64) as usize;
        file.write_all_at(contents.of(first, run), first * PAGE_SIZE as u64)
            .during("write to a memfd")?;
    }
    let memory = map(&file, pages)?;
    Ok((file, memory))
}
