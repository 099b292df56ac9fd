// SPDX-License-Identifier: GPL-2.0-or-later

//! Random changes of a list of extents, against an array that has each page's value.

use std::convert::Infallible;

use crate::model::{
    extents::{Extent, Piece, change, contents_of, find, overlap, window},
    range::{PAGE_SIZE, PageRange},
};
use proptest::prelude::*;

const PAGES: u64 = 40;

fn range() -> impl Strategy<Value = PageRange> {
    (0..PAGES, 1..=PAGES).prop_map(|(first, nr)| pages(first, nr.min(PAGES - first)))
}

fn pages(first: u64, nr: u64) -> PageRange {
    PageRange::within(first, nr, PAGES).expect("pages of the region")
}

/// The list with `range` changed to `value`.
fn changed(extents: &[Extent<u32>], range: PageRange, value: Option<u32>) -> Vec<Extent<u32>> {
    let mut result = Vec::new();
    let push = |piece: Piece<'_, u32>| -> Result<(), Infallible> {
        match piece {
            Piece::Kept(extent) => result.push(*extent),
            Piece::Cut(extent, range) => {
                assert_ne!(extent.range, range, "nothing was cut off");
                result.push(Extent { range, ..*extent });
            }
            Piece::Changed => result.extend(value.map(|value| Extent { range, value })),
        }
        Ok(())
    };
    let Ok(()) = change(extents, range, push);
    result
}

proptest! {
    #[test]
    fn each_page_has_the_value_that_it_got_last(
        changes in prop::collection::vec((range(), proptest::option::of(any::<u32>())), 1..20),
    ) {
        let (mut extents, mut naive) = (Vec::new(), [None; PAGES as usize]);
        for (range, value) in changes {
            extents = changed(&extents, range, value);
            naive[range.start() as usize..range.end() as usize].fill(value);
            for pair in extents.windows(2) {
                prop_assert!(pair[0].range.end() <= pair[1].range.start());
            }
            for pgoff in 0..PAGES {
                let found = find(&extents, pgoff).map(|extent| extent.value);
                prop_assert_eq!(found, naive[pgoff as usize]);
            }
            prop_assert!(find(&extents, PAGES).is_none());
        }
    }

    #[test]
    fn window_is_the_part_of_the_aligned_group_in_the_extent(
        extent in range(), pgoff in 0..PAGES, shift in 0..6u32,
    ) {
        let around = 1 << shift;
        let is_in = |page: u64| (extent.start()..extent.end()).contains(&page);
        let group = (0..PAGES).filter(|page| page / around == pgoff / around && is_in(*page));
        let group: Vec<_> = group.collect();
        match window(extent, pgoff, around) {
            None => prop_assert!(!is_in(pgoff)),
            Some(found) => {
                prop_assert!(is_in(pgoff));
                prop_assert_eq!((found.start()..found.end()).collect::<Vec<_>>(), group);
            }
        }
    }

    #[test]
    fn ranges_overlap_if_they_share_a_page(one in range(), other in range()) {
        let shared = (0..PAGES).any(|page| [one, other].iter().all(|range| (range.start()..range.end()).contains(&page)));
        prop_assert_eq!(overlap(one, other), shared);
    }
}

#[test]
fn window_stays_within_a_block() {
    let all = PageRange::within(0, 4096, 4096).expect("pages");
    let found = window(all, 1000, 4096).expect("the page is in the extent");
    assert_eq!((found.start(), found.end()), (512, 1024));
}

#[test]
fn only_the_last_page_has_less_than_a_page_of_contents() {
    let length = 2 * PAGE_SIZE + 100;
    assert_eq!(
        [0, 1, 2, 3].map(|pgoff| contents_of(pgoff, length)),
        [PAGE_SIZE, PAGE_SIZE, 100, 0]
    );
    assert_eq!(contents_of(u64::MAX, length), 0);
}
