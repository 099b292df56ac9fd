// SPDX-License-Identifier: GPL-2.0-or-later
//! What is encoded is decoded again, and nothing else is.

mod compression;
mod digests;
mod map;
mod refused;
mod rounds;
mod session;

use proptest::collection::vec;
use proptest::prelude::*;
use vmem::{Name, PAGE_SIZE, PageRange};

use super::frame::{self, HEADER_SIZE, Header, MAX_PAYLOAD, Type};
use super::greeting::Greeting;
use super::version::Version;
use super::{ErrorCode, ProtocolError, exports, pages, ranges, refusal};
use crate::answer::{Answer, Chunk, Kind, Run};
use crate::export::{Export, ExportRanges, Lane, MAX_FETCH_PAGES, MAX_PAGES};

fn any_version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V3), Just(Version::V4), Just(Version::V5)]
}

fn any_lane() -> impl Strategy<Value = Lane> {
    prop_oneof![Just(Lane::Urgent), Just(Lane::Stream)]
}

fn any_export() -> impl Strategy<Value = Export> {
    let fields = (
        "[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}",
        1..=MAX_PAGES,
        0..PAGE_SIZE as u16,
        any::<u128>(),
    );
    fields.prop_filter_map("reserved", |(name, pages, padding, identity)| {
        let (name, pages) = (Name::new(&name).ok()?, PageRange::of_pages(pages)?);
        Some(Export {
            name,
            pages,
            padding,
            identity,
        })
    })
}

fn any_exports() -> impl Strategy<Value = Vec<Export>> {
    vec(any_export(), 1..20).prop_map(|mut exports| {
        exports.sort_by(|a, b| a.name.cmp(&b.name));
        exports.dedup_by(|a, b| a.name == b.name);
        exports
    })
}

fn any_range() -> impl Strategy<Value = PageRange> {
    (0..1000_u64, 1..50_u64).prop_filter_map("too long", |(first, count)| PageRange::from_pgoff(first, count))
}

fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    let kind = prop_oneof![
        Just(Kind::Data),
        Just(Kind::Zero),
        Just(Kind::Unreadable),
        Just(Kind::Known),
        Just(Kind::Same)
    ];
    vec(((0..MAX_PAGES - 4), 1..4_u64, kind), 1..20).prop_map(|runs| {
        runs.into_iter()
            .filter_map(|(first, count, kind)| PageRange::from_pgoff(first, count).map(|range| Run { range, kind }))
            .collect()
    })
}

fn framed(kind: Type, tag: u32, payload: &[u8]) -> Vec<u8> {
    [&frame::encode(kind, tag, &[payload])[..], payload].concat()
}

/// Takes a frame as a connection does.
fn unframe(bytes: &[u8]) -> Result<(Header, Vec<u8>), ProtocolError> {
    let (header, rest) = bytes
        .split_first_chunk::<HEADER_SIZE>()
        .ok_or(ProtocolError::Short("header"))?;
    let header = Header::decode(header)?;
    let payload = rest.get(..header.length as usize).ok_or(ProtocolError::Short("payload"))?;
    header.verify(payload, frame::Sum::Xxh3)?;
    Ok((header, payload.to_vec()))
}

fn small_export() -> Vec<Export> {
    vec![Export {
        name: Name::new("ram").expect("a name"),
        pages: PageRange::of_pages(2000).expect("pages"),
        padding: 0,
        identity: 7,
    }]
}

/// A header with a good checksum, whatever it says.
fn header(length: u32, kind: u8, reserved: u8) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
    bytes[4] = kind;
    bytes[6] = reserved;
    let checksum = crc32c::crc32c(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn greeting_round_trip(version in any_version(), lane in any_lane(), features: u64) {
        let greeting = Greeting { version, lane, features };
        prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
    }

    #[test]
    fn exports_round_trip(list in any_exports()) {
        prop_assert_eq!(exports::decode(&exports::encode(&list, Version::V5), Version::V5), Ok(list.clone()));
        let whole: Vec<_> = list.iter().map(|export| Export { padding: 0, ..export.clone() }).collect();
        prop_assert_eq!(exports::decode(&exports::encode(&list, Version::V4), Version::V4), Ok(whole));
    }

    #[test]
    fn exports_of_version_3_have_short_identities_that_differ(list in any_exports(), other: u128) {
        let short = |list: &[Export]| exports::decode(&exports::encode(list, Version::V3), Version::V3).expect("exports");
        let found = short(&list);
        let without = |list: &[Export]| list.iter().map(|export| (export.name.clone(), export.pages)).collect::<Vec<_>>();
        prop_assert_eq!(without(&found), without(&list));
        prop_assert!(found.iter().all(|export| export.identity <= u32::MAX.into()));
        let mut others = list.clone();
        others[0].identity ^= other | 1;
        prop_assume!(crc32c::crc32c(&others[0].identity.to_le_bytes()) != crc32c::crc32c(&list[0].identity.to_le_bytes()));
        prop_assert_ne!(short(&others), found);
    }

    #[test]
    fn question_round_trip(ranges in vec(any_range(), 1..80)) {
        let decoded = ranges::decode(&ranges::encode(0, &ranges), &small_export());
        let total: u64 = ranges.iter().map(|range| range.count()).sum();
        prop_assume!(total <= MAX_FETCH_PAGES);
        prop_assert_eq!(decoded, Ok(ExportRanges { export: 0, ranges }));
    }

    #[test]
    fn pages_round_trip(runs in any_runs(), byte: u8) {
        let length: usize = runs.iter().map(|run| run.range.count() as usize * run.kind.bytes()).sum();
        let data = vec![byte; length];
        let mut head = Vec::new();
        pages::encode_head(3, &runs, &mut head);
        let payload = [&head[..], &data].concat();
        let mut decoded = Vec::new();
        let (export, found) = pages::decode(&payload, &mut decoded).expect("its own encoding");
        prop_assert_eq!(export, 3);
        prop_assert_eq!(found, &data[..]);
        prop_assert_eq!(&decoded, &runs);
        prop_assert!(Answer::new(0, &decoded, found).is_some());
    }

    #[test]
    fn refusal_round_trip(code: u32, text in "[ -~]{0,100}") {
        let (decoded, said) = refusal::decode(&refusal::encode(code.into(), &text)).expect("its own encoding");
        prop_assert_eq!(u32::from(decoded), code);
        prop_assert_eq!(said, text);
    }

    #[test]
    fn frame_round_trip(payload in vec(any::<u8>(), 0..500), tag: u32) {
        let (header, found) = unframe(&framed(Type::Pages, tag, &payload)).expect("its own encoding");
        prop_assert_eq!((header.kind, header.tag), (Type::Pages, tag));
        prop_assert_eq!(found, payload);
    }

    /// No decoder panics or takes much memory, whatever it is given.
    #[test]
    fn garbage_is_refused_or_means_something(bytes in vec(any::<u8>(), 0..200)) {
        let _ = unframe(&bytes);
        let _ = exports::decode(&bytes, Version::LATEST);
        let _ = exports::decode(&bytes, Version::V3);
        let _ = ranges::decode(&bytes, &small_export());
        let _ = pages::decode(&bytes, &mut Vec::new());
        let _ = refusal::decode(&bytes);
    }
}

#[test]
fn error_text_is_truncated_and_has_no_control_characters() {
    let text = "\u{1b}[2Jä".repeat(200);
    let payload = refusal::encode(ErrorCode::Busy, &text);
    assert!(payload.len() <= refusal::MAX_SIZE);
    let (code, said) = refusal::decode(&payload).expect("a whole payload");
    assert_eq!(code, ErrorCode::Busy);
    assert!(said.starts_with("?[2Jä?[2J") && !said.chars().any(char::is_control));
}
