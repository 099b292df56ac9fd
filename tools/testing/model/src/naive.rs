// SPDX-License-Identifier: GPL-2.0

//! What a page map is, written so that it is seen to be right: one state a page.

use crate::model::page_map::{Counts, Settled, Touch, Verdict};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Absent,
    Queued,
    Taken,
    Present,
    Unreadable,
}

/// The pages of one shard.
pub(crate) struct Naive(Vec<Page>);

impl Naive {
    pub(crate) fn new(slots: usize) -> Self {
        Self(vec![Page::Absent; slots])
    }

    fn count(&self, wanted: &[Page]) -> u64 {
        self.0.iter().filter(|page| wanted.contains(page)).count() as u64
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            present: self.count(&[Page::Present]),
            unreadable: self.count(&[Page::Unreadable]),
            requested: self.count(&[Page::Queued, Page::Taken]),
            queued: self.count(&[Page::Queued]),
        }
    }

    pub(crate) fn is_present(&self, slot: usize) -> bool {
        self.0[slot] == Page::Present
    }

    pub(crate) fn is_settled(&self, slot: usize) -> bool {
        matches!(self.0[slot], Page::Present | Page::Unreadable)
    }

    pub(crate) fn is_requested(&self, slot: usize) -> bool {
        matches!(self.0[slot], Page::Queued | Page::Taken)
    }

    pub(crate) fn touch(&mut self, slot: usize) -> Touch {
        match self.0[slot] {
            Page::Present => Touch::Present,
            Page::Unreadable => Touch::Unreadable,
            Page::Queued | Page::Taken => Touch::AlreadyRequested,
            Page::Absent => {
                self.0[slot] = Page::Queued;
                Touch::NewlyRequested
            }
        }
    }

    pub(crate) fn settle(&mut self, first: usize, nr: usize, verdict: Verdict) -> Settled {
        let mut done = Settled::default();
        for page in &mut self.0[first..first + nr] {
            let before = *page;
            *page = match (before, verdict) {
                (Page::Present, _) => Page::Present,
                (_, Verdict::Present) => Page::Present,
                (_, Verdict::Unreadable) => Page::Unreadable,
            };
            done.changed += u64::from(*page != before);
            done.wake |= matches!(before, Page::Queued | Page::Taken);
        }
        done
    }

    /// Takes up to `max` requests, lowest slot first.
    pub(crate) fn take(&mut self, max: usize) -> Vec<usize> {
        let queued = |(slot, page): (usize, &Page)| (*page == Page::Queued).then_some(slot);
        let taken: Vec<usize> = self.0.iter().enumerate().filter_map(queued).take(max).collect();
        for &slot in &taken {
            self.0[slot] = Page::Taken;
        }
        taken
    }

    pub(crate) fn requeue(&mut self, first: usize, nr: usize) -> u64 {
        let mut back = 0;
        for page in &mut self.0[first..first + nr] {
            if *page == Page::Taken {
                *page = Page::Queued;
                back += 1;
            }
        }
        back
    }
}
