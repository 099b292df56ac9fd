// SPDX-License-Identifier: GPL-2.0-or-later
//! NEXT, BATCH and REMAINDER.

use super::*;
use crate::wire::rounds::{BatchEnd, decode_batch, decode_next, encode_batch, encode_next};

proptest! {
    #[test]
    fn next_round_trip(max in 1..=MAX_FETCH_PAGES) {
        prop_assert_eq!(decode_next(&encode_next(max)), Ok(max));
    }

    #[test]
    fn batch_round_trip(round in 1_u32.., over: bool) {
        let batch = BatchEnd { round, over };
        prop_assert_eq!(decode_batch(&encode_batch(batch)), Ok(batch));
    }

    #[test]
    fn remainder_round_trip(ranges in vec(any_range(), 1..80)) {
        let decoded = ranges::decode_remainder(&ranges::encode(0, &ranges), &small_export());
        prop_assert_eq!(decoded, Ok(Some(ExportRanges { export: 0, ranges })));
    }

    /// No decoder panics or takes much memory, whatever it is given.
    #[test]
    fn garbage_is_refused_or_means_something(bytes in vec(any::<u8>(), 0..40)) {
        let _ = decode_next(&bytes);
        let _ = decode_batch(&bytes);
        let _ = ranges::decode_remainder(&bytes, &small_export());
    }
}

/// A payload of these numbers of 32 bits.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn next_with_invalid_fields_is_refused() {
    let next = |fields: &[u32]| decode_next(&words(fields));
    assert_eq!(next(&[4096, 0]), Ok(4096));
    for max in [0, 4097, u32::MAX] {
        assert_eq!(next(&[max, 0]), Err(ProtocolError::MaxPages(max)));
    }
    assert_eq!(next(&[1, 1]), Err(ProtocolError::Reserved("NEXT")));
    assert_eq!(next(&[1]), Err(ProtocolError::Short("NEXT")));
    assert_eq!(next(&[1, 0, 0]), Err(ProtocolError::Trailing { what: "NEXT", extra: 4 }));
}

#[test]
fn batch_with_invalid_fields_is_refused() {
    let batch = |fields: &[u32]| decode_batch(&words(fields));
    assert_eq!(batch(&[7, 1, 0, 0]), Ok(BatchEnd { round: 7, over: true }));
    assert_eq!(batch(&[0, 0, 0, 0]), Err(ProtocolError::Round { got: 0, least: 1 }));
    assert_eq!(batch(&[1, 2, 0, 0]), Err(ProtocolError::Over(2)));
    assert_eq!(batch(&[1, 0, 1, 0]), Err(ProtocolError::Reserved("BATCH")));
    assert_eq!(batch(&[1, 0, 0, 1]), Err(ProtocolError::Reserved("BATCH")));
    assert_eq!(batch(&[1, 0, 0]), Err(ProtocolError::Short("BATCH")));
    assert_eq!(
        batch(&[1, 0, 0, 0, 0]),
        Err(ProtocolError::Trailing { what: "BATCH", extra: 4 })
    );
}

#[test]
fn remainder_with_invalid_fields_is_refused() {
    let remainder = |fields: &[u32]| ranges::decode_remainder(&words(fields), &small_export());
    assert_eq!(remainder(&[0, 0]), Ok(None));
    // More pages than a READ may have.
    let all = PageRange::of_pages(1 << 20).expect("pages");
    let large = [Export {
        pages: all,
        ..small_export().remove(0)
    }];
    let whole = ExportRanges {
        export: 0,
        ranges: vec![all],
    };
    assert_eq!(ranges::decode_remainder(&ranges::encode(0, &[all]), &large), Ok(Some(whole)));
    assert_eq!(remainder(&[1, 0]), Err(ProtocolError::Reserved("REMAINDER")));
    assert_eq!(
        remainder(&[0, 0, 0]),
        Err(ProtocolError::Trailing {
            what: "REMAINDER",
            extra: 4
        })
    );
    assert_eq!(remainder(&[0]), Err(ProtocolError::Short("REMAINDER")));
    assert_eq!(remainder(&[0, 1, 5, 0]), Err(ProtocolError::Short("REMAINDER")));
    assert_eq!(remainder(&[1, 1, 5, 0, 1, 0]), Err(ProtocolError::NoExport(1)));
    for (pgoff, nr_pages) in [(2000, 1), (1999, 2), (0, 0), (5, 2000)] {
        assert_eq!(
            remainder(&[0, 1, pgoff, 0, nr_pages, 0]),
            Err(ProtocolError::Outside {
                pgoff: pgoff.into(),
                nr_pages: nr_pages.into()
            })
        );
    }
    let limit = crate::export::MAX_FETCH_RANGES as u32;
    assert_eq!(
        remainder(&[0, limit + 1]),
        Err(ProtocolError::Count {
            what: "REMAINDER",
            count: limit + 1,
            limit
        })
    );
}

#[test]
fn header_with_a_length_beyond_that_of_its_type_is_refused() {
    for (kind, what, limit) in [(7, "NEXT", 8), (8, "BATCH", 16), (9, "REMAINDER", 8 + 16 * 1024)] {
        assert!(Header::decode(&header(limit, kind, 0)).is_ok(), "{what}");
        let length = limit + 1;
        assert_eq!(
            Header::decode(&header(length, kind, 0)),
            Err(ProtocolError::TooLong { what, length, limit })
        );
    }
}
