// SPDX-License-Identifier: GPL-2.0-or-later
//! Numbers that look random, the same for each run with the same seed.

/// A sequence of numbers (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// The sequence of one actor's one life.
    pub(crate) fn new(seed: u64, actor: usize, life: u64) -> Self {
        let mut numbers = Self(seed ^ ((actor as u64) << 48) ^ (life << 24));
        numbers.any();
        numbers
    }

    /// Another sequence, for somebody who goes on beside this one.
    pub(crate) fn branch(&mut self) -> Self {
        Self(self.any())
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.any() % limit.max(1) as u64) as usize
    }

    /// Once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A run of pages, of at most `most`.
    pub(crate) fn run(&mut self, pages: usize, most: usize) -> std::ops::Range<usize> {
        let first = self.below(pages);
        first..(first + 1 + self.below(most)).min(pages)
    }
}
