// SPDX-License-Identifier: GPL-2.0-or-later
//! Bytes that are damaged, truncated or invalid are refused.

use super::*;

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
    assert_eq!(Header::decode(&header(0, 99, 0)), Err(ProtocolError::Type(99)));
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
    assert_eq!(pages(1, 5, 1, 5, 0), Err(ProtocolError::Kind(5)));
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
