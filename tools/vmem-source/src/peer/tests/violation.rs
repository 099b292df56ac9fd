// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers that are damaged, truncated or unexpected never become pages of a region.

use super::*;

/// Every place in the first 200 bytes, where all the structure is, and some in the page behind them.
fn places(length: usize) -> impl Iterator<Item = usize> {
    (0..200).chain((200..length).step_by(89))
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
    let error = protocol_error(fetch(sender([greeting(Lane::Urgent, 0), goodbye].concat()), &[(0, 1)]));
    assert_eq!(
        error,
        ProtocolError::Unexpected {
            got: "GOODBYE",
            want: "EXPORTS"
        }
    );
}
