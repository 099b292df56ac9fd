// SPDX-License-Identifier: GPL-2.0-or-later
//! What a checkpoint changes: for each page that was put, what is known of it.

use std::collections::HashMap;

use vmem_pages::PageRange;

use crate::leaf::{Entry, LEAF_PAGES};

/// A page of a leaf that was put in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Not put.
    Untouched,
    /// Put, and in a frame that is not in a pack yet.
    Pending,
    Known(Entry),
}

#[derive(Debug)]
enum Leaf {
    /// All of its pages are the same: a whole leaf takes no more memory than one page.
    Whole(Entry),
    Slots(Box<[Slot; LEAF_PAGES as usize]>),
}

/// The leaves of which a page was put, by backend and leaf.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    leaves: HashMap<(usize, u64), Leaf>,
}

impl Overlay {
    fn slot(&mut self, backend: usize, pgoff: u64) -> &mut Slot {
        let leaf = self
            .leaves
            .entry((backend, pgoff / LEAF_PAGES))
            .or_insert_with(|| Leaf::Slots(Box::new([Slot::Untouched; LEAF_PAGES as usize])));
        if let Leaf::Whole(entry) = *leaf {
            *leaf = Leaf::Slots(Box::new([Slot::Known(entry); LEAF_PAGES as usize]));
        }
        match leaf {
            Leaf::Slots(slots) => &mut slots[(pgoff % LEAF_PAGES) as usize],
            Leaf::Whole(_) => unreachable!("it has slots now"),
        }
    }

    /// Marks a page as put. `Err` is the page, if it was put before.
    pub(super) fn claim(&mut self, backend: usize, pgoff: u64) -> Result<(), u64> {
        match self.slot(backend, pgoff) {
            slot @ Slot::Untouched => {
                *slot = Slot::Pending;
                Ok(())
            }
            _ => Err(pgoff),
        }
    }

    /// What is known of a page that was claimed.
    pub(super) fn set(&mut self, backend: usize, pgoff: u64, entry: Entry) {
        *self.slot(backend, pgoff) = Slot::Known(entry);
    }

    /// Claims and sets pages in a row. `Err` is the first that was put before.
    pub(super) fn set_range(&mut self, backend: usize, pages: PageRange, entry: Entry) -> Result<(), u64> {
        let mut at = pages.first().get();
        while at < pages.end() {
            let end = ((at / LEAF_PAGES + 1) * LEAF_PAGES).min(pages.end());
            if end - at == LEAF_PAGES && !self.leaves.contains_key(&(backend, at / LEAF_PAGES)) {
                self.leaves.insert((backend, at / LEAF_PAGES), Leaf::Whole(entry));
            } else {
                for pgoff in at..end {
                    self.claim(backend, pgoff)?;
                    self.set(backend, pgoff, entry);
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Whether a page of the leaf was put.
    pub(super) fn has(&self, backend: usize, leaf: u64) -> bool {
        self.leaves.contains_key(&(backend, leaf))
    }

    /// What was put of a leaf.
    pub(super) fn get(&self, backend: usize, pgoff: u64) -> Slot {
        match self.leaves.get(&(backend, pgoff / LEAF_PAGES)) {
            Some(Leaf::Whole(entry)) => Slot::Known(*entry),
            Some(Leaf::Slots(slots)) => slots[(pgoff % LEAF_PAGES) as usize],
            None => Slot::Untouched,
        }
    }
}
