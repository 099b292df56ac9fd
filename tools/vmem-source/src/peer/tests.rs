// SPDX-License-Identifier: GPL-2.0-or-later
//! A peer that is broken, hostile or slow gets an error, and never a page into a region.

mod compression;
mod connection;
mod hashes;
mod map;
mod rounds;
mod session;
mod violation;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use vmem::{Name, PAGE_SIZE};

use super::*;
use crate::answer::{Contents, Kind};
use crate::wire::frame::encode;
use crate::wire::{ErrorCode, pages, previous};

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
    hello_with(lane, 0)
}

/// As [`hello`]; the source accepts these features.
fn hello_with(lane: Lane, features: u64) -> Vec<u8> {
    hello_of(lane, features, &[export_of(10)])
}

/// A greeting, and these exports.
fn hello_of(lane: Lane, features: u64, exports: &[Export]) -> Vec<u8> {
    let exports = frame(Type::Exports, 0, &exports::encode(exports, Version::LATEST));
    [greeting(lane, features), exports].concat()
}

fn greeting(lane: Lane, features: u64) -> Vec<u8> {
    Greeting {
        version: Version::LATEST,
        lane,
        features,
    }
    .encode()
    .to_vec()
}

fn export_of(pages: u64) -> Export {
    Export {
        name: Name::new("ram").expect("a name"),
        pages: PageRange::of_pages(pages).expect("pages"),
        padding: 0,
        identity: 1,
    }
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
                other => panic!("{other:?}"),
            };
            (range.first().get(), range.count(), byte)
        }));
    }
    Ok(found)
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
