// SPDX-License-Identifier: GPL-2.0-or-later
//! A server compresses for those who ask for it, and omits checksums in TLS alone.

use super::*;
use crate::compression::Compression;
use crate::wire::compression::{Coding, encode_compress};
use crate::wire::greeting::{FEATURE_COMPRESS, FEATURE_NO_CHECKSUM};

const PAGES: u64 = 600;

/// Memory of which every third page is zero and all others compress.
fn memory() -> (std::fs::File, Memory) {
    let filled: Vec<u64> = (0..PAGES).filter(|page| page % 3 != 0).collect();
    let file = memfd(PAGES * PAGE_SIZE as u64, &filled);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    (file, memory)
}

/// Fetches all pages on a lane. Returns what they took on the network.
fn fetch_all(endpoint: &Endpoint, lane: Lane) -> u64 {
    let mut peer = endpoint.connect(lane).expect("a peer");
    peer.fetch(0, &[PageRange::of_pages(PAGES).expect("pages")])
        .expect("a question");
    let (mut pages, mut wire) = (0, 0);
    while pages < PAGES {
        let answer = peer.next_answer().expect("an answer");
        wire += answer.wire_bytes();
        for (range, contents) in answer.contents() {
            for (at, page) in range.iter().enumerate() {
                let expected = if page.get() % 3 == 0 {
                    0
                } else {
                    (page.get() % 255) as u8 + 1
                };
                let found = match contents {
                    Contents::Data(data) => data[at * PAGE_SIZE],
                    Contents::Zero => 0,
                    other => panic!("page {page:?}: {other:?}"),
                };
                assert_eq!(found, expected, "page {page:?}");
            }
        }
        pages += answer.pages();
    }
    wire
}

#[test]
fn each_lane_is_compressed_as_it_asks_and_the_bytes_are_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    for identity in [None, Some(Identity::load(directory.path()).expect("an identity"))] {
        let running = Running::protected(identity.clone(), vec![memory().1], LIMITS, |server| server);
        let security = identity.map_or(Security::Loopback, Security::Tls);
        let plain = 400 * PAGE_SIZE as u64;
        for compression in [
            Compression::None,
            Compression::Lz4,
            Compression::Zstd(1),
            Compression::Zstd(9),
        ] {
            let endpoint = Endpoint::new(&running.address.to_string(), security.clone(), Duration::from_secs(10));
            let endpoint = endpoint.compress(compression, Compression::None);
            let before = running.server.totals().bytes.load(Ordering::Relaxed);
            let stream = fetch_all(&endpoint, Lane::Stream);
            assert_eq!(
                stream < plain / 4,
                compression != Compression::None,
                "{compression}: {stream}"
            );
            let (served, error) = running.next_ended();
            assert_eq!((served.data, served.zero, served.bytes, error), (400, 200, stream, None));
            assert_eq!(running.server.totals().bytes.load(Ordering::Relaxed) - before, stream);
            assert!(
                fetch_all(&endpoint, Lane::Urgent) >= plain,
                "the urgent lane was not asked to"
            );
            running.next_ended();
        }
    }
}

#[test]
fn compress_that_was_not_agreed_or_is_invalid_is_refused() {
    let (_file, memory) = memory();
    let running = Running::new(vec![memory], LIMITS);
    let compress = frame(Type::Compress, 0, &encode_compress(Compression::Lz4));
    let text = |frames: &[(Type, Vec<u8>)]| {
        let (kind, payload) = frames.last().expect("a frame");
        assert_eq!(*kind, Type::Error);
        refusal::decode(payload).expect("a whole payload").1
    };
    let frames = converse(&running, &[greeting_with(Lane::Stream, 0), compress.clone()].concat());
    let unexpected = ProtocolError::Unexpected {
        got: "COMPRESS",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    assert_eq!(text(&frames), unexpected.to_string());
    let bad = frame(Type::Compress, 0, &[2, 0, 0, 0, 22, 0, 0, 0]);
    let frames = converse(&running, &[greeting_with(Lane::Stream, FEATURE_COMPRESS), bad].concat());
    assert_eq!(text(&frames), ProtocolError::Compression { coding: 2, level: 22 }.to_string());
    // It holds for the answers to what comes after it.
    let mut socket = running.raw();
    let bytes = [
        greeting_with(Lane::Stream, FEATURE_COMPRESS),
        read_frame(1, 1),
        compress,
        read_frame(1, 1),
    ]
    .concat();
    socket.write_all(&bytes).expect("somebody who listens");
    socket.read_exact(&mut [0; greeting::SIZE]).expect("a greeting");
    let mut codings = Vec::new();
    while codings.len() < 2 {
        let mut header = [0; HEADER_SIZE];
        socket.read_exact(&mut header).expect("a header");
        let header = Header::decode(&header).expect("a header");
        let mut payload = vec![0; header.length as usize];
        socket.read_exact(&mut payload).expect("a payload");
        if header.kind == Type::Pages {
            codings.push(header.coding);
        }
    }
    assert_eq!(codings, [Coding::Plain, Coding::Lz4]);
}

#[test]
fn checksums_are_omitted_in_tls_alone() {
    let (_file, clear) = memory();
    let running = Running::new(vec![clear], LIMITS);
    let mut socket = running.raw();
    socket
        .write_all(&greeting_with(Lane::Stream, u64::MAX))
        .expect("somebody who listens");
    let mut theirs = [0; greeting::SIZE];
    socket.read_exact(&mut theirs).expect("a greeting");
    let features = Greeting::decode(&theirs).expect("a greeting").features;
    assert_eq!(features & FEATURE_NO_CHECKSUM, 0, "never in clear text");

    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    let identity = Identity::load(directory.path()).expect("an identity");
    let running = Running::protected(Some(identity.clone()), vec![memory().1], LIMITS, |server| server);
    for offered in [0, FEATURE_NO_CHECKSUM] {
        let socket = TcpStream::connect(running.address).expect("a connection");
        let (mut socket, _reason) = identity.connect(socket, &running.address.to_string(), TIMEOUT).expect("TLS");
        socket
            .write_all(&greeting_with(Lane::Stream, offered))
            .expect("somebody who listens");
        let mut theirs = [0; greeting::SIZE];
        socket.read_exact(&mut theirs).expect("a greeting");
        assert_eq!(
            Greeting::decode(&theirs).expect("a greeting").features & FEATURE_NO_CHECKSUM,
            offered
        );
        let mut header = [0; HEADER_SIZE];
        socket.read_exact(&mut header).expect("a header");
        assert_eq!(header[12..20] == [0; 8], offered != 0);
        let mut list = vec![0; Header::decode(&header).expect("a header").length as usize];
        socket.read_exact(&mut list).expect("a payload");
        // The other direction is checked as well: a question as agreed, and then one that is not.
        let mut ask = |sum| {
            let question = ranges::encode(0, &[PageRange::of_pages(1).expect("pages")]);
            let header = frame::encode_as(Type::Read, Coding::Plain, 1, &[&question], sum);
            socket
                .write_all(&[&header[..], &question].concat())
                .expect("somebody who listens");
            let mut answer = [0; HEADER_SIZE];
            socket.read_exact(&mut answer).expect("a header");
            let answer = Header::decode(&answer).expect("a header");
            socket.read_exact(&mut vec![0; answer.length as usize]).expect("a payload");
            answer.kind
        };
        let (agreed, other) = match offered {
            0 => (frame::Sum::Xxh3, frame::Sum::None),
            _ => (frame::Sum::None, frame::Sum::Xxh3),
        };
        assert_eq!(ask(agreed), Type::Pages);
        assert_eq!(ask(other), Type::Error);
        let (_, error) = running.next_ended();
        assert!(error.is_some_and(|error| error.contains("checksum of READ")), "{offered}");
    }
}
