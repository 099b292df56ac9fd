// SPDX-License-Identifier: GPL-2.0

//! The state of each page of a shard.
//!
//! Three bits for each page, in three planes:
//!
//! | settled | wanted | queued | the page is                                       |
//! |---------|--------|--------|---------------------------------------------------|
//! | 0       | 0      | 0      | absent                                            |
//! | 0       | 0      | 1      | claimed: the module reads it from its backing     |
//! | 0       | 1      | 1      | requested, and the daemon has not taken it        |
//! | 0       | 1      | 0      | requested, and the daemon has taken it            |
//! | 1       | 0      | 0      | present                                           |
//! | 1       | 1      | 0      | unreadable                                        |
//!
//! No other combination occurs. A present page stays present. A fourth plane has one bit for each
//! word of `queued` that has requests, so that finding the next request is cheap in a large, quiet
//! region.

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
    /// The page is absent. This touch has claimed it, and has to see that the page is read.
    NewlyClaimed,
    /// The page is absent, and another thread reads it.
    AlreadyClaimed,
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
    /// Whether one of these pages was requested or claimed, so that a thread may wait for it.
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

    /// Which pages of at most 64 slots are present: a bit for each, the lowest for the first.
    pub(crate) fn present_among(&self, slots: Slots) -> u64 {
        let nr = slots.nr.min(64);
        masks(Slots { nr, ..slots }).fold(0, |bits, (at, mask)| {
            let present = self.present_word(at) & mask;
            match at == slots.first / 64 {
                true => bits | (present >> (slots.first % 64)),
                // The slots begin in the word before.
                false => bits | (present << (64 - slots.first % 64)),
            }
        })
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

    /// Whether the page of the first slot is absent, and requested or claimed.
    pub(crate) fn is_awaited(&self, slots: Slots) -> bool {
        masks(Slots { nr: 1, ..slots })
            .next()
            .is_some_and(|(at, mask)| mask & self.awaited_word(at) != 0)
    }

    /// Whether the page of the first slot is claimed.
    pub(crate) fn is_claimed(&self, slots: Slots) -> bool {
        masks(Slots { nr: 1, ..slots })
            .next()
            .is_some_and(|(at, mask)| mask & self.claimed_word(at) != 0)
    }

    /// The claimed bits of slots `64 * at` to `64 * at + 63`.
    pub(crate) fn claimed_word(&self, at: usize) -> u64 {
        get(&self.queued, at) & !get(&self.wanted, at)
    }

    fn awaited_word(&self, at: usize) -> u64 {
        (get(&self.queued, at) | get(&self.wanted, at)) & !get(&self.settled, at)
    }

    /// The queued requests of slots `64 * at` to `64 * at + 63`.
    fn queued_word(&self, at: usize) -> u64 {
        get(&self.queued, at) & get(&self.wanted, at)
    }

    /// What a touch of the page of the first slot finds; [`None`] if the page is absent, and
    /// neither requested nor claimed.
    pub(crate) fn look(&self, slots: Slots) -> Option<Touch> {
        let Some((at, mask)) = masks(Slots { nr: 1, ..slots }).next() else {
            return Some(Touch::Unreadable);
        };
        let settled = get(&self.settled, at) & mask != 0;
        let wanted = get(&self.wanted, at) & mask != 0;
        let queued = get(&self.queued, at) & mask != 0;
        match (settled, wanted, queued) {
            (true, false, _) => Some(Touch::Present),
            (true, true, _) => Some(Touch::Unreadable),
            (false, true, _) => Some(Touch::AlreadyRequested),
            (false, false, true) => Some(Touch::AlreadyClaimed),
            (false, false, false) => None,
        }
    }

    /// A touch of the page of the first slot. Requests the page if it is absent.
    pub(crate) fn touch(&mut self, slots: Slots) -> Touch {
        if let Some(found) = self.look(slots) {
            return found;
        }
        self.request(Slots { nr: 1, ..slots });
        Touch::NewlyRequested
    }

    /// The same by a thread that will see that the page is read. Claims the page if it is absent.
    pub(crate) fn claim(&mut self, slots: Slots) -> Touch {
        if let Some(found) = self.look(slots) {
            return found;
        }
        for (at, mask) in masks(Slots { nr: 1, ..slots }) {
            set(&mut self.queued, at, mask);
        }
        Touch::NewlyClaimed
    }

    /// The slots around `at` in `window` whose pages are absent, and neither requested nor claimed.
    /// `at` itself is one of the result, whatever its state.
    pub(crate) fn absent_around(&self, window: Slots, at: usize) -> Slots {
        let end = window.first.saturating_add(window.nr);
        let is_absent = |slot: &usize| {
            self.look(Slots {
                first: *slot,
                ..window
            })
            .is_none()
        };
        let before = (window.first..at).rev().take_while(is_absent).count();
        let after = (at.saturating_add(1)..end).take_while(is_absent).count();
        Slots {
            first: at.saturating_sub(before),
            nr: before.saturating_add(after).saturating_add(1),
            ..window
        }
    }

    /// Claims those pages, too. The page of `at` is claimed already.
    pub(crate) fn claim_around(&mut self, window: Slots, at: usize) -> Slots {
        let run = self.absent_around(window, at);
        for (word, mask) in masks(run) {
            set(&mut self.queued, word, mask);
        }
        run
    }

    /// Gives up the claims to pages of `slots`. These pages are absent then, or are requested.
    /// Returns how many there were.
    pub(crate) fn release(&mut self, slots: Slots, requests: bool) -> u64 {
        let mut released = 0;
        for (at, mask) in masks(slots) {
            let claimed = mask & self.claimed_word(at);
            clear(&mut self.queued, at, claimed);
            released += u64::from(claimed.count_ones());
            if requests {
                self.request_in_word(at, claimed);
            }
        }
        released
    }

    /// Takes back the requests for pages of `slots`. Returns how many there were.
    pub(crate) fn withdraw(&mut self, slots: Slots) -> u64 {
        let mut withdrawn = 0;
        for (at, mask) in masks(slots) {
            let requested = mask & get(&self.wanted, at) & !get(&self.settled, at);
            let queued = requested & get(&self.queued, at);
            self.unqueue(at, queued);
            clear(&mut self.wanted, at, requested);
            withdrawn += u64::from(requested.count_ones());
        }
        self.counts.requested -= withdrawn;
        withdrawn
    }

    /// Requests pages that are absent, and neither requested nor claimed.
    fn request(&mut self, slots: Slots) {
        for (at, mask) in masks(slots) {
            self.request_in_word(at, mask);
        }
    }

    fn request_in_word(&mut self, at: usize, mask: u64) {
        set(&mut self.wanted, at, mask);
        self.counts.requested += u64::from(mask.count_ones());
        self.queue(at, mask);
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
            let claimed = absent & self.claimed_word(at);

            if requested | claimed != 0 {
                self.counts.requested -= u64::from(requested.count_ones());
                done.wake = true;
                self.unqueue(at, queued);
                clear(&mut self.queued, at, claimed);
            }
            let changed = u64::from(absent.count_ones());
            done.changed += changed;

            set(&mut self.settled, at, absent);
            match verdict {
                Verdict::Present => {
                    clear(&mut self.wanted, at, absent | unreadable);
                    self.counts.present += changed;
                    if unreadable != 0 {
                        let cured = u64::from(unreadable.count_ones());
                        self.counts.unreadable -= cured;
                        self.counts.present += cured;
                        done.changed += cured;
                    }
                }
                Verdict::Unreadable => {
                    set(&mut self.wanted, at, absent);
                    self.counts.unreadable += changed;
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
            let mut word = self.queued_word(at);
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
        if mask == 0 {
            return 0;
        }
        clear(&mut self.queued, at, mask);
        if self.queued_word(at) == 0 {
            clear(&mut self.queued_words, at / WORD, 1 << (at % WORD));
        }
        let nr = u64::from(mask.count_ones());
        self.counts.queued -= nr;
        nr
    }
}
