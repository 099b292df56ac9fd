// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd's write protection, with a daemon and without one.

use std::sync::atomic::{AtomicU64, Ordering};

use vmem_bench_sys::{Memory, Mode, Pagemap, Userfault};

use super::Tracker;
use crate::contents::Contents;
use crate::failure::{During, Outcome};
use crate::filled::filled_file;
use crate::wp_daemon::{Before, WpDaemon};

const BITS: u64 = u64::BITS as u64;

/// The kernel ends the protection of a page that is written to, and tells of it when it is asked.
pub(crate) struct Async {
    /// Before the memory: once it is closed, the memory is ordinary.
    faults: Userfault,
    memory: Memory,
    pagemap: Pagemap,
    /// First page and number of pages.
    found: Vec<(u64, u64)>,
}

impl Async {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (_, memory) = filled_file(pages, contents)?;
        let faults = Userfault::new(&memory, Mode::WriteProtectAsync).during("userfaultfd, WP_ASYNC")?;
        Ok(Self {
            faults,
            memory,
            pagemap: Pagemap::open(pages as usize).during("open /proc/self/pagemap")?,
            found: Vec::with_capacity(pages as usize),
        })
    }
}

impl Tracker for Async {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn begin(&mut self) -> Outcome {
        let all = self.memory.pages();
        self.faults.protect(0, all, true).during("UFFDIO_WRITEPROTECT")
    }

    fn clean(&mut self) -> Outcome {
        self.pagemap
            .protect_written(&self.memory, &mut self.found)
            .during("PAGEMAP_SCAN")
    }

    fn written(&self) -> Option<Vec<u64>> {
        let runs = self.found.iter();
        Some(runs.flat_map(|(first, nr)| *first..first + nr).collect())
    }
}

/// A daemon notes each page that is written to.
pub(crate) struct Daemon {
    daemon: WpDaemon<Log>,
    found: Vec<u64>,
}

/// A bit a page.
struct Log(Vec<AtomicU64>);

impl Before for Log {
    fn write(&self, _memory: &Memory, page: u64) {
        if let Some(word) = self.0.get((page / BITS) as usize) {
            word.fetch_or(1 << (page % BITS), Ordering::AcqRel);
        }
    }
}

impl Daemon {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let log = Log((0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect());
        Ok(Self {
            daemon: WpDaemon::new(pages, contents, log)?,
            found: Vec::with_capacity(pages as usize),
        })
    }
}

impl Tracker for Daemon {
    fn memory(&self) -> &Memory {
        self.daemon.memory()
    }

    fn begin(&mut self) -> Outcome {
        self.daemon.protect_all(true)
    }

    fn clean(&mut self) -> Outcome {
        self.found.clear();
        for (at, word) in (0..).zip(&self.daemon.before().0) {
            let mut left = word.swap(0, Ordering::AcqRel);
            while left != 0 {
                self.found.push(at * BITS + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        // One call for each run.
        for run in self.found.chunk_by(|page, next| page + 1 == *next) {
            self.daemon.protect(run[0], run.len(), true)?;
        }
        Ok(())
    }

    fn written(&self) -> Option<Vec<u64>> {
        Some(self.found.clone())
    }
}
