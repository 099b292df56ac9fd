// SPDX-License-Identifier: GPL-2.0-or-later
//! Peers that do not speak the protocol properly get an error and no pages. A peer of the version before is served.

use super::*;

#[test]
fn damaged_read_is_answered_by_an_error() {
    let running = small();
    let good = [greeting(), read_frame(1, 2)].concat();
    assert_eq!(converse(&running, &good).last().expect("an answer").0, Type::Pages);
    for bit in 0..good.len() * 8 {
        let mut damaged = good.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let frames = converse(&running, &damaged);
        assert!(frames.iter().all(|(kind, _)| *kind != Type::Pages), "bit {bit}: {frames:?}");
        if bit / 8 >= 8 {
            assert_eq!(
                frames.last().map(|(kind, _)| *kind),
                Some(Type::Error),
                "bit {bit}: no reason was given"
            );
        }
    }
    assert_eq!(
        converse(&running, &good).last().expect("an answer").0,
        Type::Pages,
        "and the server goes on"
    );
}

#[test]
fn truncated_read_closes_the_connection() {
    let running = small();
    let good = [greeting(), read_frame(1, 2)].concat();
    for end in 0..good.len() {
        let frames = converse(&running, &good[..end]);
        assert!(
            frames.iter().all(|(kind, _)| *kind == Type::Exports),
            "up to {end}: {frames:?}"
        );
        let (served, error) = running.next_ended();
        assert_eq!(served, Served::default());
        let within = end != 0 && end != greeting::SIZE;
        let error = error.expect("no goodbye was said");
        assert_eq!(error.contains("in the middle of a frame"), within, "up to {end}: {error}");
    }
}

#[test]
fn violation_of_the_protocol_is_answered_by_an_error_that_says_why() {
    let running = small();
    let outside = ProtocolError::Outside { pgoff: 9, nr_pages: 2 };
    let unexpected = ProtocolError::Unexpected {
        got: "PAGES",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    let no_export = frame(
        Type::Read,
        1,
        &ranges::encode(7, &[PageRange::from_pgoff(0, 1).expect("a range")]),
    );
    let mut version = greeting();
    version[8] ^= 0x80;
    for (bytes, error) in [
        ([greeting(), read_frame(9, 2)].concat(), outside),
        ([greeting(), frame(Type::Pages, 0, &[0; 8])].concat(), unexpected),
        ([greeting(), no_export].concat(), ProtocolError::NoExport(7)),
        (version, ProtocolError::Version(Version::LATEST.number() ^ 0x80)),
    ] {
        let frames = converse(&running, &bytes);
        let (kind, payload) = frames.last().expect("an answer");
        assert_eq!(*kind, Type::Error);
        let said = refusal::decode(payload).expect("a whole payload");
        assert_eq!(said, (ErrorCode::Protocol, error.to_string()));
        assert_eq!(
            running.next_ended().1,
            Some(format!("the peer violated the page protocol: {error}"))
        );
    }
}

#[test]
fn error_frame_of_a_peer_is_reported() {
    let running = small();
    let complaint = frame(
        Type::Error,
        0,
        &refusal::encode(ErrorCode::Protocol, "pages that nobody wants"),
    );
    assert_eq!(
        converse(&running, &[greeting(), complaint].concat()).len(),
        1,
        "nothing but EXPORTS"
    );
    assert_eq!(
        running.next_ended().1.as_deref(),
        Some("the peer refused: pages that nobody wants (protocol error)")
    );
}

#[test]
fn peer_of_another_protocol_gets_no_answer() {
    let running = small();
    let mut socket = running.raw();
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("somebody who listens");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let (_, error) = running.next_ended();
    assert!(
        error.is_some_and(|error| error.contains("GET / HT")),
        "the log says what it was"
    );
}

#[test]
fn destination_of_the_previous_version_is_served_in_that_version() {
    let running = small();
    let mut socket = running.raw();
    socket.write_all(&previous::GREETING).expect("somebody who listens");
    let mut answer = [0; previous::GREETING.len() + previous::EXPORTS.len()];
    socket.read_exact(&mut answer).expect("a greeting and a list");
    let (greeting, frame) = answer.split_at(previous::GREETING.len());
    assert_eq!(greeting, previous::GREETING);
    // All but the identity, and what hangs on it: two checksums.
    assert_eq!(frame[..12], previous::EXPORTS[..12]);
    assert_eq!(frame[24..44], previous::EXPORTS[24..44]);
    assert_eq!(frame[48..], previous::EXPORTS[48..]);
}
