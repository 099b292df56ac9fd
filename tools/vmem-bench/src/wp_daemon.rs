// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd's write protection, with a daemon: a thread is told of each page that is about to be written to, does what is to be done before
//! that, and ends the page's protection.

use std::sync::Arc;
use std::thread::JoinHandle;

use vmem_bench_sys::{Memory, Mode, Userfault};

use crate::contents::Contents;
use crate::failure::{During, Outcome};
use crate::filled::filled_file;

/// What is done before a page is written to.
pub(crate) trait Before: Send + Sync + 'static {
    /// The program is about to write to this page of the memory.
    fn write(&self, memory: &Memory, page: u64);
}

/// Memory with such a daemon.
pub(crate) struct WpDaemon<B> {
    shared: Arc<Shared<B>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<B> {
    /// Before the memory: once it is closed, the memory is ordinary.
    faults: Userfault,
    memory: Memory,
    before: B,
    /// A write to this page, behind those that are measured, stops the thread.
    last: u64,
}

impl<B: Before> WpDaemon<B> {
    /// So many pages, none of them protected.
    pub(crate) fn new(pages: u64, contents: &Contents, before: B) -> Outcome<Self> {
        let (_, memory) = filled_file(pages + 1, contents)?;
        let faults = Userfault::new(&memory, Mode::WriteProtect).during("userfaultfd, WP")?;
        let shared = Arc::new(Shared {
            faults,
            memory,
            before,
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
            thread: Some(thread),
        })
    }
}

impl<B> WpDaemon<B> {
    /// The memory.
    pub(crate) fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// What is done before a page is written to.
    pub(crate) fn before(&self) -> &B {
        &self.shared.before
    }

    /// Protects these pages, or ends that.
    pub(crate) fn protect(&self, page: u64, nr: usize, protect: bool) -> Outcome {
        self.shared.protect(page, nr, protect)
    }

    /// The same for all that are measured.
    pub(crate) fn protect_all(&self, protect: bool) -> Outcome {
        self.shared.protect(0, self.shared.last as usize, protect)
    }
}

impl<B> Shared<B> {
    fn protect(&self, page: u64, nr: usize, protect: bool) -> Outcome {
        self.faults.protect(page, nr, protect).during("UFFDIO_WRITEPROTECT")
    }
}

impl<B: Before> Shared<B> {
    fn serve(&self) -> Outcome {
        let mut pages = Vec::new();
        loop {
            self.faults.take(&mut pages).during("read of a userfaultfd")?;
            for page in &pages {
                if *page != self.last {
                    self.before.write(&self.memory, *page);
                }
                self.protect(*page, 1, false)?;
            }
            if pages.contains(&self.last) {
                return Ok(());
            }
        }
    }
}

impl<B> Drop for WpDaemon<B> {
    fn drop(&mut self) {
        let last = self.shared.last;
        let stops = self.protect(last, 1, true).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| stops) {
            self.memory().write(last as usize, 0);
            // A thread that panicked has ended the process in its own words.
            let _ = thread.join();
        }
    }
}
