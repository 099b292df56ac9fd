// SPDX-License-Identifier: GPL-2.0-or-later
//! Plain shmem without a daemon: what the kernel alone costs.

use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;
use vmem_bench_sys::Memory;

use super::{Peer, map, shmem_file};
use crate::contents::Contents;
use crate::failure::{During, Failure, Outcome};

/// A fault maps the pages around that are in the file (`fault_around_bytes`). So that each touch is a fault, only one in so many is.
const SPREAD: u64 = 16;

/// Plain shmem.
pub(crate) struct Shmem {
    memory: Memory,
    spread: u64,
}

impl Shmem {
    /// All pages are in the file, and none in the page tables.
    pub(crate) fn full(pages: u64, contents: &Contents) -> Outcome<Self> {
        let file = shmem_file(pages * SPREAD)?;
        for page in 0..pages {
            file.write_all_at(contents.of(page, 1), page * SPREAD * PAGE_SIZE as u64)
                .during("write to a memfd")?;
        }
        let memory = map(&file, pages * SPREAD)?;
        Ok(Self { memory, spread: SPREAD })
    }

    /// The file is empty.
    pub(crate) fn empty(pages: u64) -> Outcome<Self> {
        let memory = map(&shmem_file(pages)?, pages)?;
        Ok(Self { memory, spread: 1 })
    }
}

fn no_daemon() -> Outcome {
    Err(Failure::Wrong("plain memory has no daemon".into()))
}

impl Peer for Shmem {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn place(&self, page: u64) -> u64 {
        page * self.spread
    }

    fn take(&self, _: &mut Vec<u64>) -> Outcome {
        no_daemon()
    }

    fn bring(&self, _: &[u64], _: &Contents) -> Outcome {
        no_daemon()
    }

    fn bring_run(&self, _: u64, _: usize, _: &Contents) -> Outcome {
        no_daemon()
    }
}
