// SPDX-License-Identifier: GPL-2.0
//! A peer that is broken, hostile or slow gets an error, and never a page into a region.

mod rounds;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use vmem::{Name, PAGE_SIZE};

use super::*;
use crate::answer::{Contents, Kind};
use crate::wire::frame::encode;
use crate::wire::{ErrorCode, previous};

const TIMEOUT: Duration = Duration::from_secs(1);

/// A server that serves one connection in its own way.
fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || serve(listener.accept().expect("a connection").0));
    address
}

/// A server that sends these bytes, whatever it is asked, and closes when the other side does.
fn sender(bytes: Vec<u8>) -> SocketAddr {
    server(move |mut socket| {
        // Who has heard enough may be gone already.
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
    })
}

fn frame(kind: Type, tag: u32, payload: &[u8]) -> Vec<u8> {
    [&encode(kind, tag, &[payload])[..], payload].concat()
}

/// The beginning of every conversation: a greeting, and one export of ten pages.
fn hello(lane: Lane) -> Vec<u8> {
    let export = Export {
        name: Name::new("ram").expect("a name"),
        pages: PageRange::of_pages(10).expect("pages"),
        identity: 1,
    };
    let exports = frame(Type::Exports, 0, &exports::encode(&[export], Version::LATEST));
    [
        &Greeting {
            version: Version::LATEST,
            lane,
            features: 0,
        }
        .encode()[..],
        &exports,
    ]
    .concat()
}

fn pages_frame(tag: u32, export: u32, runs: &[(u64, u64, Kind)]) -> Vec<u8> {
    let mut data = Vec::new();
    let runs: Vec<_> = runs
        .iter()
        .map(|(first, count, kind)| {
            if *kind == Kind::Data {
                data.resize(data.len() + *count as usize * PAGE_SIZE, 0xda);
            }
            Run {
                range: PageRange::from_pgoff(*first, *count).expect("a range"),
                kind: *kind,
            }
        })
        .collect();
    let mut payload = Vec::new();
    pages::encode_head(export, &runs, &mut payload);
    payload.extend(data);
    frame(Type::Pages, tag, &payload)
}

/// Connects, asks for `ranges`, and takes answers until all is there.
fn fetch(address: SocketAddr, ranges: &[(u64, u64)]) -> Result<Vec<(u64, u64, u8)>, Error> {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(first, count)| PageRange::from_pgoff(*first, *count).expect("a range"))
        .collect();
    let mut missing: u64 = ranges.iter().map(|range| range.count()).sum();
    let mut peer = Peer::connect(&address.to_string(), Lane::Urgent, TIMEOUT)?;
    peer.fetch(0, &ranges)?;
    let mut found = Vec::new();
    while missing > 0 {
        let answer = peer.next_answer()?;
        missing -= answer.pages();
        found.extend(answer.contents().map(|(range, contents)| {
            let byte = match contents {
                Contents::Data(data) => data[0],
                Contents::Zero => 0,
                Contents::Unreadable => 0xff,
            };
            (range.first().get(), range.count(), byte)
        }));
    }
    Ok(found)
}

/// Every place in the first 200 bytes, where all the structure is, and some in the page behind them.
fn places(length: usize) -> impl Iterator<Item = usize> {
    (0..200).chain((200..length).step_by(89))
}

fn protocol_error(result: Result<impl std::fmt::Debug, Error>) -> ProtocolError {
    match result {
        Err(Error::Protocol(error)) => error,
        other => panic!("not a protocol error: {other:?}"),
    }
}

#[test]
fn valid_answers_are_accepted() {
    let answer = pages_frame(1, 0, &[(0, 1, Kind::Data), (1, 3, Kind::Zero), (8, 1, Kind::Unreadable)]);
    let found = fetch(sender([hello(Lane::Urgent), answer].concat()), &[(0, 4), (8, 1)]).expect("good answers");
    assert_eq!(found, [(0, 1, 0xda), (1, 3, 0), (8, 1, 0xff)]);
}

#[test]
fn answers_in_small_segments_are_accepted() {
    let pieces = [(0, 3), (3, 1), (8, 1)].map(|(first, count)| pages_frame(1, 0, &[(first, count, Kind::Zero)]));
    let found = fetch(sender([hello(Lane::Urgent), pieces.concat()].concat()), &[(0, 4), (8, 1)]).expect("good answers");
    assert_eq!(found, [(0, 3, 0), (3, 1, 0), (8, 1, 0)]);
}

#[test]
fn any_damaged_byte_of_an_answer_is_an_error() {
    let good = [
        hello(Lane::Urgent),
        pages_frame(1, 0, &[(0, 1, Kind::Data), (1, 3, Kind::Zero)]),
    ]
    .concat();
    for at in places(good.len()) {
        let mut damaged = good.clone();
        damaged[at] ^= 1 << (at % 8);
        let result = fetch(sender(damaged), &[(0, 4)]);
        assert!(matches!(result, Err(Error::Protocol(_))), "byte {at}: {result:?}");
    }
}

#[test]
fn answer_truncated_anywhere_is_an_error() {
    let good = [
        hello(Lane::Urgent),
        pages_frame(1, 0, &[(0, 1, Kind::Data), (1, 3, Kind::Zero)]),
    ]
    .concat();
    for end in places(good.len()) {
        let result = fetch(sender(good[..end].to_vec()), &[(0, 4)]);
        let lost = result
            .as_ref()
            .err()
            .is_some_and(|error| error.is_lost() && error.is_transient());
        assert!(lost, "up to byte {end}: {result:?}");
    }
}

#[test]
fn pages_that_are_not_outstanding_are_refused() {
    let unasked = |pgoff, nr_pages| ProtocolError::Unrequested { pgoff, nr_pages };
    for (runs, error) in [
        (vec![(5, 1, Kind::Data)], unasked(5, 1)),
        (vec![(1, 1, Kind::Zero)], unasked(1, 1)),
        (vec![(0, 5, Kind::Zero)], unasked(0, 5)),
        (vec![(0, 4, Kind::Zero), (4, 1, Kind::Zero)], unasked(4, 1)),
        (vec![(8, 1, Kind::Zero)], unasked(8, 1)),
        (vec![(0, 2, Kind::Zero), (0, 2, Kind::Zero)], unasked(0, 2)),
        (
            vec![(0, 4, Kind::Zero), (8, 1, Kind::Zero), (9, 1, Kind::Zero)],
            unasked(9, 1),
        ),
    ] {
        let bytes = [hello(Lane::Urgent), pages_frame(1, 0, &runs)].concat();
        assert_eq!(protocol_error(fetch(sender(bytes), &[(0, 4), (8, 1)])), error, "{runs:?}");
    }
}

#[test]
fn violation_by_the_peer_is_answered_by_an_error() {
    let (said, heard) = std::sync::mpsc::channel();
    let address = server(move |mut socket| {
        let bytes = [hello(Lane::Urgent), pages_frame(1, 0, &[(5, 1, Kind::Zero)])].concat();
        socket.write_all(&bytes).expect("somebody who listens");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("a whole answer");
        said.send(answer).expect("the test");
    });
    let error = protocol_error(fetch(address, &[(0, 1)]));
    let answer = heard.recv().expect("an answer");
    let complaint = frame(Type::Error, 0, &refusal::encode(ErrorCode::Protocol, &error.to_string()));
    assert!(answer.ends_with(&complaint), "{}", answer.escape_ascii());
}

#[test]
fn answer_with_another_tag_or_export_is_refused() {
    let answer = |tag, export| [hello(Lane::Urgent), pages_frame(tag, export, &[(0, 1, Kind::Zero)])].concat();
    let error = protocol_error(fetch(sender(answer(2, 0)), &[(0, 1)]));
    assert_eq!(error, ProtocolError::Tag { got: 2, want: Some(1) });
    assert_eq!(
        protocol_error(fetch(sender(answer(1, 1)), &[(0, 1)])),
        ProtocolError::NoExport(1)
    );
    // The question is answered, and then answered again.
    let again = [answer(1, 0), pages_frame(1, 0, &[(0, 1, Kind::Zero)])].concat();
    let mut peer = Peer::connect(&sender(again).to_string(), Lane::Urgent, TIMEOUT).expect("a good greeting");
    peer.fetch(0, &[PageRange::from_pgoff(0, 1).expect("a range")])
        .expect("a good question");
    assert_eq!(peer.next_answer().expect("a good answer").pages(), 1);
    let error = protocol_error(peer.next_answer().map(|answer| answer.pages()));
    assert_eq!(error, ProtocolError::Tag { got: 1, want: None });
}

#[test]
fn unexpected_frame_is_refused() {
    let goodbye = frame(Type::Goodbye, 0, &[]);
    let error = protocol_error(fetch(sender([hello(Lane::Urgent), goodbye.clone()].concat()), &[(0, 1)]));
    assert_eq!(
        error,
        ProtocolError::Unexpected {
            got: "GOODBYE",
            want: "PAGES or ERROR"
        }
    );
    let greeting = Greeting {
        version: Version::LATEST,
        lane: Lane::Urgent,
        features: 0,
    }
    .encode()
    .to_vec();
    let error = protocol_error(fetch(sender([greeting, goodbye].concat()), &[(0, 1)]));
    assert_eq!(
        error,
        ProtocolError::Unexpected {
            got: "GOODBYE",
            want: "EXPORTS"
        }
    );
}

/// A source of the version before: it refuses another one's greeting, and serves who has its own. Two connections.
fn previous_source() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().expect("a connection");
            let mut theirs = [0; greeting::SIZE];
            socket.read_exact(&mut theirs).expect("a greeting");
            socket.write_all(&previous::GREETING).expect("somebody who listens");
            if theirs[8..10] != previous::GREETING[8..10] {
                socket.write_all(previous::REFUSAL).expect("somebody who listens");
                continue;
            }
            socket.write_all(&previous::EXPORTS).expect("somebody who listens");
            let _ = socket.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn source_of_the_previous_version_is_used_in_that_version() {
    let peer = Peer::connect(&previous_source().to_string(), Lane::Urgent, TIMEOUT).expect("a source");
    let [export] = peer.exports() else {
        panic!("{:?}", peer.exports())
    };
    assert_eq!((export.name.as_str(), export.pages.count()), ("ram", 10));
    assert_eq!(export.identity, 0x83be_fa44);
}

#[test]
fn other_protocol_version_or_lane_is_named_in_the_error() {
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    assert_eq!(
        protocol_error(fetch(sender(http), &[(0, 1)])),
        ProtocolError::Magic(*b"HTTP/1.1")
    );
    let mut version = hello(Lane::Urgent);
    version[8] = 9;
    assert_eq!(protocol_error(fetch(sender(version), &[(0, 1)])), ProtocolError::Version(9));
    assert_eq!(
        protocol_error(fetch(sender(hello(Lane::Stream)), &[(0, 1)])),
        ProtocolError::OtherLane
    );
    let eager = Greeting {
        version: Version::LATEST,
        lane: Lane::Urgent,
        features: 4,
    }
    .encode();
    let eager = [&eager[..], &hello(Lane::Urgent)[greeting::SIZE..]].concat();
    assert_eq!(protocol_error(fetch(sender(eager), &[(0, 1)])), ProtocolError::Features(4));
}

#[test]
fn error_frame_of_the_source_is_returned_as_refused() {
    let error = frame(Type::Error, 0, &refusal::encode(ErrorCode::Busy, "later"));
    let greeting = Greeting {
        version: Version::LATEST,
        lane: Lane::Urgent,
        features: 0,
    }
    .encode()
    .to_vec();
    for bytes in [[greeting, error.clone()].concat(), [hello(Lane::Urgent), error].concat()] {
        match fetch(sender(bytes), &[(0, 1)]) {
            Err(Error::Refused {
                code: ErrorCode::Busy,
                text,
            }) => assert_eq!(text, "later"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn silent_source_times_out() {
    let silent = server(|socket| {
        thread::sleep(10 * TIMEOUT);
        drop(socket);
    });
    let since = Instant::now();
    assert!(matches!(fetch(silent, &[(0, 1)]), Err(Error::TimedOut { .. })));
    let silent_later = server(|mut socket| {
        socket.write_all(&hello(Lane::Urgent)).expect("somebody who listens");
        thread::sleep(10 * TIMEOUT);
    });
    assert!(matches!(fetch(silent_later, &[(0, 1)]), Err(Error::TimedOut { .. })));
    assert!(since.elapsed() < 8 * TIMEOUT, "{:?}", since.elapsed());
}

#[test]
fn bytes_sent_one_by_one_do_not_extend_the_time_limit() {
    let dripping = server(|mut socket| {
        let bytes = [hello(Lane::Urgent), pages_frame(1, 0, &[(0, 1, Kind::Data)])].concat();
        let (hello, pages) = bytes.split_at(hello(Lane::Urgent).len());
        socket.write_all(hello).expect("somebody who listens");
        for byte in pages {
            if socket.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(TIMEOUT / 10);
        }
    });
    let since = Instant::now();
    assert!(matches!(fetch(dripping, &[(0, 1)]), Err(Error::TimedOut { .. })));
    assert!(since.elapsed() < 4 * TIMEOUT, "{:?}", since.elapsed());
}

#[test]
fn unreachable_source_is_named_in_the_error() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let error = Peer::connect(&address, Lane::Urgent, TIMEOUT)
        .map(|_| ())
        .expect_err("nobody is there");
    assert!(error.is_lost() && error.to_string().contains(&address), "{error}");
}

#[test]
fn invalid_fetch_is_not_sent() {
    let mut peer = Peer::connect(&sender(hello(Lane::Urgent)).to_string(), Lane::Urgent, TIMEOUT).expect("a good greeting");
    let page = PageRange::from_pgoff(9, 1).expect("a range");
    for (export, ranges) in [
        (1, vec![page]),
        (0, vec![]),
        (0, vec![PageRange::from_pgoff(9, 2).expect("a range")]),
        (0, vec![page; MAX_FETCH_RANGES + 1]),
        (0, vec![PageRange::from_pgoff(0, 10).expect("a range"); 410]),
    ] {
        let result = peer.fetch(export, &ranges);
        assert!(
            matches!(result, Err(Error::InvalidFetch(_))),
            "{export} {}: {result:?}",
            ranges.len()
        );
    }
    assert!(peer.fetch(0, &[page]).is_ok());
}

#[test]
fn release_of_any_size_is_split_into_valid_frames() {
    let run = |first, count| PageRange::from_pgoff(first, count).expect("a range");
    let many: Vec<_> = (0..2500).map(|number| run(number * 2, 1)).collect();
    let all = [run(1 << 20, 2 * MAX_RELEASE_PAGES + 5), run(1 << 30, MAX_RELEASE_PAGES)];
    let frames = release_frames(&[&many[..], &all].concat());
    let pages = |frame: &[PageRange]| frame.iter().map(|range| range.count()).sum::<u64>();
    assert!(
        frames
            .iter()
            .all(|frame| frame.len() <= MAX_FETCH_RANGES && pages(frame) <= MAX_RELEASE_PAGES)
    );
    let expected: Vec<_> = many
        .iter()
        .chain(&all)
        .flat_map(|range| [range.first().get(), range.end()])
        .collect();
    let mut edges: Vec<u64> = Vec::new();
    for range in frames.concat() {
        if edges.last() == Some(&range.first().get()) {
            edges.pop();
        } else {
            edges.push(range.first().get());
        }
        edges.push(range.end());
    }
    assert_eq!(edges, expected, "no page is lost, and none comes twice");
}
