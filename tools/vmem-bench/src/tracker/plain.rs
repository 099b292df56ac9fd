// SPDX-License-Identifier: GPL-2.0-or-later
//! Shmem without a log: what the kernel alone costs.

use vmem_bench_sys::Memory;

use super::Tracker;
use crate::contents::Contents;
use crate::failure::{During, Outcome};
use crate::filled::filled_file;

/// Plain shmem.
pub(crate) struct Plain {
    memory: Memory,
}

impl Plain {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (_, memory) = filled_file(pages, contents)?;
        Ok(Self { memory })
    }
}

impl Tracker for Plain {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn begin(&mut self) -> Outcome {
        self.memory.forget().during("madvise(MADV_DONTNEED)")
    }

    fn clean(&mut self) -> Outcome {
        self.begin()
    }

    fn written(&self) -> Option<Vec<u64>> {
        None
    }
}
