// SPDX-License-Identifier: GPL-2.0-or-later
//! Orders in which pages are touched: random, and the same in every run.

/// The numbers below `nr`, shuffled.
pub(crate) fn shuffled(nr: u64, seed: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..nr).collect();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for at in (1..numbers.len()).rev() {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(at, (state % (at as u64 + 1)) as usize);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_has_each_number_once() {
        let mut numbers = shuffled(1000, 7);
        assert_ne!(numbers, (0..1000).collect::<Vec<_>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_seed_gives_one_order() {
        assert_eq!(shuffled(100, 3), shuffled(100, 3));
        assert_ne!(shuffled(100, 3), shuffled(100, 4));
    }
}
