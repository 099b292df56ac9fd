// SPDX-License-Identifier: GPL-2.0-or-later
//! Soft-dirty bits. The log is the whole process's, and what is written between the two halves of [`Tracker::clean`] is in none: who uses
//! this stops the process for that time.

use vmem_bench_sys::{Memory, Pagemap};

use super::Tracker;
use crate::contents::Contents;
use crate::failure::{During, Outcome};
use crate::filled::filled_file;

/// Memory whose soft-dirty bits are looked at.
pub(crate) struct SoftDirty {
    memory: Memory,
    pagemap: Pagemap,
    found: Vec<u64>,
}

impl SoftDirty {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (_, memory) = filled_file(pages, contents)?;
        Ok(Self {
            memory,
            pagemap: Pagemap::open(pages as usize).during("open /proc/self/pagemap")?,
            found: Vec::with_capacity(pages as usize),
        })
    }
}

impl Tracker for SoftDirty {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn begin(&mut self) -> Outcome {
        std::fs::write("/proc/self/clear_refs", "4").during("write /proc/self/clear_refs")
    }

    fn clean(&mut self) -> Outcome {
        self.pagemap
            .soft_dirty(&self.memory, &mut self.found)
            .during("read /proc/self/pagemap")?;
        self.begin()
    }

    fn written(&self) -> Option<Vec<u64>> {
        Some(self.found.clone())
    }
}
