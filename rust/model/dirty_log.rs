// SPDX-License-Identifier: GPL-2.0

//! The dirty log: which pages have been written to since they were last cleaned.
//!
//! One bit for each page, and a summary with one bit for each word of these, so that a scan of a
//! large, quiet memory is cheap. Writers set bits without a lock. Readers of the log take turns: a
//! reader that has just cleared a bit of the summary may be about to set it again.
//!
//! The users of the log keep its promise. A writer sets the bit of a page while it holds the page's
//! lock, before the page table permits the write. A reader takes a bit, then sees the page unlocked
//! once, and only then removes the permission to write. So a write is either covered by the bit
//! that was taken, and the page is read after the write, or the write faults again and sets the bit
//! anew.

use super::range::PageRange;
use core::ops::Deref;

const WORD: u64 = u64::BITS as u64;

/// Pages in a chunk. One word of the summary covers a chunk.
pub(crate) const CHUNK_PAGES: u64 = WORD * WORD;

/// One bit for each page of a chunk.
pub(crate) type ChunkBits = [u64; WORD as usize];

/// No page of a chunk.
pub(crate) const NO_PAGES: ChunkBits = [0; WORD as usize];

/// A word of bits that threads change without a lock. Each change is fully ordered.
pub(crate) trait AtomicBits {
    /// Returns the value.
    fn load(&self) -> u64;
    /// Sets these bits. Returns the value before.
    fn set(&self, bits: u64) -> u64;
    /// Clears these bits. Returns the value before.
    fn clear(&self, bits: u64) -> u64;
}

/// The log. `W` owns the words of a plane.
pub(crate) struct DirtyLog<W> {
    words: W,
    /// The bit of each word that has a bit set. The bit may also be set for a word that has none.
    summary: W,
}

/// How many words the log of `pages` pages takes, and how many its summary.
pub(crate) fn words_for(pages: u64) -> (u64, u64) {
    (pages.div_ceil(WORD), pages.div_ceil(CHUNK_PAGES))
}

/// The bits of a word from `first` to `last`, inclusive.
fn mask(first: u64, last: u64) -> u64 {
    (u64::MAX << (first % WORD)) & (u64::MAX >> (WORD - 1 - last % WORD))
}

/// The words that `range` touches, each with the mask of its bits.
pub(super) fn masks(range: PageRange) -> impl Iterator<Item = (u64, u64)> {
    let (start, last) = (range.start(), range.end().saturating_sub(1));
    (start / WORD..=last / WORD).map(move |word| {
        let first = start.max(word * WORD);
        let last = last.min(word * WORD + (WORD - 1));
        (word, mask(first, last))
    })
}

impl<A: AtomicBits, W: Deref<Target = [A]>> DirtyLog<W> {
    /// An empty log. The planes have as many words as [`words_for`] says, all zero.
    pub(crate) fn new(words: W, summary: W) -> Self {
        Self { words, summary }
    }

    fn word(&self, at: u64) -> Option<&A> {
        self.words.get(usize::try_from(at).ok()?)
    }

    fn summary_of(&self, word: u64) -> Option<(&A, u64)> {
        let at = usize::try_from(word / WORD).ok()?;
        Some((self.summary.get(at)?, 1 << (word % WORD)))
    }

    /// Adds pages that have been, or are about to be, written to. Pages beyond the end of the
    /// memory are ignored.
    pub(crate) fn mark(&self, range: PageRange) {
        if range.len() == 1 {
            return self.mark_word(range.start() / WORD, 1 << (range.start() % WORD));
        }
        let words = self.words.len() as u64;
        for (at, bits) in masks(range).take_while(|(at, _)| *at < words) {
            self.mark_word(at, bits);
        }
    }

    /// Adds the pages in `bits`, of the chunk that `range` is in.
    pub(crate) fn mark_bits(&self, range: PageRange, bits: &ChunkBits) {
        for (at, mask) in masks(range) {
            let bits = bits.get((at % WORD) as usize).copied().unwrap_or(0);
            if bits & mask != 0 {
                self.mark_word(at, bits & mask);
            }
        }
    }

    fn mark_word(&self, at: u64, bits: u64) {
        let Some(word) = self.word(at) else {
            return;
        };
        if word.load() & bits != bits {
            word.set(bits);
        }
        // Also if the bits were set: the thread that set them may not have reached the summary yet.
        if let Some((summary, bit)) = self.summary_of(at) {
            if summary.load() & bit == 0 {
                summary.set(bit);
            }
        }
    }

    /// The pages of `range`, which is within one chunk, that are in the log.
    pub(crate) fn peek(&self, range: PageRange) -> ChunkBits {
        self.collect_bits(range, |word, mask| word.load() & mask)
    }

    /// The same, and removes them from the log.
    pub(crate) fn take(&self, range: PageRange) -> ChunkBits {
        self.collect_bits(range, |word, mask| {
            if word.load() & mask == 0 {
                return 0;
            }
            word.clear(mask) & mask
        })
    }

    fn collect_bits(&self, range: PageRange, mut of: impl FnMut(&A, u64) -> u64) -> ChunkBits {
        let mut bits = NO_PAGES;
        let chunk = self.summary_of(range.start() / WORD);
        if chunk.is_none_or(|(summary, _)| summary.load() == 0) {
            return bits;
        }
        for (at, mask) in masks(range) {
            let Some((summary, bit)) = self.summary_of(at) else {
                continue;
            };
            if summary.load() & bit == 0 {
                continue;
            }
            let (Some(word), Some(out)) = (self.word(at), bits.get_mut((at % WORD) as usize))
            else {
                continue;
            };
            *out = of(word, mask);
            clear_summary_if_empty(word, summary, bit);
        }
        bits
    }

    /// How many pages are in the log.
    pub(crate) fn count(&self) -> u64 {
        let mut count = 0;
        for (chunk, summary) in (0u64..).zip(self.summary.iter()) {
            let mut left = summary.load();
            while left != 0 {
                let at = chunk * WORD + u64::from(left.trailing_zeros());
                left &= left - 1;
                count += self
                    .word(at)
                    .map_or(0, |word| u64::from(word.load().count_ones()));
            }
        }
        count
    }
}

/// Clears the summary's bit of a word that has become empty. A thread that sets a bit in the word
/// at the same time either sets the summary's bit after this, or has found it set; the second look
/// at the word sees that bit.
fn clear_summary_if_empty<A: AtomicBits>(word: &A, summary: &A, bit: u64) {
    if word.load() == 0 {
        summary.clear(bit);
        if word.load() != 0 {
            summary.set(bit);
        }
    }
}

/// The runs of pages whose bits are set, in the chunk that `range` is in. Runs that are at most
/// `gap` pages apart are joined.
pub(crate) fn runs(
    range: PageRange,
    bits: &ChunkBits,
    gap: u64,
) -> impl Iterator<Item = PageRange> + '_ {
    let base = range.start() & !(CHUNK_PAGES - 1);
    let mut at = range.start() - base;
    let end = range.end() - base;
    core::iter::from_fn(move || {
        let start = next(bits, at, end, false)?;
        let mut stop = next(bits, start, end, true).unwrap_or(end);
        while let Some(more) = next(bits, stop, end, false) {
            if more - stop > gap {
                break;
            }
            stop = next(bits, more, end, true).unwrap_or(end);
        }
        at = stop;
        PageRange::within(base + start, stop - start, u64::MAX)
    })
}

/// How many bits are set for the pages of `range`, which is within one chunk.
pub(crate) fn count(range: PageRange, bits: &ChunkBits) -> u64 {
    runs(range, bits, 0).map(PageRange::len).sum()
}

/// The first position from `at` on, before `end`, whose bit is set (or, if `inverted`, clear).
fn next(bits: &ChunkBits, mut at: u64, end: u64, inverted: bool) -> Option<u64> {
    while at < end {
        let word = *bits.get((at / WORD) as usize)?;
        let word = if inverted { !word } else { word } >> (at % WORD);
        if word != 0 {
            at += u64::from(word.trailing_zeros());
            return (at < end).then_some(at);
        }
        at = (at / WORD + 1) * WORD;
    }
    None
}
