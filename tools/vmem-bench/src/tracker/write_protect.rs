// SPDX-License-Identifier: GPL-2.0
//! userfaultfd's write protection, with a daemon and without one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use vmem_bench_sys::{Memory, Mode, Pagemap, Userfault};

use super::{Tracker, full_file};
use crate::contents::Contents;
use crate::failure::{During, Outcome};

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
        let (_, memory) = full_file(pages, contents)?;
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

/// A thread is told of each page that is written to, notes it, and ends its protection.
pub(crate) struct Daemon {
    shared: Arc<Shared>,
    memory: Memory,
    found: Vec<u64>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    faults: Userfault,
    /// A bit a page.
    log: Vec<AtomicU64>,
    /// A write to this page, behind those that are measured, stops the thread.
    last: u64,
}

impl Daemon {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (_, memory) = full_file(pages + 1, contents)?;
        let faults = Userfault::new(&memory, Mode::WriteProtect).during("userfaultfd, WP")?;
        let shared = Arc::new(Shared {
            faults,
            log: (0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            last: pages,
        });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            // One that fails ends the process: who waits to write to a page would wait for ever.
            move || {
                shared.serve().unwrap_or_else(|failure| {
                    eprintln!("vmem-bench: the daemon failed: {:#}", anyhow::Error::from(failure));
                    std::process::exit(1)
                })
            }
        });
        Ok(Self {
            shared,
            memory,
            found: Vec::with_capacity(pages as usize),
            thread: Some(thread),
        })
    }
}

impl Shared {
    fn serve(&self) -> Outcome {
        let mut pages = Vec::new();
        loop {
            self.faults.take(&mut pages).during("read of a userfaultfd")?;
            for page in &pages {
                if let Some(word) = self.log.get((page / BITS) as usize) {
                    word.fetch_or(1 << (page % BITS), Ordering::AcqRel);
                }
                self.protect(*page, 1, false)?;
            }
            if pages.contains(&self.last) {
                return Ok(());
            }
        }
    }

    fn protect(&self, page: u64, nr: usize, protect: bool) -> Outcome {
        self.faults.protect(page, nr, protect).during("UFFDIO_WRITEPROTECT")
    }
}

impl Tracker for Daemon {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn begin(&mut self) -> Outcome {
        self.shared.protect(0, self.shared.last as usize, true)
    }

    fn clean(&mut self) -> Outcome {
        self.found.clear();
        for (at, word) in (0..).zip(&self.shared.log) {
            let mut left = word.swap(0, Ordering::AcqRel);
            while left != 0 {
                self.found.push(at * BITS + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        // One call for each run.
        for run in self.found.chunk_by(|page, next| page + 1 == *next) {
            self.shared.protect(run[0], run.len(), true)?;
        }
        Ok(())
    }

    fn written(&self) -> Option<Vec<u64>> {
        Some(self.found.clone())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let stops = self.shared.protect(self.shared.last, 1, true).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| stops) {
            self.memory.write(self.shared.last as usize, 0);
            // A thread that panicked has ended the process in its own words.
            let _ = thread.join();
        }
    }
}
