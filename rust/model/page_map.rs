// SPDX-License-Identifier: GPL-2.0

//! The state of each page of a shard.
//!
//! Three bits for each page, in three planes:
//!
//! | settled | wanted | queued | the page is                                       |
//! |---------|--------|--------|---------------------------------------------------|
//! | 0       | 0      | 0      | absent                                            |
//! | 0       | 1      | 1      | requested, and the daemon has not taken it        |
//! | 0       | 1      | 0      | requested, and the daemon has taken it            |
//! | 1       | 0      | 0      | present                                           |
//! | 1       | 1      | 0      | unreadable                                        |
//!
//! No other combination occurs. A present page stays present. A fourth plane has one bit for each
//! word of `queued`, so that finding the next request is cheap in a large, quiet region.

use super::shards::Slots;
use core::ops::DerefMut;

const WORD: usize = u64::BITS as usize;

/// What a touch of a page finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// The page is present.
    Present,
    /// The page is unreadable.
    Unreadable,
    /// The page is absent. This touch is the first one to request it.
    NewlyRequested,
    /// The page is absent, and was requested before.
    AlreadyRequested,
}

/// The daemon's decision about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The page's contents are in the staging file. A hole in that file is a page of zeros.
    Present,
    /// The daemon cannot get the page's contents.
    Unreadable,
}

/// What [`PageMap::settle`] has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// How many pages have a new state.
    pub(crate) changed: u64,
    /// Whether one of these pages was requested, so that a thread may wait for it.
    pub(crate) wake: bool,
}

/// How many pages are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Present pages.
    pub(crate) present: u64,
    /// Unreadable pages.
    pub(crate) unreadable: u64,
    /// Absent pages that are requested.
    pub(crate) requested: u64,
    /// Requests that the daemon has not taken.
    pub(crate) queued: u64,
}

/// The map of one shard. `W` owns the words of a plane.
pub(crate) struct PageMap<W> {
    settled: W,
    wanted: W,
    queued: W,
    queued_words: W,
    counts: Counts,
}

/// Words that a plane of `slots` bits takes.
pub(crate) fn words_for(slots: usize) -> usize {
    slots.div_ceil(WORD)
}

/// The words that `slots` touch, each with the mask of its bits.
fn masks(slots: Slots) -> impl Iterator<Item = (usize, u64)> {
    let mut at = slots.first;
    let end = slots.first.saturating_add(slots.nr);
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (word, bit) = (at / WORD, at % WORD);
        let nr = (WORD - bit).min(end - at);
        at += nr;
        Some((word, (u64::MAX >> (WORD - nr)) << bit))
    })
}

/// The word `at`; a word outside the plane reads as zero.
fn get(plane: &[u64], at: usize) -> u64 {
    plane.get(at).copied().unwrap_or(0)
}

/// Sets the bits `mask` of the word `at`.
fn set(plane: &mut [u64], at: usize, mask: u64) {
    if let Some(word) = plane.get_mut(at) {
        *word |= mask;
    }
}

/// Clears the bits `mask` of the word `at`.
fn clear(plane: &mut [u64], at: usize, mask: u64) {
    if let Some(word) = plane.get_mut(at) {
        *word &= !mask;
    }
}

impl<W: DerefMut<Target = [u64]>> PageMap<W> {
    /// A map whose pages are all absent. The first three planes have [`words_for`] the shard's
    /// slots words, and the last one has [`words_for`] that number of words; all are zero.
    pub(crate) fn new(settled: W, wanted: W, queued: W, queued_words: W) -> Self {
        Self {
            settled,
            wanted,
            queued,
            queued_words,
            counts: Counts::default(),
        }
    }

    /// How many pages are in which state.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether every page is present.
    pub(crate) fn all_present(&self, slots: Slots) -> bool {
        masks(slots).all(|(at, mask)| self.present_word(at) & mask == mask)
    }

    /// Whether the page of the first slot is present or unreadable.
    pub(crate) fn is_settled(&self, slots: Slots) -> bool {
        masks(Slots { nr: 1, ..slots })
            .next()
            .is_some_and(|(at, mask)| get(&self.settled, at) & mask != 0)
    }

    /// The present bits of slots `64 * at` to `64 * at + 63`.
    pub(crate) fn present_word(&self, at: usize) -> u64 {
        get(&self.settled, at) & !get(&self.wanted, at)
    }

    /// Whether any of these pages is absent and requested.
    pub(crate) fn any_requested(&self, slots: Slots) -> bool {
        masks(slots).any(|(at, mask)| get(&self.wanted, at) & !get(&self.settled, at) & mask != 0)
    }

    /// A touch of the page of the first slot. Requests the page if it is absent.
    pub(crate) fn touch(&mut self, slots: Slots) -> Touch {
        let Some((at, mask)) = masks(Slots { nr: 1, ..slots }).next() else {
            return Touch::Unreadable;
        };
        let settled = get(&self.settled, at) & mask != 0;
        let wanted = get(&self.wanted, at) & mask != 0;
        match (settled, wanted) {
            (true, false) => Touch::Present,
            (true, true) => Touch::Unreadable,
            (false, true) => Touch::AlreadyRequested,
            (false, false) => {
                set(&mut self.wanted, at, mask);
                self.counts.requested += 1;
                self.queue(at, mask);
                Touch::NewlyRequested
            }
        }
    }

    /// Applies the verdict to the pages. Present pages stay present. [`Verdict::Unreadable`] does
    /// not change unreadable pages.
    pub(crate) fn settle(&mut self, slots: Slots, verdict: Verdict) -> Settled {
        let mut done = Settled::default();
        for (at, mask) in masks(slots) {
            let absent = mask & !get(&self.settled, at);
            let unreadable = mask & get(&self.settled, at) & get(&self.wanted, at);
            let requested = absent & get(&self.wanted, at);
            let queued = requested & get(&self.queued, at);

            self.counts.requested -= u64::from(requested.count_ones());
            done.wake |= requested != 0;
            self.unqueue(at, queued);
            done.changed += u64::from(absent.count_ones());

            set(&mut self.settled, at, absent);
            match verdict {
                Verdict::Present => {
                    clear(&mut self.wanted, at, absent | unreadable);
                    let cured = u64::from(unreadable.count_ones());
                    self.counts.unreadable -= cured;
                    self.counts.present += u64::from(absent.count_ones()) + cured;
                    done.changed += cured;
                }
                Verdict::Unreadable => {
                    set(&mut self.wanted, at, absent);
                    self.counts.unreadable += u64::from(absent.count_ones());
                }
            }
        }
        done
    }

    /// Takes up to `max` queued requests and passes the slot of each to `sink`. Returns how many.
    pub(crate) fn take(&mut self, max: usize, mut sink: impl FnMut(usize)) -> usize {
        let mut taken = 0;
        let mut group = 0;
        while taken < max && group < self.queued_words.len() {
            let groups = get(&self.queued_words, group);
            if groups == 0 {
                group += 1;
                continue;
            }
            let at = group * WORD + groups.trailing_zeros() as usize;
            let mut word = get(&self.queued, at);
            while word != 0 && taken < max {
                let bit = word & word.wrapping_neg();
                sink(at * WORD + bit.trailing_zeros() as usize);
                word &= !bit;
                taken += self.unqueue(at, bit) as usize;
            }
        }
        taken
    }

    /// Queues again the requests for pages of `slots` that the daemon has taken and not answered.
    /// Returns how many.
    pub(crate) fn requeue(&mut self, slots: Slots) -> u64 {
        let mut back = 0;
        for (at, mask) in masks(slots) {
            let taken =
                mask & get(&self.wanted, at) & !get(&self.settled, at) & !get(&self.queued, at);
            back += self.queue(at, taken);
        }
        back
    }

    /// Queues the requested pages `mask` of word `at`. Returns how many.
    fn queue(&mut self, at: usize, mask: u64) -> u64 {
        if mask != 0 {
            set(&mut self.queued, at, mask);
            set(&mut self.queued_words, at / WORD, 1 << (at % WORD));
        }
        let nr = u64::from(mask.count_ones());
        self.counts.queued += nr;
        nr
    }

    /// Removes the queued pages `mask` of word `at` from the queue. Returns how many.
    fn unqueue(&mut self, at: usize, mask: u64) -> u64 {
        clear(&mut self.queued, at, mask);
        if get(&self.queued, at) == 0 {
            clear(&mut self.queued_words, at / WORD, 1 << (at % WORD));
        }
        let nr = u64::from(mask.count_ones());
        self.counts.queued -= nr;
        nr
    }
}
