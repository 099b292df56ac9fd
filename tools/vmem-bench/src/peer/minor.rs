// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd, MINOR, on a shmem file that the daemon has too: the way of who shares memory between processes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmem::PAGE_SIZE;
use vmem_bench_sys::{Memory, Mode, Userfault};

use super::{Claims, Peer, map, shmem_file};
use crate::contents::Contents;
use crate::failure::{During, Outcome};

/// How the daemon puts contents into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// `pwrite`: the page is allocated without zeroing.
    Call,
    /// Stores into a mapping of its own: the first one is a fault that zeroes the page.
    Store,
}

/// userfaultfd on a shmem file.
pub(crate) struct Minor {
    /// Before the memory: once it is closed, the memory is ordinary.
    faults: Userfault,
    memory: Memory,
    file: File,
    /// The daemon's own.
    stage: Memory,
    write: Write,
    claims: Claims,
}

impl Minor {
    /// So many pages, all absent.
    pub(crate) fn new(pages: u64, write: Write) -> Outcome<Self> {
        let file = shmem_file(pages)?;
        let memory = map(&file, pages)?;
        let stage = map(&file, pages)?;
        let faults = Userfault::new(&memory, Mode::Minor).during("userfaultfd, MINOR")?;
        Ok(Self {
            faults,
            memory,
            file,
            stage,
            write,
            claims: Claims::new(pages),
        })
    }

    fn resume(&self, first: u64, pages: usize) -> Outcome {
        self.faults.resume(first, pages).during("UFFDIO_CONTINUE")
    }

    fn write(&self, page: u64, contents: &[u8]) -> Outcome {
        match self.write {
            Write::Call => {
                let written = self.file.write_all_at(contents, page * PAGE_SIZE as u64);
                written.during("write to a memfd")
            }
            Write::Store => {
                self.stage.write_pages(page as usize, contents);
                Ok(())
            }
        }
    }
}

impl Peer for Minor {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn take(&self, pages: &mut Vec<u64>) -> Outcome {
        self.faults.take(pages).during("read of a userfaultfd")
    }

    fn bring(&self, pages: &[u64], contents: &Contents) -> Outcome {
        for page in pages {
            if self.claims.claim(*page) {
                self.write(*page, contents.of(*page, 1))?;
                self.resume(*page, 1)?;
            }
        }
        Ok(())
    }

    fn bring_unasked(&self, pages: &[u64], contents: &Contents) -> Outcome {
        pages.iter().try_for_each(|page| self.bring_run(*page, 1, contents))
    }

    fn bring_run(&self, first: u64, pages: usize, contents: &Contents) -> Outcome {
        self.write(first, contents.of(first, pages))
    }

    fn bring_block(&self, first: u64, pages: usize, contents: &Contents) -> Outcome {
        self.write(first, contents.of(first, pages))?;
        self.resume(first, pages)
    }

    /// One call for all pages: nobody has waited for one.
    fn finish(&self) -> Outcome {
        self.resume(0, self.memory.pages())
    }
}
