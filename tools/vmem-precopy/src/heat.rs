// SPDX-License-Identifier: GPL-2.0-or-later
//! How often each page was written in the last rounds.

/// Two bits for each page, 0 to 3: 64 KiB for 1 GiB of memory. A word of each half has the bits of 64 pages.
#[derive(Debug, Clone)]
pub(crate) struct Heat {
    low: Vec<u64>,
    high: Vec<u64>,
}

impl Heat {
    /// The largest value.
    pub(crate) const MAX: u8 = 3;

    /// Pages that are this hot were written in two rounds of the last ones.
    pub(crate) const HOT: u8 = 2;

    pub(crate) fn new(words: usize) -> Self {
        Self {
            low: vec![0; words],
            high: vec![0; words],
        }
    }

    /// One more for these pages of a word.
    pub(crate) fn raise(&mut self, word: usize, pages: u64) {
        let (low, high) = (self.low[word], self.high[word]);
        // 0 1 2 3 becomes 1 2 3 3.
        self.low[word] = (low & !pages) | (pages & (!low | high));
        self.high[word] = (high & !pages) | (pages & (high | low));
    }

    /// One less for these pages of a word.
    pub(crate) fn lower(&mut self, word: usize, pages: u64) {
        let (low, high) = (self.low[word], self.high[word]);
        // 0 1 2 3 becomes 0 0 1 2.
        self.low[word] = (low & !pages) | (pages & high & !low);
        self.high[word] = (high & !pages) | (pages & high & low);
    }

    /// The pages of a word that have this value.
    pub(crate) fn with(&self, word: usize, value: u8) -> u64 {
        let half = |bits: u64, is_set: bool| if is_set { bits } else { !bits };
        half(self.low[word], value & 1 != 0) & half(self.high[word], value & 2 != 0)
    }

    /// The pages of a word that have this value or more.
    pub(crate) fn from(&self, word: usize, least: u8) -> u64 {
        (least..=Self::MAX).fold(0, |pages, value| pages | self.with(word, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_goes_from_zero_to_three_and_back() {
        let mut heat = Heat::new(2);
        let value = |heat: &Heat, page: u32| (0..=Heat::MAX).find(|value| (heat.with(1, *value) >> page) & 1 != 0);
        for expected in [1, 2, 3, 3] {
            heat.raise(1, 1 << 5);
            assert_eq!((value(&heat, 5), value(&heat, 4)), (Some(expected), Some(0)));
        }
        assert_eq!((heat.from(1, 2), heat.from(0, 1)), (1 << 5, 0));
        heat.raise(1, 1 << 4);
        for expected in [2, 1, 0, 0] {
            heat.lower(1, 1 << 5);
            assert_eq!((value(&heat, 5), value(&heat, 4)), (Some(expected), Some(1)));
        }
    }
}
