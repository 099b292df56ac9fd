// SPDX-License-Identifier: GPL-2.0-or-later
//! A source that says of pages that they are holes says it of those that it was asked about, and of no others.

use super::*;
use crate::endpoint::{Endpoint, Security};
use crate::holes::Holes;
use crate::peer::map::Maps;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::map::{HolesFrame, encode_holes};
use crate::wire::rounds::{BatchEnd, encode_batch};

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn holes(tag: u32, export: u32, end: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let ranges = ranges.iter().map(|(first, count)| range(*first, *count)).collect();
    let pages = range(0, end);
    frame(Type::Holes, tag, &encode_holes(export, &Holes { pages, ranges }))
}

fn connect(frames: &[Vec<u8>]) -> Peer {
    let bytes = [hello_with(Lane::Stream, FEATURE_MAP), frames.concat()].concat();
    Peer::connect(&sender(bytes).to_string(), Lane::Stream, TIMEOUT).expect("a good greeting")
}

/// Asks for a map of pages 2 to 8, and takes answers until all is known, or an error comes.
fn map(frames: &[Vec<u8>]) -> Result<Vec<(u64, u64)>, Error> {
    let mut peer = connect(frames);
    peer.map(0, range(2, 7))?;
    let (mut known, mut found) = (0, Vec::new());
    while known < 7 {
        match peer.next_reply()? {
            Reply::Holes(answer) => {
                known += answer.holes.pages.count();
                let ranges = answer.holes.ranges.iter();
                found.extend(ranges.map(|hole| (hole.first().get(), hole.count())));
            }
            Reply::Pages(answer) => panic!("{answer:?}"),
        }
    }
    Ok(found)
}

#[test]
fn answer_comes_whole_or_in_parts() {
    let whole = map(&[holes(1, 0, 9, &[(2, 1), (4, 5)])]).expect("an answer");
    assert_eq!(whole, [(2, 1), (4, 5)]);
    let parts = [
        holes(1, 0, 3, &[]),
        holes(1, 0, 8, &[(3, 2), (5, 1)]),
        holes(1, 0, 9, &[(8, 1)]),
    ];
    assert_eq!(map(&parts).expect("an answer"), [(3, 2), (5, 1), (8, 1)]);
}

#[test]
fn holes_that_were_not_asked_about_are_refused() {
    let end = |end| ProtocolError::MapEnd {
        end,
        pgoff: 2,
        nr_pages: 7,
    };
    let outside = |pgoff, nr_pages| ProtocolError::Hole { pgoff, nr_pages };
    for (frames, error) in [
        (vec![holes(1, 0, 10, &[])], end(10)),
        (vec![holes(1, 0, 2, &[])], end(2)),
        (vec![holes(1, 0, 1, &[])], end(1)),
        (vec![holes(1, 0, 9, &[(1, 2)])], outside(1, 2)),
        (vec![holes(1, 0, 5, &[]), holes(1, 0, 9, &[(4, 2)])], outside(4, 2)),
        (vec![holes(1, 1, 9, &[])], ProtocolError::NoExport(1)),
        (vec![holes(2, 0, 9, &[])], ProtocolError::Tag { got: 2, want: Some(1) }),
    ] {
        assert_eq!(protocol_error(map(&frames)), error);
    }
}

#[test]
fn holes_that_nobody_asked_for_are_refused() {
    let mut peer = connect(&[holes(1, 0, 9, &[])]);
    peer.fetch(0, &[range(0, 1)]).expect("a question");
    let error = protocol_error(peer.next_reply().map(|_| ()));
    assert_eq!(error, ProtocolError::Tag { got: 1, want: None });
}

#[test]
fn source_without_the_feature_is_not_asked_and_must_not_answer() {
    let bytes = [hello_with(Lane::Stream, 0), holes(1, 0, 9, &[])].concat();
    let mut peer = Peer::connect(&sender(bytes).to_string(), Lane::Stream, TIMEOUT).expect("a good greeting");
    assert!(!peer.can_map());
    assert!(matches!(peer.map(0, range(2, 7)), Err(Error::InvalidFetch(_))));
    let error = protocol_error(peer.next_reply().map(|_| ()));
    let want = "PAGES or ERROR";
    assert_eq!(error, ProtocolError::Unexpected { got: "HOLES", want });
}

#[test]
fn source_that_accepts_the_feature_on_the_urgent_lane_is_refused() {
    let bytes = hello_with(Lane::Urgent, FEATURE_MAP);
    let error = protocol_error(Peer::connect(&sender(bytes).to_string(), Lane::Urgent, TIMEOUT).map(|_| ()));
    assert_eq!(error, ProtocolError::Features(FEATURE_MAP));
}

#[test]
fn map_that_no_source_answers_is_not_sent() {
    let mut peer = connect(&[]);
    for (export, pages) in [(1, range(0, 1)), (0, range(9, 2)), (0, range(0, MAX_MAP_PAGES + 1))] {
        assert!(
            matches!(peer.map(export, pages), Err(Error::InvalidFetch(_))),
            "{export} {pages}"
        );
    }
}

#[test]
fn holes_come_before_the_rounds_and_not_in_them() {
    let stage = |frames: &[Vec<u8>]| {
        let bytes = [hello_with(Lane::Stream, FEATURE_MAP | FEATURE_ROUNDS), frames.concat()].concat();
        let endpoint = Endpoint::new(&sender(bytes).to_string(), Security::Loopback, TIMEOUT);
        let mut peer = endpoint.connect_staging().expect("rounds");
        peer.map(0, range(2, 7)).expect("a question");
        peer.next(5).expect("a question");
        assert!(
            matches!(peer.map(0, range(2, 7)), Err(Error::InvalidFetch(_))),
            "a NEXT is sent"
        );
        peer
    };
    let batch = frame(Type::Batch, 1, &encode_batch(BatchEnd { round: 1, over: false }));
    let mut good = stage(&[holes(1, 0, 9, &[(2, 7)]), batch]);
    match good.next_event().expect("an event") {
        StagingEvent::Holes(answer) => assert_eq!((answer.export, answer.holes.count()), (0, 7)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(good.next_event(), Ok(StagingEvent::Batch { round: 1, over: false })));
    let mut bad = stage(&[holes(1, 0, 10, &[])]);
    assert!(matches!(protocol_error(bad.next_event()), ProtocolError::MapEnd { .. }));
}

#[test]
fn questions_are_answered_in_their_order() {
    let mut maps = Maps::default();
    let answer = |export, end| HolesFrame {
        export,
        end,
        ranges: vec![range(end - 1, 1)],
    };
    let first = maps.add(3, range(0, 10));
    let second = maps.add(4, range(5, 10));
    let wrong = maps.accept(second, answer(4, 15));
    assert_eq!(
        wrong,
        Err(ProtocolError::Tag {
            got: second,
            want: Some(first)
        })
    );
    let found = maps.accept(first, answer(3, 10)).expect("its turn");
    assert_eq!((found.export, found.holes.pages), (3, range(0, 10)));
    let found = maps.accept(second, answer(4, 15)).expect("its turn");
    assert_eq!((found.export, found.holes.pages), (4, range(5, 10)));
    assert_eq!(
        maps.accept(second, answer(4, 15)),
        Err(ProtocolError::Tag { got: second, want: None })
    );
}
