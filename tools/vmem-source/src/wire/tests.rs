// SPDX-License-Identifier: GPL-2.0
//! What is encoded is decoded again, and nothing else is.

mod rounds;

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
    prop_oneof![Just(Version::V3), Just(Version::V4)]
}

fn any_lane() -> impl Strategy<Value = Lane> {
    prop_oneof![Just(Lane::Urgent), Just(Lane::Stream)]
}

fn any_export() -> impl Strategy<Value = Export> {
    ("[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}", 1..=MAX_PAGES, any::<u128>()).prop_filter_map("reserved", |(name, pages, identity)| {
        let (name, pages) = (Name::new(&name).ok()?, PageRange::of_pages(pages)?);
        Some(Export { name, pages, identity })
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
    let kind = prop_oneof![Just(Kind::Data), Just(Kind::Zero), Just(Kind::Unreadable)];
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
    header.verify(payload)?;
    Ok((header, payload.to_vec()))
}

fn small_export() -> Vec<Export> {
    vec![Export {
        name: Name::new("ram").expect("a name"),
        pages: PageRange::of_pages(2000).expect("pages"),
        identity: 7,
    }]
}

proptest! {
    #[test]
    fn greeting_round_trip(version in any_version(), lane in any_lane(), features: u64) {
        let greeting = Greeting { version, lane, features };
        prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
    }

    #[test]
    fn exports_round_trip(list in any_exports()) {
        prop_assert_eq!(exports::decode(&exports::encode(&list, Version::V4), Version::V4), Ok(list));
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
        let length: u64 = runs.iter().filter(|run| run.kind == Kind::Data).map(|run| run.range.count()).sum();
        let data = vec![byte; length as usize * PAGE_SIZE];
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
fn any_damaged_bit_of_a_frame_is_refused() {
    let frame = framed(Type::Pages, 9, b"contents of pages");
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(unframe(&damaged), Err(ProtocolError::Checksum { .. })), "bit {bit}");
    }
}

#[test]
fn any_damaged_bit_of_a_greeting_is_refused() {
    let greeting = Greeting {
        version: Version::LATEST,
        lane: Lane::Stream,
        features: 0,
    }
    .encode();
    for bit in 0..greeting.len() * 8 {
        let mut damaged = greeting;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Greeting::decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn truncated_payload_is_refused() {
    let mut head = Vec::new();
    let run = |first, count, kind| Run {
        range: PageRange::from_pgoff(first, count).expect("a range"),
        kind,
    };
    pages::encode_head(0, &[run(0, 1, Kind::Data), run(1, 9, Kind::Zero)], &mut head);
    let pages_payload = [&head[..], &[7; PAGE_SIZE]].concat();
    let question_payload = ranges::encode(
        0,
        &[
            PageRange::from_pgoff(1, 1).expect("a range"),
            PageRange::from_pgoff(5, 6).expect("a range"),
        ],
    );
    let exports_payload = exports::encode(&small_export(), Version::LATEST);
    for end in 0..pages_payload.len() {
        assert!(
            pages::decode(&pages_payload[..end], &mut Vec::new()).is_err(),
            "PAGES up to {end}"
        );
    }
    for end in 0..question_payload.len() {
        assert!(
            ranges::decode(&question_payload[..end], &small_export()).is_err(),
            "READ up to {end}"
        );
    }
    for end in 0..exports_payload.len() {
        assert!(
            exports::decode(&exports_payload[..end], Version::LATEST).is_err(),
            "EXPORTS up to {end}"
        );
    }
    for payload in [pages_payload, question_payload, exports_payload] {
        let longer = [&payload[..], &[0]].concat();
        assert!(pages::decode(&longer, &mut Vec::new()).is_err());
        assert!(ranges::decode(&longer, &small_export()).is_err());
        assert!(exports::decode(&longer, Version::LATEST).is_err());
    }
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

#[test]
fn header_with_invalid_fields_is_refused() {
    assert!(Header::decode(&header(MAX_PAYLOAD, 3, 0)).is_ok());
    let too_long = ProtocolError::TooLong {
        what: "PAGES",
        length: u32::MAX,
        limit: MAX_PAYLOAD,
    };
    assert_eq!(Header::decode(&header(u32::MAX, 3, 0)), Err(too_long));
    assert!(matches!(
        Header::decode(&header(1, 4, 0)),
        Err(ProtocolError::TooLong { what: "GOODBYE", .. })
    ));
    assert!(matches!(
        Header::decode(&header(1 << 15, 2, 0)),
        Err(ProtocolError::TooLong { what: "READ", .. })
    ));
    assert_eq!(Header::decode(&header(0, 0, 0)), Err(ProtocolError::Type(0)));
    assert_eq!(Header::decode(&header(0, 10, 0)), Err(ProtocolError::Type(10)));
    assert_eq!(Header::decode(&header(0, 1, 1)), Err(ProtocolError::Reserved("a header")));
}

#[test]
fn greeting_with_invalid_fields_is_refused() {
    let with = |at: usize, byte: u8| {
        let mut bytes = Greeting {
            version: Version::LATEST,
            lane: Lane::Urgent,
            features: 0,
        }
        .encode();
        bytes[at] = byte;
        let checksum = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        Greeting::decode(&bytes)
    };
    assert_eq!(with(0, b'X'), Err(ProtocolError::Magic(*b"XMEMPAGE")));
    assert_eq!(with(8, 1), Err(ProtocolError::Version(1)));
    assert_eq!(with(10, 3), Err(ProtocolError::Lane(3)));
    assert_eq!(with(11, 1), Err(ProtocolError::Reserved("a greeting")));
}

#[test]
fn read_outside_of_an_export_is_refused() {
    let ask = |export: u32, ranges: &[(u64, u64)]| {
        let mut payload = export.to_le_bytes().to_vec();
        payload.extend((ranges.len() as u32).to_le_bytes());
        for (first, count) in ranges {
            payload.extend(first.to_le_bytes());
            payload.extend(count.to_le_bytes());
        }
        ranges::decode(&payload, &small_export()).map(|_| ())
    };
    assert_eq!(ask(0, &[(1999, 1)]), Ok(()));
    assert_eq!(ask(1, &[(0, 1)]), Err(ProtocolError::NoExport(1)));
    assert_eq!(ask(u32::MAX, &[(0, 1)]), Err(ProtocolError::NoExport(u32::MAX)));
    for outside in [
        (2000, 1),
        (0, 2001),
        (1999, 2),
        (0, 0),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
    ] {
        let error = ProtocolError::Outside {
            pgoff: outside.0,
            nr_pages: outside.1,
        };
        assert_eq!(ask(0, &[(0, 1), outside]), Err(error));
    }
    assert_eq!(ask(0, &[(0, 2000), (0, 2000), (0, 97)]), Err(ProtocolError::TooMuch(4097)));
    assert!(matches!(ask(0, &[]), Err(ProtocolError::Count { count: 0, .. })));
    assert!(matches!(
        ask(0, &[(0, 1); 1025]),
        Err(ProtocolError::Count { count: 1025, .. })
    ));
}

#[test]
fn export_that_cannot_be_a_region_is_refused() {
    let export = |name: &[u8], size: u64, page_size: u32| {
        let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(size.to_le_bytes());
        payload.extend(page_size.to_le_bytes());
        // Reserved, and the identity.
        payload.extend([0; 4 + 16]);
        payload.extend(name);
        payload.extend(vec![0; 32 - name.len()]);
        exports::decode(&payload, Version::LATEST).map(|_| ())
    };
    assert_eq!(export(b"ram", 4096, 4096), Ok(()));
    assert_eq!(export(b"ram", 1 << 44, 4096), Ok(()));
    for size in [0, 1, 4095, 4097, (1 << 44) + 4096, u64::MAX] {
        assert_eq!(
            export(b"ram", size, 4096),
            Err(ProtocolError::Size {
                name: "ram".into(),
                size
            })
        );
    }
    assert_eq!(
        export(b"ram", 4096, 8192),
        Err(ProtocolError::PageSize {
            name: "ram".into(),
            page_size: 8192
        })
    );
    for name in [&b""[..], b"control", b".ram", b"a/b", b"a\0b", b"\xff", &[b'x'; 32]] {
        assert!(
            matches!(export(name, 4096, 4096), Err(ProtocolError::Name(_))),
            "{}",
            name.escape_ascii()
        );
    }
    let twice = exports::encode(&[small_export(), small_export()].concat(), Version::LATEST);
    assert_eq!(
        exports::decode(&twice, Version::LATEST),
        Err(ProtocolError::DuplicateName("ram".into()))
    );
    assert!(matches!(
        exports::decode(&[0; 8], Version::LATEST),
        Err(ProtocolError::Count { count: 0, .. })
    ));
    let mut reserved = exports::encode(&small_export(), Version::LATEST);
    reserved[4] = 1;
    assert_eq!(
        exports::decode(&reserved, Version::LATEST),
        Err(ProtocolError::Reserved("EXPORTS"))
    );
}

#[test]
fn pages_frame_with_invalid_runs_is_refused() {
    let pages = |count: u32, pgoff: u64, nr_pages: u32, kind: u32, data: usize| {
        let mut payload = 0_u32.to_le_bytes().to_vec();
        payload.extend(count.to_le_bytes());
        payload.extend(pgoff.to_le_bytes());
        payload.extend(nr_pages.to_le_bytes());
        payload.extend(kind.to_le_bytes());
        payload.resize(payload.len() + data, 1);
        pages::decode(&payload, &mut Vec::new()).map(|_| ())
    };
    assert_eq!(pages(1, 5, 1, 0, PAGE_SIZE), Ok(()));
    assert_eq!(
        pages(1, 5, u32::MAX, 1, 0),
        Ok(()),
        "a length that the connection will not have asked for"
    );
    assert_eq!(pages(1, 5, 1, 3, 0), Err(ProtocolError::Kind(3)));
    assert_eq!(pages(1, 5, 0, 1, 0), Err(ProtocolError::Outside { pgoff: 5, nr_pages: 0 }));
    assert_eq!(
        pages(1, u64::MAX, 1, 1, 0),
        Err(ProtocolError::Outside {
            pgoff: u64::MAX,
            nr_pages: 1
        })
    );
    assert_eq!(pages(1, 5, 2, 0, PAGE_SIZE), Err(ProtocolError::Short("PAGES")));
    assert_eq!(pages(1, 5, u32::MAX, 0, PAGE_SIZE), Err(ProtocolError::Short("PAGES")));
    assert_eq!(
        pages(1, 5, 1, 0, PAGE_SIZE + 1),
        Err(ProtocolError::Trailing { what: "PAGES", extra: 1 })
    );
    assert_eq!(pages(1, 5, 1, 2, 1), Err(ProtocolError::Trailing { what: "PAGES", extra: 1 }));
    assert!(matches!(
        pages(0, 5, 1, 0, PAGE_SIZE),
        Err(ProtocolError::Count { count: 0, .. })
    ));
    let too_many = Chunk::MAX_RUNS as u32 + 1;
    assert!(matches!(
        pages(too_many, 5, 1, 0, PAGE_SIZE),
        Err(ProtocolError::Count { .. })
    ));
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
