// SPDX-License-Identifier: GPL-2.0
//! userfaultfd's write protection: a thread is told of each page that is about to be written to, copies it, and ends its protection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_bench_sys::{Memory, Mode, Userfault};

use super::Keeper;
use crate::contents::Contents;
use crate::failure::{During, Outcome};
use crate::tracker::full_file;

const BITS: u64 = u64::BITS as u64;

/// Memory whose pages are copied when they are written to.
pub(crate) struct Copies {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    faults: Userfault,
    memory: Memory,
    /// A bit for each page that was copied.
    copied: Vec<AtomicU64>,
    /// A copy of each page, at its place. Its memory is there from the start.
    copies: Mutex<Vec<u8>>,
    /// A write to this page, behind those that are measured, stops the thread.
    last: u64,
}

impl Copies {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let (_, memory) = full_file(pages + 1, contents)?;
        let faults = Userfault::new(&memory, Mode::WriteProtect).during("userfaultfd, WP")?;
        let shared = Arc::new(Shared {
            faults,
            memory,
            copied: (0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            copies: Mutex::new(vec![1; pages as usize * PAGE_SIZE]),
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

impl Shared {
    fn serve(&self) -> Outcome {
        let mut pages = Vec::new();
        loop {
            self.faults.take(&mut pages).during("read of a userfaultfd")?;
            for page in &pages {
                if let Some(word) = self.copied.get((page / BITS) as usize) {
                    let at = *page as usize * PAGE_SIZE;
                    let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
                    self.memory.read_pages(*page as usize, &mut copies[at..at + PAGE_SIZE]);
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

impl Keeper for Copies {
    fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    fn take(&mut self) -> Outcome<Option<Duration>> {
        self.shared.copied.iter().for_each(|word| word.store(0, Ordering::Release));
        self.shared.protect(0, self.shared.last as usize, true)?;
        Ok(None)
    }

    fn read(&mut self, first: u64, to: &mut [u8]) -> Outcome {
        for (page, to) in (first..).zip(to.chunks_exact_mut(PAGE_SIZE)) {
            let word = self.shared.copied[(page / BITS) as usize].load(Ordering::Acquire);
            // A page may be written to while it is read here: whoever does it looks again, as the kernel does. Here nobody writes.
            if word & (1 << (page % BITS)) == 0 {
                self.shared.memory.read_pages(page as usize, to);
            } else {
                let at = page as usize * PAGE_SIZE;
                let copies = self.shared.copies.lock().unwrap_or_else(PoisonError::into_inner);
                to.copy_from_slice(&copies[at..at + PAGE_SIZE]);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Outcome {
        self.shared.protect(0, self.shared.last as usize, false)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let stops = self.shared.protect(self.shared.last, 1, true).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| stops) {
            self.shared.memory.write(self.shared.last as usize, 0);
            // A thread that panicked has ended the process in its own words.
            let _ = thread.join();
        }
    }
}
