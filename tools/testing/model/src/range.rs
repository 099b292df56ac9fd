// SPDX-License-Identifier: GPL-2.0-or-later

//! Runs of pages.

use crate::model::range::{BLOCK_PAGES, BlockBits, PageRange, pages_for};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_range_lies_within_its_limit_or_is_none(pgoff: u64, nr: u64, limit: u64) {
        let inside = nr > 0 && u128::from(pgoff) + u128::from(nr) <= u128::from(limit);
        let range = PageRange::within(pgoff, nr, limit);
        prop_assert_eq!(range.is_some(), inside);
        if let Some(range) = range {
            prop_assert_eq!((range.start(), range.len(), range.end()), (pgoff, nr, pgoff + nr));
        }
    }

    #[test]
    fn blocks_are_the_range_cut_at_borders(pgoff in 0..1u64 << 40, nr in 1..5000u64) {
        let range = PageRange::within(pgoff, nr, u64::MAX).expect("a run within the limit");
        let mut at = pgoff;
        for block in range.blocks() {
            prop_assert_eq!(block.start(), at);
            prop_assert_eq!(block.start() / BLOCK_PAGES, (block.end() - 1) / BLOCK_PAGES);
            at = block.end();
        }
        prop_assert_eq!(at, range.end());
    }

    #[test]
    fn runs_without_are_the_clear_bits(bits: BlockBits, block in 0..1000u64, first in 0..512u64, nr in 1..=512u64) {
        let nr = nr.min(512 - first);
        let range = PageRange::within(block * BLOCK_PAGES + first, nr, u64::MAX).expect("a run within the limit");
        let clear = |pgoff: &u64| (bits[(pgoff % BLOCK_PAGES / 64) as usize] >> (pgoff % 64)) & 1 == 0;
        let wanted: Vec<u64> = (range.start()..range.end()).filter(clear).collect();
        let runs: Vec<PageRange> = range.runs_without(bits).collect();
        let got: Vec<u64> = runs.iter().flat_map(|run| run.start()..run.end()).collect();
        prop_assert_eq!(got, wanted);
        prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].start()));
    }
}

#[test]
fn the_last_blocks_of_the_number_space_do_not_overflow() {
    let range = PageRange::within(u64::MAX - 600, 600, u64::MAX).expect("a run within the limit");
    assert_eq!(range.blocks().map(PageRange::len).sum::<u64>(), 600);
    assert_eq!((range.byte_start(), range.bytes()), (None, Some(600 << 12)));
    assert_eq!(pages_for(u64::MAX), None);
    assert_eq!(
        (pages_for(0), pages_for(1), pages_for(4096), pages_for(4097)),
        (Some(0), Some(1), Some(1), Some(2))
    );
}
