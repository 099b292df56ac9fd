// SPDX-License-Identifier: GPL-2.0-or-later
//! A source that breaks the rules of the rounds gets an error, and the destination keeps nothing of it.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::endpoint::{Endpoint, Security};
use crate::export::ExportRanges;
use crate::peer::rounds::Rounds;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::rounds::{BatchEnd, encode_batch};

/// What a destination has been given.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Got {
    Pages(Vec<(u64, u64, Option<u8>)>),
    Batch(u32, bool),
    Remainder(usize, Vec<(u64, u64)>),
    End,
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn exports_of_the_source() -> Vec<Export> {
    [("ram", 10, 1), ("video", 20, 2)]
        .map(|(name, pages, identity)| Export {
            name: Name::new(name).expect("a name"),
            pages: PageRange::of_pages(pages).expect("pages"),
            padding: 0,
            identity,
        })
        .into()
}

/// A greeting of the stream that accepts these features, and two exports.
fn hello_with(features: u64) -> Vec<u8> {
    hello_of(Lane::Stream, features, &exports_of_the_source())
}

fn staging_hello() -> Vec<u8> {
    hello_with(FEATURE_ROUNDS)
}

fn batch(tag: u32, round: u32, over: bool) -> Vec<u8> {
    frame(Type::Batch, tag, &encode_batch(BatchEnd { round, over }))
}

fn remainder(export: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
    let ranges: Vec<_> = ranges.iter().map(|(first, count)| range(*first, *count)).collect();
    frame(Type::Remainder, 0, &ranges::encode(export, &ranges))
}

fn end() -> Vec<u8> {
    remainder(0, &[])
}

fn zeros(tag: u32, export: u32, runs: &[(u64, u64)]) -> Vec<u8> {
    let runs: Vec<_> = runs.iter().map(|(first, count)| (*first, *count, Kind::Zero)).collect();
    pages_frame(tag, export, &runs)
}

fn connect(address: SocketAddr) -> Result<StagingPeer, Error> {
    Endpoint::new(&address.to_string(), Security::Loopback, TIMEOUT).connect_staging()
}

fn got(event: StagingEvent<'_>) -> Got {
    match event {
        StagingEvent::Pages(answer) => Got::Pages(
            answer
                .contents()
                .map(|(range, contents)| {
                    let byte = match contents {
                        Contents::Data(data) => Some(data[0]),
                        Contents::Zero => Some(0),
                        Contents::Unreadable => None,
                        other => panic!("{other:?}"),
                    };
                    (range.first().get(), range.count(), byte)
                })
                .collect(),
        ),
        StagingEvent::Holes(holes) => panic!("{holes:?}"),
        StagingEvent::Batch { round, over } => Got::Batch(round, over),
        StagingEvent::Remainder(pages) => {
            let ranges = pages.ranges.iter().map(|range| (range.first().get(), range.count()));
            Got::Remainder(pages.export, ranges.collect())
        }
        StagingEvent::End => Got::End,
    }
}

/// Connects, sends a NEXT for each of `nexts`, and takes events until the list is complete.
fn stage(address: SocketAddr, nexts: &[u64]) -> Result<Vec<Got>, Error> {
    let mut peer = connect(address)?;
    for max in nexts {
        peer.next(*max)?;
    }
    let mut events = Vec::new();
    while events.last() != Some(&Got::End) {
        events.push(got(peer.next_event()?));
    }
    Ok(events)
}

/// A whole conversation with NEXTs of 10, 20 and 5 pages, of which the last is sent before the destination knows that the rounds are over.
const NEXTS: [u64; 3] = [10, 20, 5];

fn whole_conversation() -> Vec<Vec<u8>> {
    vec![
        staging_hello(),
        pages_frame(1, 0, &[(8, 1, Kind::Data), (2, 3, Kind::Zero), (0, 1, Kind::Unreadable)]),
        pages_frame(1, 0, &[(5, 1, Kind::Data), (1, 1, Kind::Data)]),
        batch(1, 1, false),
        zeros(2, 1, &[(0, 20)]),
        batch(2, 2, true),
        remainder(1, &[(19, 1), (3, 4)]),
        remainder(0, &[(5, 1)]),
        remainder(1, &[(0, 1)]),
        end(),
        batch(3, 2, true),
    ]
}

#[test]
fn valid_rounds_are_accepted_in_order() {
    let expected = [
        Got::Pages(vec![(8, 1, Some(0xda)), (2, 3, Some(0)), (0, 1, None)]),
        Got::Pages(vec![(5, 1, Some(0xda)), (1, 1, Some(0xda))]),
        Got::Batch(1, false),
        Got::Pages(vec![(0, 20, Some(0))]),
        Got::Batch(2, true),
        Got::Remainder(1, vec![(19, 1), (3, 4)]),
        Got::Remainder(0, vec![(5, 1)]),
        Got::Remainder(1, vec![(0, 1)]),
        Got::End,
    ];
    let found = stage(sender(whole_conversation().concat()), &NEXTS).expect("good rounds");
    assert_eq!(found, expected);
}

#[test]
fn page_of_an_earlier_answer_may_come_again() {
    let bytes = [
        staging_hello(),
        zeros(1, 0, &[(3, 2)]),
        batch(1, 1, false),
        zeros(2, 0, &[(4, 1), (3, 1)]),
        batch(2, 1, true),
        end(),
    ];
    assert!(stage(sender(bytes.concat()), &[10, 10]).is_ok());
}

#[test]
fn any_damaged_byte_of_the_rounds_is_an_error() {
    let frames = whole_conversation();
    let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
    let good = frames.concat();
    let mut start = 0;
    for length in lengths {
        // Every place in the beginning of a frame, where all the structure is.
        for at in (start..start + length).take(72) {
            let mut damaged = good.clone();
            damaged[at] ^= 1 << (at % 8);
            let result = stage(sender(damaged), &NEXTS);
            assert!(matches!(result, Err(Error::Protocol(_))), "byte {at}: {result:?}");
        }
        start += length;
    }
}

#[test]
fn connection_cut_at_any_frame_is_lost() {
    let frames = whole_conversation();
    let good = frames.concat();
    let mut ends = vec![0];
    ends.extend(frames.iter().scan(0, |end, frame| {
        *end += frame.len();
        Some(*end)
    }));
    ends.pop();
    for end in ends.into_iter().flat_map(|end| [end, end + 1, end + 23, end + 25]) {
        let result = stage(sender(good[..end.min(good.len() - 1)].to_vec()), &NEXTS);
        let lost = result
            .as_ref()
            .err()
            .is_some_and(|error| error.is_lost() && error.is_transient());
        assert!(lost, "up to byte {end}: {result:?}");
    }
}

/// The error that these frames of a source cause, after its exports, with NEXTs of 4 and 2 pages.
fn violation(frames: &[Vec<u8>]) -> ProtocolError {
    protocol_error(stage(sender([staging_hello(), frames.concat()].concat()), &[4, 2]))
}

fn unexpected(got: &'static str, want: &'static str) -> ProtocolError {
    ProtocolError::Unexpected { got, want }
}

#[test]
fn pages_that_no_answer_may_have_are_refused() {
    let twice = |pgoff| ProtocolError::Duplicate {
        what: "the answer to a NEXT",
        pgoff,
    };
    let outside = |pgoff, nr_pages| ProtocolError::Outside { pgoff, nr_pages };
    for (frames, error) in [
        (vec![zeros(1, 0, &[(10, 1)])], outside(10, 1)),
        (vec![zeros(1, 0, &[(9, 2)])], outside(9, 2)),
        (vec![zeros(1, 0, &[(0, 1), (1 << 40, 1)])], outside(1 << 40, 1)),
        (vec![zeros(1, 2, &[(0, 1)])], ProtocolError::NoExport(2)),
        (vec![zeros(1, u32::MAX, &[(0, 1)])], ProtocolError::NoExport(u32::MAX)),
        (
            vec![zeros(1, 0, &[(0, 1)]), zeros(1, 1, &[(1, 1)])],
            ProtocolError::NoExport(1),
        ),
        (vec![zeros(1, 0, &[(0, 5)])], ProtocolError::BatchTooLarge { got: 5, max: 4 }),
        (
            vec![zeros(1, 0, &[(0, 3)]), zeros(1, 0, &[(5, 2)])],
            ProtocolError::BatchTooLarge { got: 5, max: 4 },
        ),
        (
            vec![batch(1, 1, false), zeros(2, 0, &[(0, 3)])],
            ProtocolError::BatchTooLarge { got: 3, max: 2 },
        ),
        (vec![zeros(1, 0, &[(3, 1), (3, 1)])], twice(3)),
        (vec![zeros(1, 0, &[(3, 1)]), zeros(1, 0, &[(2, 2)])], twice(3)),
        (vec![zeros(1, 0, &[(3, 2)]), zeros(1, 0, &[(4, 1)])], twice(4)),
        (vec![zeros(2, 0, &[(0, 1)])], ProtocolError::Tag { got: 2, want: Some(1) }),
        (vec![zeros(0, 0, &[(0, 1)])], ProtocolError::Tag { got: 0, want: Some(1) }),
        (
            vec![batch(1, 1, false), batch(2, 1, false), zeros(2, 0, &[(0, 1)])],
            ProtocolError::Tag { got: 2, want: None },
        ),
        (
            vec![batch(1, 1, true), zeros(2, 0, &[(0, 1)])],
            unexpected("PAGES", "REMAINDER or ERROR"),
        ),
        (
            vec![batch(1, 1, true), end(), zeros(2, 0, &[(0, 1)])],
            ProtocolError::RoundsOver("PAGES"),
        ),
    ] {
        assert_eq!(violation(&frames), error);
    }
}

#[test]
fn batch_out_of_order_is_refused() {
    for (frames, error) in [
        (vec![batch(2, 1, false)], ProtocolError::Tag { got: 2, want: Some(1) }),
        (
            vec![batch(1, 1, false), batch(2, 1, false), batch(3, 1, false)],
            ProtocolError::Tag { got: 3, want: None },
        ),
        (
            vec![batch(1, 3, false), batch(2, 2, false)],
            ProtocolError::Round { got: 2, least: 3 },
        ),
        (
            vec![batch(1, 1, true), batch(2, 1, true)],
            unexpected("BATCH", "REMAINDER or ERROR"),
        ),
        (
            vec![batch(1, 1, true), end(), batch(2, 1, false)],
            ProtocolError::RoundsOver("BATCH"),
        ),
    ] {
        assert_eq!(violation(&frames), error);
    }
}

#[test]
fn remainder_that_breaks_its_rules_is_refused() {
    let twice = |pgoff| ProtocolError::Duplicate {
        what: "the list of the remaining pages",
        pgoff,
    };
    let over = || batch(1, 1, true);
    let early = || unexpected("REMAINDER", "PAGES, BATCH or ERROR");
    for (frames, error) in [
        (vec![remainder(0, &[(0, 1)])], early()),
        (vec![end()], early()),
        (vec![batch(1, 1, false), remainder(0, &[(0, 1)])], early()),
        (
            vec![over(), remainder(0, &[(9, 2)])],
            ProtocolError::Outside { pgoff: 9, nr_pages: 2 },
        ),
        (vec![over(), remainder(2, &[(0, 1)])], ProtocolError::NoExport(2)),
        (vec![over(), remainder(0, &[(3, 2), (4, 1)])], twice(4)),
        (vec![over(), remainder(0, &[(3, 2)]), remainder(0, &[(0, 4)])], twice(3)),
        (
            vec![
                over(),
                remainder(0, &[(3, 1)]),
                remainder(1, &[(3, 1)]),
                remainder(1, &[(3, 1)]),
            ],
            twice(3),
        ),
        (vec![over(), end(), end()], ProtocolError::RoundsOver("REMAINDER")),
        (
            vec![over(), frame(Type::Goodbye, 0, &[])],
            unexpected("GOODBYE", "PAGES, BATCH, REMAINDER or ERROR"),
        ),
    ] {
        assert_eq!(violation(&frames), error);
    }
}

#[test]
fn frame_for_the_other_side_is_refused_in_rounds() {
    for (kind, name) in [(Type::Next, "NEXT"), (Type::Read, "READ"), (Type::Exports, "EXPORTS")] {
        let error = unexpected(name, "PAGES, BATCH, REMAINDER or ERROR");
        assert_eq!(violation(&[frame(kind, 1, &[0; 8])]), error);
    }
}

#[test]
fn violation_in_rounds_is_answered_by_an_error() {
    let (said, heard) = std::sync::mpsc::channel();
    let address = server(move |mut socket| {
        let bytes = [staging_hello(), batch(1, 1, true), end(), end()].concat();
        socket.write_all(&bytes).expect("somebody who listens");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("a whole answer");
        said.send(answer).expect("the test");
    });
    let error = protocol_error(stage(address, &[4, 2]));
    let complaint = frame(Type::Error, 0, &refusal::encode(ErrorCode::Protocol, &error.to_string()));
    assert!(heard.recv().expect("an answer").ends_with(&complaint));
}

#[test]
fn source_without_rounds_is_an_error_that_is_final() {
    for features in [0, FEATURE_RELEASE] {
        let error = connect(sender(hello_with(features))).map(|_| ()).expect_err("no rounds");
        assert!(matches!(error, Error::NoRounds) && !error.is_transient(), "{error}");
    }
    // A source must not accept rounds that nobody has offered.
    let address = sender(staging_hello()).to_string();
    let error = Peer::connect(&address, Lane::Stream, TIMEOUT).map(|_| ());
    assert_eq!(protocol_error(error), ProtocolError::Features(FEATURE_ROUNDS));
}

#[test]
fn refusal_in_rounds_is_transient_only_if_the_source_is_busy() {
    for (code, transient) in [(ErrorCode::Busy, true), (ErrorCode::Protocol, false)] {
        let refused = frame(Type::Error, 0, &refusal::encode(code, "no dirty log"));
        for before in [vec![], batch(1, 1, false), batch(1, 1, true)] {
            let bytes = [staging_hello(), before, refused.clone()].concat();
            match stage(sender(bytes), &[4, 2]) {
                Err(error @ Error::Refused { .. }) => assert_eq!(error.is_transient(), transient, "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn source_that_falls_silent_in_its_rounds_times_out() {
    let silences = [
        (vec![], "send the pages of a round"),
        (zeros(1, 0, &[(0, 1)]), "send the pages of a round"),
        (batch(1, 1, false), "send the pages of a round"),
        (batch(1, 1, true), "send the list of the remaining pages"),
        (
            [batch(1, 1, true), remainder(0, &[(0, 1)])].concat(),
            "send the list of the remaining pages",
        ),
        ([batch(1, 1, true), end()].concat(), "end its rounds"),
        (batch(1, 1, true)[..30].to_vec(), "send the pages of a round"),
    ];
    let threads = silences.map(|(bytes, expected)| {
        thread::spawn(move || {
            let silent = server(move |mut socket| {
                socket
                    .write_all(&[staging_hello(), bytes].concat())
                    .expect("somebody who listens");
                thread::sleep(10 * TIMEOUT);
            });
            let since = Instant::now();
            match stage(silent, &[4, 2]) {
                Err(Error::TimedOut { action, .. }) => assert_eq!(action, expected),
                other => panic!("{other:?}"),
            }
            assert!(since.elapsed() < 6 * TIMEOUT, "{:?}", since.elapsed());
        })
    });
    for thread in threads {
        thread.join().expect("a time-out");
    }
}

#[test]
fn list_without_an_end_is_cut_off_at_the_first_page_that_comes_twice() {
    let address = server(|mut socket| {
        let _ = socket.write_all(&[staging_hello(), batch(1, 1, true)].concat());
        // Until the destination closes.
        for page in (0..20).cycle() {
            if socket.write_all(&remainder(1, &[(page, 1)])).is_err() {
                return;
            }
        }
    });
    let error = protocol_error(stage(address, &[4]));
    let what = "the list of the remaining pages";
    assert_eq!(error, ProtocolError::Duplicate { what, pgoff: 0 });
}

#[test]
fn source_may_hold_an_answer_back_for_a_second_more_than_the_time_limit() {
    let slow = server(|mut socket| {
        socket.write_all(&staging_hello()).expect("somebody who listens");
        for bytes in [batch(1, 1, false), batch(2, 1, true), end()] {
            thread::sleep(TIMEOUT * 3 / 2);
            socket.write_all(&bytes).expect("somebody who listens");
        }
        let _ = socket.read_to_end(&mut Vec::new());
    });
    assert_eq!(stage(slow, &[4, 2]).expect("no time-out").last(), Some(&Got::End));
}

#[test]
fn invalid_next_is_not_sent() {
    let bytes = [staging_hello(), batch(1, 1, true), end()].concat();
    let mut peer = connect(sender(bytes)).expect("a good greeting");
    for max in [0, MAX_FETCH_PAGES + 1, u64::MAX] {
        assert!(matches!(peer.next(max), Err(Error::InvalidFetch(_))), "{max}");
    }
    // The invalid ones have taken no tag: this one is 1, which the source answers.
    peer.next(MAX_FETCH_PAGES).expect("a good question");
    assert_eq!(got(peer.next_event().expect("a batch")), Got::Batch(1, true));
    assert!(matches!(peer.next(1), Err(Error::InvalidFetch(_))), "the rounds are over");
    assert_eq!(got(peer.next_event().expect("the end")), Got::End);
    assert!(matches!(peer.next(1), Err(Error::InvalidFetch(_))));
}

#[test]
fn source_of_the_stream_goes_on_with_the_same_connection() {
    let bytes = [
        staging_hello(),
        batch(1, 1, true),
        remainder(0, &[(7, 1)]),
        end(),
        // The first READ has a tag of its own.
        pages_frame(1, 0, &[(7, 1, Kind::Data)]),
    ];
    let mut peer = connect(sender(bytes.concat())).expect("a good greeting");
    peer.next(1).expect("a question");
    while !matches!(peer.next_event().expect("an event"), StagingEvent::End) {}
    let mut source = Box::new(peer).into_source();
    assert_eq!(source.exports(), exports_of_the_source());
    source.fetch(0, &[range(7, 1)]).expect("a question");
    assert_eq!(source.next_answer().expect("an answer").pages(), 1);
}

/// Ranges of a memory of 64 pages, and the order in which they come.
fn any_ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    proptest::collection::vec(
        (0..64_u64, 1..6_u64).prop_map(|(first, count)| first..(first + count).min(64)),
        1..16,
    )
}

fn large() -> Vec<Export> {
    let mut exports = exports_of_the_source();
    exports[0].pages = PageRange::of_pages(64).expect("pages");
    exports
}

proptest! {
    /// A page twice is found wherever it is, and nothing else is taken for one.
    #[test]
    fn duplicate_is_found_in_an_answer_and_in_the_list(ranges in any_ranges()) {
        let mut seen = std::collections::HashSet::new();
        let twice = ranges.iter().cloned().flatten().any(|page| !seen.insert(page));
        let ranges: Vec<_> = ranges.into_iter().map(|pages| range(pages.start, pages.end - pages.start)).collect();

        let mut rounds = Rounds::new(large(), None);
        let tag = rounds.add(4096).expect("rounds that are not over");
        let runs: Vec<_> = ranges.iter().map(|range| Run { range: *range, kind: Kind::Zero }).collect();
        let answer = rounds.accept_pages(tag, 0, &runs);
        prop_assert_eq!(matches!(answer, Err(ProtocolError::Duplicate { .. })), twice);
        prop_assert_eq!(answer.is_ok(), !twice);

        let mut rounds = Rounds::new(large(), None);
        let tag = rounds.add(4096).expect("rounds that are not over");
        let over = rounds.accept_batch(tag, BatchEnd { round: 1, over: true });
        prop_assert!(over.is_ok());
        let list = rounds.accept_remainder(Some(ExportRanges { export: 0, ranges }));
        prop_assert_eq!(matches!(list, Err(ProtocolError::Duplicate { .. })), twice);
        prop_assert_eq!(list.is_ok(), !twice);
    }
}
