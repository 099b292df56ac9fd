// SPDX-License-Identifier: GPL-2.0-or-later
//! DIGESTS.

use super::*;
use crate::digest::Key;
use crate::wire::digests::{self, Digests, MAX_DIGESTS};

proptest! {
    #[test]
    fn digests_round_trip(key: [u8; 32], prefixes in vec(any::<u64>(), 0..100)) {
        let key = Key::from_bytes(key);
        let payload = digests::encode(&key, &prefixes);
        prop_assert_eq!(digests::decode(&payload), Ok(Digests { key, prefixes }));
    }

    #[test]
    fn garbage_is_refused_or_means_something(bytes in vec(any::<u8>(), 0..80)) {
        let _ = digests::decode(&bytes);
    }
}

#[test]
fn digests_with_invalid_fields_are_refused() {
    let decode = |words: &[u32], entries: usize| {
        let mut payload = vec![7; 32];
        payload.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        payload.resize(payload.len() + entries, 1);
        digests::decode(&payload).map(|digests| digests.prefixes.len())
    };
    assert_eq!(decode(&[2, 0], 16), Ok(2));
    assert_eq!(decode(&[0, 0], 0), Ok(0));
    assert_eq!(decode(&[1, 1], 8), Err(ProtocolError::Reserved("DIGESTS")));
    assert_eq!(decode(&[1], 0), Err(ProtocolError::Short("DIGESTS")));
    assert_eq!(decode(&[2, 0], 15), Err(ProtocolError::Short("DIGESTS")));
    let (what, extra) = ("DIGESTS", 1);
    assert_eq!(decode(&[1, 0], 9), Err(ProtocolError::Trailing { what, extra }));
    let (limit, count) = (MAX_DIGESTS as u32, MAX_DIGESTS as u32 + 1);
    assert_eq!(decode(&[count, 0], 0), Err(ProtocolError::Count { what, count, limit }));
    let limit = 40 + 8 * 8192;
    assert!(Header::decode(&header(limit, 12, 0)).is_ok());
    let length = limit + 1;
    let error = ProtocolError::TooLong { what, length, limit };
    assert_eq!(Header::decode(&header(length, 12, 0)), Err(error));
}

#[test]
fn run_of_digests_has_16_bytes_a_page_and_one_of_the_same_pages_has_none() {
    let range = |first, count| PageRange::from_pgoff(first, count).expect("a range");
    let runs = [(0, 2, Kind::Known), (2, 5, Kind::Same), (9, 1, Kind::Data)].map(|(first, count, kind)| Run {
        range: range(first, count),
        kind,
    });
    let mut head = Vec::new();
    pages::encode_head(0, &runs, &mut head);
    let with = |data: usize| pages::decode(&[&head[..], &vec![0; data]].concat(), &mut Vec::new()).map(|(_, data)| data.len());
    assert_eq!(with(2 * 16 + PAGE_SIZE), Ok(2 * 16 + PAGE_SIZE));
    assert_eq!(with(2 * 16 + PAGE_SIZE - 1), Err(ProtocolError::Short("PAGES")));
    assert_eq!(
        with(2 * 16 + PAGE_SIZE + 1),
        Err(ProtocolError::Trailing { what: "PAGES", extra: 1 })
    );
}
