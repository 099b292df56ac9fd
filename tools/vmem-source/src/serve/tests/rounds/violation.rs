// SPDX-License-Identifier: GPL-2.0-or-later
//! What breaks the rules of the rounds, or makes them fail, is refused with a reason.

use super::*;

#[test]
fn next_that_breaks_the_protocol_is_refused_and_the_rounds_are_lost() {
    let payload = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let next = |tag, words: &[u32]| frame(Type::Next, tag, &payload(words));
    let unexpected = |got| ProtocolError::Unexpected {
        got,
        want: "NEXT, READ, RELEASE, GOODBYE or ERROR",
    };
    for (bytes, error) in [
        (next(1, &[0, 0]), ProtocolError::MaxPages(0)),
        (next(1, &[4097, 0]), ProtocolError::MaxPages(4097)),
        (next(1, &[1, 1]), ProtocolError::Reserved("NEXT")),
        (next(1, &[1]), ProtocolError::Short("NEXT")),
        (next(0, &[1, 0]), ProtocolError::NoTag("NEXT")),
        ([next_frame(1, 1), next(2, &[0, 0])].concat(), ProtocolError::MaxPages(0)),
        (read_frame(1, 1), ProtocolError::TooEarly("READ")),
        ([next_frame(1, 1), read_frame(1, 1)].concat(), ProtocolError::TooEarly("READ")),
        (
            frame(Type::Release, 0, &ranges::encode(0, &[range(0, 1)])),
            ProtocolError::TooEarly("RELEASE"),
        ),
        (frame(Type::Batch, 1, &[0; 16]), unexpected("BATCH")),
        (frame(Type::Remainder, 0, &[0; 8]), unexpected("REMAINDER")),
    ] {
        let rounds = Script::new(vec![step(empty(1, false))], list(vec![]));
        let running = small_with(&rounds);
        let frames = converse(&running, &[staging_greeting(), bytes].concat());
        assert_eq!(complaint(&frames), Some(error.to_string()));
        running.next_ended();
        assert_eq!(rounds.lost(), 1, "{error}");
    }
}

#[test]
fn next_of_before_the_end_is_answered_and_one_after_a_read_is_refused() {
    let rounds = Script::new(vec![step(empty(4, true))], list(vec![pages(0, &[(1, 2)])]));
    let running = small_with(&rounds);
    let words = [
        staging_greeting(),
        next_frame(1, 10),
        next_frame(2, 10),
        next_frame(3, 10),
        read_frame(1, 2),
        next_frame(4, 10),
    ];
    let frames = converse(&running, &words.concat());
    let kinds: Vec<_> = frames.iter().map(|(kind, _)| *kind).collect();
    let expected = [
        Type::Exports,
        Type::Batch,
        Type::Remainder,
        Type::Remainder,
        Type::Batch,
        Type::Batch,
        Type::Pages,
        Type::Error,
    ];
    assert_eq!(kinds, expected);
    for at in [1, 4, 5] {
        assert_eq!(decode_batch(&frames[at].1), Ok(BatchEnd { round: 4, over: true }));
    }
    assert_eq!(complaint(&frames), Some(ProtocolError::RoundsOver("NEXT").to_string()));
    running.next_ended();
    assert_eq!(rounds.lost(), 0, "all of the remainder was sent");
}

#[test]
fn error_of_the_rounds_is_told_to_the_destination_and_is_final() {
    let io = || io::Error::other("bad address");
    let fail: fn() -> Step = || Box::new(|| Err(RoundsError::new("cannot take the dirty log of ram")));
    let outside = |batch| (step(batch), list(vec![]));
    for ((step, remainder), expected) in [
        ((fail(), list(vec![])), "cannot take the dirty log of ram"),
        (
            (
                step(empty(1, true)),
                Box::new(move || Err(RoundsError::with_source("cannot finish ram", io()))) as Remainder,
            ),
            "cannot finish ram: bad address",
        ),
        (
            outside(chosen(1, 1, &[(0, 1)])),
            "pages of export 1 were chosen, which does not exist",
        ),
        (
            outside(chosen(1, 0, &[(9, 2)])),
            "pages 9 to 10 of ram were chosen, which has 10 pages",
        ),
        (outside(chosen(1, 0, &[(0, 3), (5, 3)])), "6 pages were chosen, of at most 5"),
        (
            outside(chosen(0, 0, &[(0, 1)])),
            "the rounds went back: round 0 where round 1 was due",
        ),
        (
            (step(empty(1, true)), list(vec![pages(0, &[(9, 2)])])),
            "pages 9 to 10 of ram were chosen, which has 10 pages",
        ),
    ] {
        let rounds = Script::new(vec![step], remainder);
        let running = small_with(&rounds);
        let mut peer = staging_peer(&running).expect("rounds");
        peer.next(5).expect("a question");
        let error = loop {
            match peer.next_event() {
                Ok(StagingEvent::End) => panic!("the list is complete"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(!error.is_transient(), "{error}");
        match error {
            Error::Refused {
                code: ErrorCode::Protocol,
                text,
            } => assert_eq!(text, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(running.next_ended().1, Some(format!("the rounds cannot go on: {expected}")));
        assert_eq!(rounds.lost(), 1, "{expected}");
    }
}
