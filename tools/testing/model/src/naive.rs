// SPDX-License-Identifier: GPL-2.0-or-later

//! What a page map is, written so that it is seen to be right: one state a page.

use crate::model::page_map::{Counts, Settled, Touch, Verdict};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Absent,
    Queued,
    Taken,
    Claimed,
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

    pub(crate) fn is_claimed(&self, slot: usize) -> bool {
        self.0[slot] == Page::Claimed
    }

    pub(crate) fn is_awaited(&self, slot: usize) -> bool {
        matches!(self.0[slot], Page::Queued | Page::Taken | Page::Claimed)
    }

    pub(crate) fn claim(&mut self, slot: usize) -> Touch {
        match self.0[slot] {
            Page::Absent => {
                self.0[slot] = Page::Claimed;
                Touch::NewlyClaimed
            }
            _ => self.touch(slot),
        }
    }

    /// The run of absent pages around `at`, from `first` up to `first + nr`, which are claimed. The first of them, and how many.
    pub(crate) fn claim_around(&mut self, first: usize, nr: usize, at: usize) -> (usize, usize) {
        let (mut start, mut end) = (at, at + 1);
        while start > first && self.0[start - 1] == Page::Absent {
            start -= 1;
        }
        while end < first + nr && self.0[end] == Page::Absent {
            end += 1;
        }
        for slot in (start..end).filter(|slot| *slot != at) {
            self.0[slot] = Page::Claimed;
        }
        (start, end - start)
    }

    pub(crate) fn release(&mut self, first: usize, nr: usize, requests: bool) -> u64 {
        let to = if requests { Page::Queued } else { Page::Absent };
        self.change(first, nr, &[Page::Claimed], to)
    }

    pub(crate) fn withdraw(&mut self, first: usize, nr: usize) -> u64 {
        self.change(first, nr, &[Page::Queued, Page::Taken], Page::Absent)
    }

    fn change(&mut self, first: usize, nr: usize, from: &[Page], to: Page) -> u64 {
        let pages = self.0[first..first + nr].iter_mut().filter(|page| from.contains(page));
        pages.map(|page| *page = to).count() as u64
    }

    pub(crate) fn touch(&mut self, slot: usize) -> Touch {
        match self.0[slot] {
            Page::Present => Touch::Present,
            Page::Unreadable => Touch::Unreadable,
            Page::Queued | Page::Taken => Touch::AlreadyRequested,
            Page::Claimed => Touch::AlreadyClaimed,
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
            done.wake |= matches!(before, Page::Queued | Page::Taken | Page::Claimed);
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
        self.change(first, nr, &[Page::Taken], Page::Queued)
    }
}
