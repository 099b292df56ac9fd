// SPDX-License-Identifier: GPL-2.0-or-later
//! COMPRESS, and compressed contents: what is compressed comes back, and nothing else does.

use super::*;
use crate::compression::Compression;
use crate::wire::compression::{Coding, Compressor, Decompressor, decode_compress, encode_compress};
use crate::wire::frame::Sum;

fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::Lz4),
        (1..=Compression::MAX_LEVEL).prop_map(Compression::Zstd)
    ]
}

/// Pages of words that repeat, so that they compress.
fn any_pages() -> impl Strategy<Value = Vec<u8>> {
    (1..8_usize, vec(any::<u8>(), 1..600)).prop_map(|(pages, word)| word.into_iter().cycle().take(pages * PAGE_SIZE).collect())
}

fn coding_of(compression: Compression) -> Coding {
    match compression {
        Compression::None => Coding::Plain,
        Compression::Lz4 => Coding::Lz4,
        Compression::Zstd(_) => Coding::Zstd,
    }
}

proptest! {
    #[test]
    fn compress_round_trip(compression in any_compression()) {
        prop_assert_eq!(decode_compress(&encode_compress(compression)), Ok(compression));
    }

    #[test]
    fn contents_round_trip(compression in any_compression(), all in vec(any_pages(), 1..4)) {
        let mut compressor = Compressor::new(compression).expect("a context");
        let mut decompressor = Decompressor::new(compression).expect("a context");
        for data in all {
            let (coding, found) = compressor.compress(&data).expect("it becomes smaller");
            prop_assert!(found.len() < data.len());
            prop_assert_eq!(decompressor.decompress(coding, found, Some(data.len())), Ok(()));
            prop_assert_eq!(decompressor.contents(data.len()), &data[..]);
        }
    }

    /// Neither damage nor garbage panics, or gives contents of another length.
    #[test]
    fn damaged_contents_are_refused_or_have_their_length(
        compression in any_compression(),
        data in any_pages(),
        damage in vec((any::<prop::sample::Index>(), 1..=255_u8), 0..4),
        cut in any::<prop::sample::Index>(),
        garbage in vec(any::<u8>(), 0..100),
    ) {
        let mut compressor = Compressor::new(compression).expect("a context");
        let mut decompressor = Decompressor::new(compression).expect("a context");
        let (coding, found) = compressor.compress(&data).expect("it becomes smaller");
        let mut damaged = found.to_vec();
        for (at, bits) in damage {
            let at = at.index(damaged.len());
            damaged[at] ^= bits;
        }
        let _ = decompressor.decompress(coding, &damaged, Some(data.len()));
        let shorter = &found[..cut.index(found.len())];
        prop_assert_eq!(decompressor.decompress(coding, shorter, Some(data.len())), Err(ProtocolError::Decompress));
        let _ = decompressor.decompress(coding, &garbage, Some(data.len()));
        prop_assert!(decompressor.contents(data.len()).len() <= data.len());
    }
}

#[test]
fn compress_with_invalid_fields_is_refused() {
    let compress = |coding: u32, level: u32| decode_compress([coding, level].map(u32::to_le_bytes).as_flattened());
    assert_eq!(compress(0, 0), Ok(Compression::None));
    assert_eq!(compress(1, 0), Ok(Compression::Lz4));
    assert_eq!(compress(2, 9), Ok(Compression::Zstd(9)));
    for (coding, level) in [
        (0, 1),
        (1, 1),
        (2, 0),
        (2, 10),
        (2, 257),
        (2, u32::MAX),
        (3, 0),
        (256, 0),
        (258, 1),
        (u32::MAX, 1),
    ] {
        assert_eq!(compress(coding, level), Err(ProtocolError::Compression { coding, level }));
    }
    assert_eq!(decode_compress(&[1, 0, 0, 0]), Err(ProtocolError::Short("COMPRESS")));
    let long = [2, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(
        decode_compress(&long),
        Err(ProtocolError::Trailing {
            what: "COMPRESS",
            extra: 1
        })
    );
}

#[test]
fn coding_is_a_field_of_the_header_of_pages_alone() {
    let with = |kind: u8, coding: u8| {
        let mut bytes = header(0, kind, 0);
        bytes[5] = coding;
        let checksum = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        Header::decode(&bytes).map(|header| header.coding)
    };
    assert_eq!(with(3, 0), Ok(Coding::Plain));
    assert_eq!(with(3, 1), Ok(Coding::Lz4));
    assert_eq!(with(3, 2), Ok(Coding::Zstd));
    assert_eq!(with(3, 3), Err(ProtocolError::Coding(3)));
    assert_eq!(with(2, 1), Err(ProtocolError::Reserved("a header")));
    assert!(Header::decode(&header(8, 17, 0)).is_ok());
    let (what, length, limit) = ("COMPRESS", 9, 8);
    assert_eq!(
        Header::decode(&header(9, 17, 0)),
        Err(ProtocolError::TooLong { what, length, limit })
    );
}

/// Contents that say they are longer than the runs, or runs that say that they are longer than any frame.
#[test]
fn bomb_is_refused_before_anything_is_allocated_for_it() {
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let coding = coding_of(compression);
        let mut compressor = Compressor::new(compression).expect("a context");
        let large = vec![7; 1 << 20];
        let bomb = compressor.compress(&large).expect("it becomes smaller").1.to_vec();
        assert!(bomb.len() < 8192, "{}", bomb.len());
        let mut decompressor = Decompressor::new(compression).expect("a context");
        let mut decompress = |length| decompressor.decompress(coding, &bomb, length);
        assert_eq!(
            decompress(Some(PAGE_SIZE)),
            Err(ProtocolError::Decompress),
            "more than the runs say"
        );
        assert_eq!(decompress(Some((1 << 20) - PAGE_SIZE)), Err(ProtocolError::Decompress));
        assert_eq!(decompress(Some(0)), Err(ProtocolError::Decompress));
        let limit = MAX_PAYLOAD;
        assert_eq!(
            decompress(Some((1 << 20) + PAGE_SIZE)),
            Err(ProtocolError::Inflated { limit })
        );
        assert_eq!(decompress(Some(usize::MAX)), Err(ProtocolError::Inflated { limit }));
        assert_eq!(
            decompress(None),
            Err(ProtocolError::Inflated { limit }),
            "not even a number of bytes"
        );
        assert_eq!(decompress(Some(1 << 20)), Ok(()));
    }
}

#[test]
fn coding_that_was_not_asked_for_is_refused() {
    let mut decompressor = Decompressor::new(Compression::Lz4).expect("a context");
    for coding in [Coding::Plain, Coding::Zstd] {
        let refused = ProtocolError::Coding(coding as u8);
        assert_eq!(decompressor.decompress(coding, &[0], Some(PAGE_SIZE)), Err(refused));
    }
    let refused = Decompressor::default().decompress(Coding::Lz4, &[0], Some(PAGE_SIZE));
    assert_eq!(refused, Err(ProtocolError::Coding(1)));
}

#[test]
fn contents_that_do_not_become_smaller_stay_as_they_are_and_are_tried_less_often() {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..4 * PAGE_SIZE).map(|_| random()).collect();
    for compression in [Compression::Lz4, Compression::Zstd(3)] {
        let mut compressor = Compressor::new(compression).expect("a context");
        assert!((0..40).all(|_| compressor.compress(&noise).is_none()));
        let smooth = vec![3; 4 * PAGE_SIZE];
        let waits = (0..100).find(|_| compressor.compress(&smooth).is_some());
        assert!(waits.is_some_and(|waits| (1..=15).contains(&waits)), "{waits:?}");
        assert!(
            compressor.compress(&smooth).is_some(),
            "it is tried again at once from now on"
        );
    }
    let mut none = Compressor::default();
    assert!(none.compress(&[0; PAGE_SIZE]).is_none());
}

#[test]
fn frames_without_contents_do_not_stop_compression() {
    for compression in [Compression::Lz4, Compression::Zstd(3)] {
        let mut compressor = Compressor::new(compression).expect("a context");
        assert!((0..40).all(|_| compressor.compress(&[]).is_none()));
        assert!(compressor.compress(&[3; 4 * PAGE_SIZE]).is_some());
    }
}

#[test]
fn payload_without_a_checksum_has_zero_in_its_place() {
    let payload = b"contents of pages";
    let bytes = frame::encode_as(Type::Pages, Coding::Plain, 9, &[payload], Sum::None);
    assert_eq!(bytes[12..20], [0; 8]);
    let decoded = Header::decode(&bytes).expect("a header");
    assert_eq!(decoded.verify(b"any bytes", Sum::None), Ok(()));
    assert!(decoded.verify(payload, Sum::Xxh3).is_err(), "one side does not omit it alone");
    let with = Header::decode(&frame::encode(Type::Pages, 9, &[payload])).expect("a header");
    assert!(with.verify(payload, Sum::None).is_err());
    for bit in 0..HEADER_SIZE * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&damaged).is_err(), "bit {bit}");
    }
}
