// SPDX-License-Identifier: GPL-2.0-or-later
//! A source whose compressed contents are wrong gets an error, and what it omits must have been agreed.

use super::*;
use crate::compression::Compression;
use crate::endpoint::{Endpoint, Security};
use crate::wire::compression::{Coding, Compressor};
use crate::wire::frame::{Sum, encode_as};
use crate::wire::greeting::{FEATURE_COMPRESS, FEATURE_NO_CHECKSUM};

/// A frame with these runs, and these contents in this coding.
fn coded(coding: Coding, runs: &[(u64, u64, Kind)], contents: &[u8]) -> Vec<u8> {
    let runs: Vec<_> = runs
        .iter()
        .map(|(first, count, kind)| Run {
            range: PageRange::from_pgoff(*first, *count).expect("a range"),
            kind: *kind,
        })
        .collect();
    let mut payload = Vec::new();
    pages::encode_head(0, &runs, &mut payload);
    payload.extend(contents);
    [&encode_as(Type::Pages, coding, 1, &[&payload], Sum::Xxh3)[..], &payload].concat()
}

fn compressed(compression: Compression, pages: usize) -> Vec<u8> {
    let mut compressor = Compressor::new(compression).expect("a context");
    let data = vec![0x5a; pages * PAGE_SIZE];
    compressor.compress(&data).expect("it becomes smaller").1.to_vec()
}

/// Fetches ten pages with this compression. Returns the first bytes of the answers, and what they took on the network.
fn fetch_compressed(compression: Compression, bytes: Vec<u8>) -> Result<(Vec<u8>, u64), Error> {
    let endpoint = Endpoint::new(&sender(bytes).to_string(), Security::Loopback, TIMEOUT);
    let mut peer = endpoint.compress(compression, Compression::None).connect(Lane::Stream)?;
    peer.fetch(0, &[PageRange::of_pages(10).expect("pages")])?;
    let (mut found, mut missing, mut wire) = (Vec::new(), 10, 0);
    while missing > 0 {
        let answer = peer.next_answer()?;
        missing -= answer.pages();
        wire += answer.wire_bytes();
        found.extend(answer.contents().map(|(range, contents)| match contents {
            Contents::Data(data) => {
                assert_eq!(data.len() as u64, range.count() * PAGE_SIZE as u64);
                data[data.len() - 1]
            }
            Contents::Zero => 0,
            Contents::Unreadable | Contents::Known(_) | Contents::Same => 0xff,
        }));
    }
    Ok((found, wire))
}

#[test]
fn compressed_and_plain_contents_are_accepted_side_by_side() {
    for (compression, coding) in [(Compression::Lz4, Coding::Lz4), (Compression::Zstd(3), Coding::Zstd)] {
        let contents = compressed(compression, 5);
        let frames = [
            hello_with(Lane::Stream, FEATURE_COMPRESS),
            coded(
                coding,
                &[(0, 2, Kind::Data), (2, 1, Kind::Zero), (3, 3, Kind::Data)],
                &contents,
            ),
            pages_frame(1, 0, &[(6, 1, Kind::Data), (7, 3, Kind::Unreadable)]),
        ];
        let length = frames[1..].concat().len() as u64;
        let (found, wire) = fetch_compressed(compression, frames.concat()).expect("good answers");
        assert_eq!(found, [0x5a, 0, 0x5a, 0xda, 0xff]);
        assert_eq!(wire, length);
    }
}

#[test]
fn compressed_contents_that_are_wrong_are_refused() {
    let zstd = Compression::Zstd(1);
    let whole = [(0, 10, Kind::Data)];
    let good = compressed(zstd, 10);
    let wide = u64::from(u32::MAX);
    for (frame, expected) in [
        (
            coded(Coding::Zstd, &whole, &good[..good.len() - 1]),
            ProtocolError::Decompress,
        ),
        (coded(Coding::Zstd, &whole, &[]), ProtocolError::Decompress),
        (coded(Coding::Zstd, &whole, b"not compressed"), ProtocolError::Decompress),
        (coded(Coding::Zstd, &whole, &compressed(zstd, 11)), ProtocolError::Decompress),
        (coded(Coding::Zstd, &whole, &compressed(zstd, 9)), ProtocolError::Decompress),
        (coded(Coding::Zstd, &[(0, 10, Kind::Zero)], &good), ProtocolError::Decompress),
        (
            coded(Coding::Zstd, &whole, &[&good[..], &good].concat()),
            ProtocolError::Decompress,
        ),
        (
            coded(Coding::Lz4, &whole, &compressed(Compression::Lz4, 10)),
            ProtocolError::Coding(1),
        ),
        // More pages than were asked for are refused before anything is decompressed.
        (
            coded(Coding::Zstd, &[(0, wide, Kind::Data)], &good),
            ProtocolError::Unrequested {
                pgoff: 0,
                nr_pages: wide,
            },
        ),
    ] {
        let bytes = [hello_with(Lane::Stream, FEATURE_COMPRESS), frame].concat();
        assert_eq!(protocol_error(fetch_compressed(zstd, bytes)), expected);
    }
    let frame = coded(Coding::Zstd, &whole, &good);
    let bytes = [hello_with(Lane::Stream, 0), frame].concat();
    assert_eq!(
        protocol_error(fetch_compressed(zstd, bytes.clone())),
        ProtocolError::Coding(2),
        "not agreed"
    );
    assert_eq!(
        protocol_error(fetch_compressed(Compression::None, bytes)),
        ProtocolError::Coding(2),
        "not offered"
    );
}

#[test]
fn any_damaged_byte_of_compressed_contents_is_an_error() {
    let head = hello_with(Lane::Stream, FEATURE_COMPRESS);
    let frame = coded(Coding::Lz4, &[(0, 10, Kind::Data)], &compressed(Compression::Lz4, 10));
    for at in 0..frame.len() {
        let mut damaged = frame.clone();
        damaged[at] ^= 1 << (at % 8);
        let result = fetch_compressed(Compression::Lz4, [head.clone(), damaged].concat());
        assert!(matches!(result, Err(Error::Protocol(_))), "byte {at}: {result:?}");
    }
}

#[test]
fn source_that_does_not_know_compression_sends_plain_contents() {
    let bytes = [hello_with(Lane::Stream, 0), pages_frame(1, 0, &[(0, 10, Kind::Data)])].concat();
    assert_eq!(fetch_compressed(Compression::Zstd(1), bytes).expect("good answers").0, [0xda]);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for feature in [FEATURE_COMPRESS, FEATURE_NO_CHECKSUM] {
        let result = fetch_compressed(Compression::None, hello_with(Lane::Stream, feature));
        assert_eq!(protocol_error(result), ProtocolError::Features(feature));
    }
    // Without TLS the checksums stay, whatever else is agreed.
    let both = FEATURE_COMPRESS | FEATURE_NO_CHECKSUM;
    let result = fetch_compressed(Compression::Lz4, hello_with(Lane::Stream, both));
    assert_eq!(protocol_error(result), ProtocolError::Features(both));
}
