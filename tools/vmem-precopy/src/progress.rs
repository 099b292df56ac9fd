// SPDX-License-Identifier: GPL-2.0-or-later
//! One memory: which of its pages are at the destination.

use std::ops::Range;

use vmem_pages::{PageRange, PageSet};
use vmem_source::Holes;

use crate::heat::Heat;
use crate::memory::{DirtyMemory, Logged};
use crate::statistics::RoundStatistics;

/// Pages of a word of a set.
pub(crate) const WORD: u64 = u64::BITS as u64;

/// A memory and what is known of its pages: 196 KiB for 1 GiB of it.
pub(crate) struct Progress {
    /// The dirty log; `None` after the last take.
    log: Option<Box<dyn DirtyMemory>>,
    pages: PageRange,
    /// Pages whose contents at the destination are known to be out of date, or missing. A page that was written since it was last taken out
    /// of the log is in this set, or in the log.
    pending: PageSet,
    /// Pages that were in the log when it was last read, and have not been taken out of it since. None of the words in `unseen`.
    peeked: PageSet,
    /// Words of a log that began with all pages, before they are taken out of it: it does not tell which of their pages were written. All of
    /// these are pending.
    unseen: Vec<bool>,
    /// Pending pages whose turn is at the end of the round.
    deferred: PageSet,
    /// Pages that were sent at least once.
    seen: PageSet,
    /// The word that the last choice did not get to the end of, and its pages that were chosen: one that is written all the time must not
    /// keep the others from their turn.
    partial: Option<(usize, u64)>,
    heat: Heat,
}

/// Which pages of a round are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// All but the hot ones, which are found out.
    Main,
    /// The deferred pages that are this hot.
    Deferred(u8),
}

/// Which pages of a round wait for its end, or for the next round if they are written again by then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Defer {
    /// None.
    Nothing,
    /// Those that were written in several of the last rounds.
    Hot,
    /// Those, and in the first round those that were written before their turn, as far as the log tells which these are: one that began
    /// with all pages tells it of a chunk from when that is taken ahead of its turn.
    #[default]
    HotAndEarly,
}

impl Progress {
    pub(crate) fn new(log: Box<dyn DirtyMemory>) -> Self {
        let pages = log.pages();
        let none = PageSet::none_of(pages);
        let begins_with_all = log.begins_with_all();
        Self {
            log: Some(log),
            pages,
            pending: PageSet::all_of(pages),
            peeked: none.clone(),
            deferred: none.clone(),
            unseen: vec![begins_with_all; none.words().len()],
            heat: Heat::new(none.words().len()),
            seen: none,
            partial: None,
        }
    }

    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    pub(crate) fn words(&self) -> usize {
        self.pending.words().len()
    }

    /// Reads the log.
    pub(crate) fn peek(&mut self, statistics: &mut RoundStatistics) -> Result<(), vmem::Error> {
        let Some(log) = &self.log else { return Ok(()) };
        let Logged { mut dirty, error } = log.peek(self.pages);
        if let Some(error) = error {
            return Err(error);
        }
        for (dirty, _) in dirty.words_mut().iter_mut().zip(&self.unseen).filter(|(_, unseen)| **unseen) {
            *dirty = 0;
        }
        let new = dirty.words().iter().zip(self.peeked.words());
        statistics.dirtied += new
            .map(|(dirty, peeked)| u64::from((dirty & !peeked).count_ones()))
            .sum::<u64>();
        self.peeked = dirty;
        Ok(())
    }

    /// Pages that are left, as far as is known: never sent, or in the log when it was last read.
    pub(crate) fn left(&self) -> u64 {
        let words = self.pending.words().iter().zip(self.peeked.words());
        words
            .map(|(pending, peeked)| u64::from((pending | peeked).count_ones()))
            .sum()
    }

    /// Begins a round: pages that are in the log have become hotter, all others cooler.
    pub(crate) fn begin_round(&mut self) {
        for (word, dirty) in self.peeked.words().iter().enumerate() {
            self.heat.raise(word, *dirty);
            self.heat.lower(word, !dirty);
        }
    }

    /// Whether `pass` has something to do in these words.
    pub(crate) fn has_work(&self, words: Range<usize>, pass: Pass) -> bool {
        words.into_iter().any(|word| self.candidates(word, pass) != 0)
    }

    fn candidates(&self, word: usize, pass: Pass) -> u64 {
        match pass {
            Pass::Main => (self.pending.words()[word] | self.peeked.words()[word]) & !self.deferred.words()[word],
            Pass::Deferred(Heat::MAX) => self.deferred.words()[word],
            Pass::Deferred(heat) => self.deferred.words()[word] & !self.heat.from(word, heat + 1),
        }
    }

    /// Takes these words out of a log that began with all pages.
    pub(crate) fn open(&mut self, words: Range<usize>, statistics: &mut RoundStatistics) -> Result<(), vmem::Error> {
        match self.unseen[words.clone()].contains(&true) {
            true => self.take(words, statistics).map(drop),
            false => Ok(()),
        }
    }

    /// Chooses up to `room` pages of these words, adds them to `chosen`, and counts them. Returns the word to go on with; that is the end of
    /// the words if there is nothing left to do in them.
    ///
    /// After an error the pages that were taken out of the log are pending, and none is chosen.
    pub(crate) fn choose(
        &mut self,
        words: Range<usize>,
        pass: Pass,
        defer: Defer,
        room: &mut u64,
        chosen: &mut Vec<PageRange>,
        statistics: &mut RoundStatistics,
    ) -> Result<usize, vmem::Error> {
        let words = self.fitting(words, pass, *room);
        let dirty = self.take(words.clone(), statistics)?;
        for (word, dirty) in words.clone().zip(dirty) {
            match pass {
                Pass::Main => {
                    // All pages are pending in the first round: those that were written already are likely to be written again.
                    let early = if statistics.round == 1 && defer == Defer::HotAndEarly {
                        dirty
                    } else {
                        0
                    };
                    let hot = if defer == Defer::Nothing {
                        0
                    } else {
                        self.heat.from(word, Heat::HOT)
                    };
                    self.deferred.words_mut()[word] |= self.pending.words()[word] & (hot | early);
                }
                Pass::Deferred(_) => {
                    let skipped = self.candidates(word, pass) & dirty;
                    statistics.skipped += u64::from(skipped.count_ones());
                    self.deferred.words_mut()[word] &= !skipped;
                }
            }
            if statistics.round == 1 {
                self.heat.raise(word, dirty);
            }
        }
        let partial = self.partial.take();
        for word in words.clone() {
            let begun = partial.filter(|(begun, _)| *begun == word).map_or(0, |(_, pages)| pages);
            let mut left = self.candidates(word, pass) & !begun;
            let mut done = begun;
            while left != 0 {
                let first = left.trailing_zeros();
                let run = u64::from((!(left >> first)).trailing_zeros().min(u64::BITS - first)).min(*room);
                let Some(range) = PageRange::from_pgoff(word as u64 * WORD + u64::from(first), run) else {
                    return Ok(word);
                };
                let bits = mask(first, run);
                left &= !bits;
                done |= bits;
                *room -= run;
                self.mark_chosen(word, bits, statistics);
                range.append_to(chosen);
                if *room == 0 && left == 0 {
                    return Ok(word + 1);
                }
                if *room == 0 {
                    self.partial = Some((word, done));
                    return Ok(word);
                }
            }
        }
        Ok(words.end)
    }

    /// Takes `pages` out of the log, and finds holes in them after that with `holes`: what the destination is told of is not pending any more.
    /// Returns the holes. Of a log that began with all pages, only whole words of holes are taken: pages with contents keep their turn.
    ///
    /// After an error the pages that were taken out of the log are pending.
    pub(crate) fn map(
        &mut self,
        pages: PageRange,
        holes: &mut dyn FnMut(PageRange) -> Holes,
        statistics: &mut RoundStatistics,
    ) -> Result<Holes, vmem::Error> {
        let words = (pages.first().get() / WORD) as usize..pages.end().div_ceil(WORD) as usize;
        let holes = if self.unseen[words.clone()].contains(&true) {
            let found = holes(pages);
            for hole in &found.ranges {
                self.take(self.whole_words(*hole), statistics)?;
            }
            // A page may have been written between the two.
            self.seen_holes(holes(found.pages))
        } else {
            self.take(words, statistics)?;
            holes(pages)
        };
        for hole in &holes.ranges {
            statistics.sent += hole.count();
            statistics.zero += hole.count();
            statistics.resent += self.seen.runs_of(*hole).map(|run| run.count()).sum::<u64>();
            self.seen.insert(*hole);
            self.pending.remove(*hole);
            self.deferred.remove(*hole);
        }
        Ok(holes)
    }

    /// The words that have no page outside of these.
    fn whole_words(&self, pages: PageRange) -> Range<usize> {
        let first = pages.first().get().div_ceil(WORD) as usize;
        let end = match pages.end() == self.pages.end() {
            true => self.words(),
            false => (pages.end() / WORD) as usize,
        };
        first..end.max(first)
    }

    /// The holes without those of words that have not been taken out of the log.
    fn seen_holes(&self, holes: Holes) -> Holes {
        let mut ranges = Vec::new();
        for hole in &holes.ranges {
            let (first, end) = (hole.first().get(), hole.end());
            for word in first / WORD..end.div_ceil(WORD) {
                let (from, to) = (first.max(word * WORD), end.min((word + 1) * WORD));
                let part = PageRange::from_pgoff(from, to - from).filter(|_| !self.unseen[word as usize]);
                part.into_iter().for_each(|part| part.append_to(&mut ranges));
            }
        }
        Holes { ranges, ..holes }
    }

    fn mark_chosen(&mut self, word: usize, bits: u64, statistics: &mut RoundStatistics) {
        statistics.sent += u64::from(bits.count_ones());
        statistics.resent += u64::from((bits & self.seen.words()[word]).count_ones());
        self.seen.words_mut()[word] |= bits;
        self.pending.words_mut()[word] &= !bits;
        self.deferred.words_mut()[word] &= !bits;
    }

    /// The first of these words, at least one: not many more pages than `room` have their turn in them.
    fn fitting(&self, words: Range<usize>, pass: Pass, room: u64) -> Range<usize> {
        let mut pages = 0;
        let fitting = words.clone().take_while(|word| {
            let fits = pages < room;
            pages += u64::from(self.candidates(*word, pass).count_ones());
            fits
        });
        let count = fitting.count().max(1);
        words.start..words.end.min(words.start + count)
    }

    /// Takes the pages of these words out of the log: they are pending then. Returns those that were in it because they were written.
    fn take(&mut self, words: Range<usize>, statistics: &mut RoundStatistics) -> Result<Vec<u64>, vmem::Error> {
        let first = words.start as u64 * WORD;
        let end = (words.end as u64 * WORD).min(self.pages.count());
        let (Some(log), Some(pages)) = (&self.log, PageRange::from_pgoff(first, end.saturating_sub(first))) else {
            return Ok(Vec::new());
        };
        let Logged { mut dirty, error } = log.clean(pages);
        for (at, dirty) in words.clone().zip(dirty.words_mut()) {
            self.pending.words_mut()[at] |= *dirty;
            // After an error, words that were not reached are as before.
            if *dirty != 0 && std::mem::take(&mut self.unseen[at]) {
                *dirty = 0;
            }
            statistics.dirtied += u64::from((*dirty & !self.peeked.words()[at]).count_ones());
            // After an error this forgets what was read from the log, which is still in it.
            self.peeked.words_mut()[at] = 0;
        }
        match error {
            Some(error) => Err(error),
            None => Ok(dirty.words().to_vec()),
        }
    }

    /// The last take, when the program has stopped. After an error, another call goes on.
    pub(crate) fn finish(&mut self, statistics: &mut RoundStatistics) -> Result<(), vmem::Error> {
        let dirty = self.take(0..self.words(), statistics)?;
        (0..).zip(dirty).for_each(|(word, dirty)| self.heat.raise(word, dirty));
        Ok(())
    }

    /// The log, so that it can end.
    pub(crate) fn end_log(&mut self) -> Option<Box<dyn DirtyMemory>> {
        self.log.take()
    }

    /// The pending pages that are this hot.
    pub(crate) fn remainder(&self, heat: u8) -> Vec<PageRange> {
        let mut pages = self.pending.clone();
        for (word, bits) in pages.words_mut().iter_mut().enumerate() {
            *bits &= self.heat.with(word, heat);
        }
        pages.runs().collect()
    }
}

/// So many bits from the bit `first` on.
fn mask(first: u32, count: u64) -> u64 {
    let ones = u64::MAX >> (WORD - count.clamp(1, WORD));
    ones << first
}
