// SPDX-License-Identifier: GPL-2.0-or-later
//! The order in which a round goes over the memory.

/// A permutation of `0..len` that looks random, and is the same for the same seed. It needs no table.
///
/// A program that writes in a fixed order, in whatever direction or step, does not stay just ahead of it or just behind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    len: u64,
    half: u32,
    seed: u64,
}

impl Permutation {
    const STEPS: u64 = 4;

    pub(crate) fn new(len: u64, seed: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let half = bits.div_ceil(2).max(1);
        Self { len, half, seed }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The element at `index`, which is less than the length.
    pub(crate) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.len);
        // The network permutes a power of four that is less than four times the length: an element outside is an index on the way.
        let mut element = self.shuffle(index);
        while element >= self.len {
            element = self.shuffle(element);
        }
        element
    }

    /// A Feistel network.
    fn shuffle(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for step in 0..Self::STEPS {
            (left, right) = (right, left ^ (mix(right ^ mix(self.seed.wrapping_add(step))) & mask));
        }
        (left << self.half) | right
    }
}

/// Spreads each bit over all others (the finalizer of SplitMix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_comes_once() {
        for len in (1..70).chain([255, 256, 257, 1000, 4096, 5000]) {
            let order = Permutation::new(len, len);
            let mut elements: Vec<u64> = (0..len).map(|index| order.at(index)).collect();
            elements.sort_unstable();
            assert!(elements.into_iter().eq(0..len), "{len}");
        }
    }

    #[test]
    fn no_two_neighbours_are_neighbours_by_rule() {
        let order = Permutation::new(4096, 7);
        let steps = (1..4096).map(|index| order.at(index).abs_diff(order.at(index - 1)));
        let near = steps.filter(|step| *step <= 4).count();
        assert!(near < 40, "{near}");
    }

    #[test]
    fn order_depends_on_the_seed_alone() {
        let elements = |seed| {
            (0..100)
                .map(|index| Permutation::new(100, seed).at(index))
                .collect::<Vec<_>>()
        };
        assert_eq!(elements(1), elements(1));
        assert_ne!(elements(1), elements(2));
    }
}
