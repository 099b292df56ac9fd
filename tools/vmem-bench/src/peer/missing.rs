// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd, MISSING, on private anonymous memory: the way of most post-copy migrations.

use vmem_bench_sys::{Memory, Mode, Sharing, Userfault};

use super::{Claims, Peer};
use crate::contents::Contents;
use crate::failure::{During, Outcome};

/// userfaultfd on private anonymous memory.
pub(crate) struct Missing {
    /// Before the memory: once it is closed, the memory is ordinary.
    faults: Userfault,
    memory: Memory,
    claims: Claims,
}

impl Missing {
    /// So many pages, all absent.
    pub(crate) fn new(pages: u64) -> Outcome<Self> {
        let memory = Memory::anonymous(pages as usize, Sharing::Private).during("mmap")?;
        let faults = Userfault::new(&memory, Mode::Missing).during("userfaultfd, MISSING")?;
        Ok(Self {
            faults,
            memory,
            claims: Claims::new(pages),
        })
    }
}

impl Peer for Missing {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn take(&self, pages: &mut Vec<u64>) -> Outcome {
        self.faults.take(pages).during("read of a userfaultfd")
    }

    fn bring(&self, pages: &[u64], contents: &Contents) -> Outcome {
        for page in pages {
            if self.claims.claim(*page) {
                self.faults.copy(*page, contents.of(*page, 1)).during("UFFDIO_COPY")?;
            }
        }
        Ok(())
    }

    fn bring_run(&self, first: u64, pages: usize, contents: &Contents) -> Outcome {
        self.faults.copy(first, contents.of(first, pages)).during("UFFDIO_COPY")
    }
}
