// SPDX-License-Identifier: GPL-2.0-or-later
//! Who may stage, and who may read, and when.

use super::*;

#[test]
fn question_about_contents_is_refused_until_the_list_is_complete() {
    let rounds = Script::new(vec![step(empty(1, true))], list(vec![]));
    let running = small_with(&rounds);
    let release = frame(Type::Release, 0, &ranges::encode(0, &[range(0, 1)]));
    let urgent = greeting_with(Lane::Urgent, 0);
    for (bytes, what) in [
        ([greeting(), read_frame(1, 1)].concat(), "READ"),
        ([urgent.clone(), read_frame(1, 1)].concat(), "READ"),
        ([greeting(), release.clone()].concat(), "RELEASE"),
        ([urgent, release].concat(), "RELEASE"),
    ] {
        let expected = ProtocolError::TooEarly(what).to_string();
        assert_eq!(complaint(&converse(&running, &bytes)), Some(expected));
    }
    assert_eq!(rounds.lost(), 0, "those connections staged nothing");
    let mut peer = staging_peer(&running).expect("rounds");
    peer.next(1).expect("a question");
    while !matches!(peer.next_event().expect("an event"), StagingEvent::End) {}
    let mut plain = running.peer().expect("a peer");
    assert_eq!(fetch(&mut plain, 1, 2), [Some(2), Some(3)]);
}

#[test]
fn destination_that_stages_nothing_reads_once_the_caller_allows_it() {
    let rounds = Script::new(vec![], list(vec![]));
    let running = small_with(&rounds);
    let mut peer = running.peer().expect("a peer");
    running.server.allow_reads();
    assert_eq!(fetch(&mut peer, 1, 2), [Some(2), Some(3)]);
    let error = staging_peer(&running).map(|_| ()).expect_err("there are no rounds any more");
    assert!(matches!(error, Error::NoRounds), "{error}");
    assert_eq!(rounds.lost(), 0);
}

#[test]
fn reads_are_not_allowed_by_the_caller_while_a_connection_stages() {
    let rounds = Script::new(vec![], list(vec![]));
    let running = small_with(&rounds);
    let _peer = staging_peer(&running).expect("rounds");
    running.server.allow_reads();
    let frames = converse(&running, &[greeting(), read_frame(1, 1)].concat());
    assert_eq!(complaint(&frames), Some(ProtocolError::TooEarly("READ").to_string()));
}

#[test]
fn second_staging_connection_is_refused_as_busy_and_leaves_the_first_alone() {
    let rounds = Script::new(vec![step(chosen(1, 0, &[(1, 1)])), step(empty(1, true))], list(vec![]));
    let running = small_with(&rounds);
    let mut first = staging_peer(&running).expect("rounds");
    match staging_peer(&running).map(|_| ()) {
        Err(
            error @ Error::Refused {
                code: ErrorCode::Busy, ..
            },
        ) => assert!(error.is_transient()),
        other => panic!("{other:?}"),
    }
    assert_eq!(rounds.lost(), 0);
    first.next(1).expect("a question");
    let mut staged = [vec![None; 10]];
    assert_eq!(stage(&mut first, &mut staged), Mark::Batch(1, false));
    assert_eq!(staged[0][1], Some(2));
    first.next(1).expect("a question");
    assert_eq!(stage(&mut first, &mut staged), Mark::Batch(1, true));
    assert_eq!(stage(&mut first, &mut staged), Mark::End);
    drop(first);
    let error = staging_peer(&running).map(|_| ()).expect_err("the rounds have ended");
    assert!(matches!(error, Error::NoRounds), "{error}");
    assert_eq!(rounds.lost(), 0);
}

#[test]
fn rounds_are_offered_on_the_stream_lane_of_a_server_that_has_them() {
    let rounds = Script::new(vec![], list(vec![]));
    let features = |running: &Running, lane| {
        let mut socket = running.raw();
        socket
            .write_all(&greeting_with(lane, u64::MAX))
            .expect("somebody who listens");
        let mut theirs = [0; greeting::SIZE];
        socket.read_exact(&mut theirs).expect("a greeting");
        Greeting::decode(&theirs).expect("a greeting").features
    };
    let with = small_with(&rounds);
    assert_eq!(features(&with, Lane::Urgent), FEATURE_COMPRESS);
    let of_stream = FEATURE_MAP | FEATURE_HASHES | FEATURE_COMPRESS;
    assert_eq!(features(&with, Lane::Stream), of_stream | FEATURE_ROUNDS | FEATURE_STREAMS);
    let without = small();
    assert_eq!(features(&without, Lane::Stream), of_stream);
    assert!(matches!(staging_peer(&without).map(|_| ()), Err(Error::NoRounds)));
    let frames = converse(&without, &[staging_greeting(), next_frame(1, 1)].concat());
    let unexpected = ProtocolError::Unexpected {
        got: "NEXT",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    assert_eq!(complaint(&frames), Some(unexpected.to_string()));
}
