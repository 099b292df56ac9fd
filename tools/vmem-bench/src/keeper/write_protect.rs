// SPDX-License-Identifier: GPL-2.0-or-later
//! userfaultfd's write protection, with a daemon that copies each page that is about to be written to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vmem::PAGE_SIZE;
use vmem_bench_sys::Memory;

use super::Keeper;
use crate::contents::Contents;
use crate::failure::Outcome;
use crate::wp_daemon::{Before, WpDaemon};

const BITS: u64 = u64::BITS as u64;

/// Memory whose pages are copied when they are written to.
pub(crate) struct Copying(WpDaemon<Copies>);

struct Copies {
    /// A bit for each page that was copied.
    copied: Vec<AtomicU64>,
    /// A copy of each page, at its place. Its memory is there from the start.
    copies: Mutex<Vec<u8>>,
}

impl Copies {
    /// Does something with the place of a page's copy.
    fn with(&self, page: u64, mut copy: impl FnMut(&mut [u8])) {
        let at = page as usize * PAGE_SIZE;
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copy(&mut copies[at..at + PAGE_SIZE]);
    }
}

impl Before for Copies {
    fn write(&self, memory: &Memory, page: u64) {
        if let Some(word) = self.copied.get((page / BITS) as usize) {
            self.with(page, |copy| memory.read_pages(page as usize, copy));
            word.fetch_or(1 << (page % BITS), Ordering::AcqRel);
        }
    }
}

impl Copying {
    /// So many pages.
    pub(crate) fn new(pages: u64, contents: &Contents) -> Outcome<Self> {
        let copies = Copies {
            copied: (0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            copies: Mutex::new(vec![1; pages as usize * PAGE_SIZE]),
        };
        Ok(Self(WpDaemon::new(pages, contents, copies)?))
    }
}

impl Keeper for Copying {
    fn memory(&self) -> &Memory {
        self.0.memory()
    }

    fn take(&mut self) -> Outcome<Option<Duration>> {
        let copied = self.0.before().copied.iter();
        copied.for_each(|word| word.store(0, Ordering::Release));
        self.0.protect_all(true)?;
        Ok(None)
    }

    fn read(&mut self, first: u64, to: &mut [u8]) -> Outcome {
        let copies = self.0.before();
        for (page, to) in (first..).zip(to.chunks_exact_mut(PAGE_SIZE)) {
            let word = copies.copied[(page / BITS) as usize].load(Ordering::Acquire);
            // A page may be written to while it is read here: whoever does it looks again, as the kernel does. Here nobody writes.
            if word & (1 << (page % BITS)) == 0 {
                self.0.memory().read_pages(page as usize, to);
            } else {
                copies.with(page, |copy| to.copy_from_slice(copy));
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Outcome {
        self.0.protect_all(false)
    }
}
