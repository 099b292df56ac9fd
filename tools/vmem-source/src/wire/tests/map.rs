// SPDX-License-Identifier: GPL-2.0-or-later
//! MAP and HOLES.

use super::*;
use crate::holes::{Holes, MAX_HOLES, MAX_MAP_PAGES};
use crate::wire::map::{decode_holes, decode_map, encode_holes, encode_map};

/// Holes in ascending order, and an end behind the last one.
fn any_holes() -> impl Strategy<Value = Holes> {
    (vec((0..50_u64, 1..50_u64), 0..80), 1..50_u64).prop_filter_map("empty", |(steps, after)| {
        let (mut at, mut ranges) = (0, Vec::new());
        for (gap, count) in steps {
            ranges.push(PageRange::from_pgoff(at + gap, count)?);
            at += gap + count;
        }
        let pages = PageRange::of_pages(at + after)?;
        Some(Holes { pages, ranges })
    })
}

proptest! {
    #[test]
    fn map_round_trip(pages in any_range()) {
        prop_assert_eq!(decode_map(&encode_map(0, pages), &small_export()), Ok((0, pages)));
    }

    #[test]
    fn holes_round_trip(holes in any_holes(), export: u32) {
        let decoded = decode_holes(&encode_holes(export, &holes)).expect("its own encoding");
        prop_assert_eq!((decoded.export, decoded.end, decoded.ranges), (export, holes.pages.end(), holes.ranges));
    }

    #[test]
    fn garbage_is_refused_or_means_something(bytes in vec(any::<u8>(), 0..80)) {
        let _ = decode_map(&bytes, &small_export());
        let _ = decode_holes(&bytes);
    }
}

/// A payload of these numbers of 64 bits.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn map_with_invalid_fields_is_refused() {
    let map = |fields: &[u64]| decode_map(&words(fields), &small_export());
    assert_eq!(map(&[0, 0, 2000]), Ok((0, PageRange::of_pages(2000).expect("pages"))));
    assert_eq!(map(&[1, 0, 1]), Err(ProtocolError::NoExport(1)));
    assert_eq!(map(&[1 << 32, 0, 1]), Err(ProtocolError::Reserved("MAP")));
    assert_eq!(map(&[0, 0]), Err(ProtocolError::Short("MAP")));
    assert_eq!(map(&[0, 0, 1, 0]), Err(ProtocolError::Trailing { what: "MAP", extra: 8 }));
    for (pgoff, nr_pages) in [(0, 0), (0, 2001), (2000, 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(map(&[0, pgoff, nr_pages]), Err(ProtocolError::Outside { pgoff, nr_pages }));
    }
    let large = [Export {
        pages: PageRange::of_pages(1 << 30).expect("pages"),
        ..small_export().remove(0)
    }];
    assert!(decode_map(&words(&[0, 0, MAX_MAP_PAGES]), &large).is_ok());
    assert_eq!(
        decode_map(&words(&[0, 0, MAX_MAP_PAGES + 1]), &large),
        Err(ProtocolError::TooMuch(MAX_MAP_PAGES + 1))
    );
}

#[test]
fn holes_with_invalid_fields_are_refused() {
    let head = |count: u64| count << 32;
    let holes = |fields: &[u64]| decode_holes(&words(fields)).map(|frame| frame.ranges.len());
    assert_eq!(holes(&[head(0), 7]), Ok(0));
    assert_eq!(holes(&[head(2), 7, 0, 1, 1, 6]), Ok(2));
    assert_eq!(holes(&[head(1)]), Err(ProtocolError::Short("HOLES")));
    assert_eq!(holes(&[head(1), 7, 0]), Err(ProtocolError::Short("HOLES")));
    assert_eq!(
        holes(&[head(0), 7, 0]),
        Err(ProtocolError::Trailing { what: "HOLES", extra: 8 })
    );
    let refused = |pgoff, nr_pages| Err(ProtocolError::Hole { pgoff, nr_pages });
    assert_eq!(holes(&[head(1), 7, 0, 0]), refused(0, 0), "no page");
    assert_eq!(holes(&[head(1), 7, 7, 1]), refused(7, 1), "behind the end");
    assert_eq!(holes(&[head(1), 7, 5, 3]), refused(5, 3), "beyond the end");
    assert_eq!(holes(&[head(2), 9, 4, 2, 5, 1]), refused(5, 1), "twice");
    assert_eq!(holes(&[head(2), 9, 4, 2, 1, 1]), refused(1, 1), "descending");
    assert_eq!(holes(&[head(1), 9, u64::MAX, 1]), refused(u64::MAX, 1));
    let (limit, count) = (MAX_HOLES as u32, MAX_HOLES as u32 + 1);
    let what = "HOLES";
    assert_eq!(
        holes(&[head(count.into()), 9]),
        Err(ProtocolError::Count { what, count, limit })
    );
}

#[test]
fn header_with_a_length_beyond_that_of_its_type_is_refused() {
    for (kind, what, limit) in [(10, "MAP", 24), (11, "HOLES", 16 + 16 * 1024)] {
        assert!(Header::decode(&header(limit, kind, 0)).is_ok());
        let length = limit + 1;
        let error = ProtocolError::TooLong { what, length, limit };
        assert_eq!(Header::decode(&header(length, kind, 0)), Err(error));
    }
}
