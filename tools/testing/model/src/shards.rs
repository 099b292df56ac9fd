// SPDX-License-Identifier: GPL-2.0-or-later

//! How pages are dealt to shards.

use crate::model::{
    range::{BLOCK_PAGES, PageRange},
    shards::Shards,
};
use proptest::prelude::*;
use std::collections::HashSet;

proptest! {
    #[test]
    fn a_page_is_found_where_it_was_put(nr_pages in 1..1u64 << 32, pick in prop::collection::vec(any::<u64>(), 64)) {
        let shards = Shards::new(nr_pages);
        for pick in pick {
            let pgoff = pick % nr_pages;
            let slots = shards.locate(PageRange::within(pgoff, 1, nr_pages).expect("a run within the limit"));
            prop_assert!(slots.shard < shards.count());
            prop_assert!(slots.first < shards.slots_per_shard());
            prop_assert_eq!(shards.pgoff(slots.shard, slots.first), pgoff);
        }
    }

    #[test]
    fn a_block_is_one_run_of_slots(nr_pages in 1..1u64 << 24, pgoff: u64, nr: u64) {
        let shards = Shards::new(nr_pages);
        let pgoff = pgoff % nr_pages;
        let nr = 1 + nr % (nr_pages - pgoff).min(BLOCK_PAGES - pgoff % BLOCK_PAGES);
        let slots = shards.locate(PageRange::within(pgoff, nr, nr_pages).expect("a run within the limit"));
        for i in 0..slots.nr {
            prop_assert_eq!(shards.pgoff(slots.shard, slots.first + i), pgoff + i as u64);
        }
        // Word-wise work on a block's present bits relies on this.
        prop_assert_eq!(slots.first as u64 % BLOCK_PAGES, pgoff % BLOCK_PAGES);
    }
}

#[test]
fn no_two_pages_share_a_slot() {
    for nr_pages in [1, 511, 512, 513, 64 * 512, 64 * 512 + 1, 130 * 512 + 7] {
        let shards = Shards::new(nr_pages);
        let places: HashSet<_> = (0..nr_pages)
            .map(|pgoff| shards.locate(PageRange::within(pgoff, 1, nr_pages).expect("a run within the limit")))
            .map(|slots| (slots.shard, slots.first))
            .collect();
        assert_eq!(places.len() as u64, nr_pages);
    }
}
