// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds learn when their destination is lost, and no other one goes on with them.

use super::*;

#[test]
fn destination_that_comes_after_a_lost_one_gets_no_rounds() {
    let rounds = Script::new(vec![step(chosen(1, 0, &[(1, 1)]))], list(vec![]));
    let running = small_with(&rounds);
    drop(staging_peer(&running).expect("rounds"));
    rounds.wait_lost();
    let error = staging_peer(&running)
        .map(|_| ())
        .expect_err("pages that another one got are not sent again");
    assert!(matches!(error, Error::NoRounds), "{error}");
    let frames = converse(&running, &[greeting(), read_frame(1, 1)].concat());
    assert_eq!(complaint(&frames), Some(ProtocolError::TooEarly("READ").to_string()));
    assert_eq!(rounds.lost(), 1);
}

#[test]
fn connection_that_ends_at_any_step_before_the_end_of_the_list_loses_the_rounds() {
    let goodbye = frame(Type::Goodbye, 0, &[]);
    let error = frame(Type::Error, 0, &refusal::encode(ErrorCode::Protocol, "enough"));
    for (bytes, expected) in [
        (vec![], Some("the peer closed the connection")),
        (
            next_frame(1, 1)[..10].to_vec(),
            Some("the peer closed the connection in the middle of a frame"),
        ),
        (
            next_frame(1, 1)[..28].to_vec(),
            Some("the peer closed the connection in the middle of a frame"),
        ),
        (next_frame(1, 1), Some("the peer closed the connection")),
        (goodbye.clone(), None),
        ([next_frame(1, 1), goodbye].concat(), None),
        (
            [next_frame(1, 1), error].concat(),
            Some("the peer refused: enough (protocol error)"),
        ),
    ] {
        let rounds = Script::new(vec![step(chosen(1, 0, &[(1, 1)]))], list(vec![]));
        let running = small_with(&rounds);
        converse(&running, &[staging_greeting(), bytes].concat());
        assert_eq!(running.next_ended().1.as_deref(), expected);
        assert_eq!(rounds.lost(), 1, "{expected:?}");
    }
}

/// The destination goes away while the rest of the list is on its way to it.
#[test]
fn connection_that_ends_within_the_list_loses_the_rounds() {
    // More than any socket buffer takes: a range for every second page.
    let file = memfd((1 << 21) * PAGE_SIZE as u64, &[]);
    let many: Vec<_> = (0..1 << 20).map(|number| (2 * number, 1)).collect();
    for closes in [true, false] {
        let rounds = Script::new(vec![step(empty(1, true))], list(vec![pages(0, &many)]));
        let server = Arc::clone(&rounds);
        let memory = Memory::open(&spec("ram", &file)).expect("memory");
        let running = Running::with(vec![memory], LIMITS, |it| it.with_rounds(server));
        let mut socket = running.raw();
        socket
            .write_all(&[staging_greeting(), next_frame(1, 1)].concat())
            .expect("somebody who listens");
        socket.read_exact(&mut [0; 1000]).expect("the beginning");
        let kept = (!closes).then_some(socket);
        let (_, error) = running.next_ended();
        let error = error.expect("an error");
        let timed_out = error.contains("did not take a REMAINDER within");
        assert_eq!(timed_out, !closes, "{error}");
        assert_eq!(rounds.lost(), 1);
        drop(kept);
        let frames = converse(&running, &[greeting(), read_frame(1, 1)].concat());
        assert_eq!(complaint(&frames), Some(ProtocolError::TooEarly("READ").to_string()));
    }
}

#[test]
fn server_that_stops_loses_the_rounds() {
    let rounds = Script::new(vec![], list(vec![]));
    let running = small_with(&rounds);
    let peer = staging_peer(&running).expect("rounds");
    drop(running);
    rounds.wait_lost();
    drop(peer);
    assert_eq!(rounds.lost(), 1);
}

#[test]
fn rounds_that_panic_are_lost_and_the_server_goes_on() {
    let panics: Step = Box::new(|| panic!("on purpose"));
    let remainder_panics: Remainder = Box::new(|| panic!("on purpose"));
    for (step, remainder) in [
        (panics, list(vec![])),
        (step(empty(99, false)), list(vec![])),
        (step(empty(1, true)), remainder_panics),
    ] {
        let rounds = Script::new(vec![step], remainder);
        let running = small_with(&rounds);
        let mut peer = staging_peer(&running).expect("rounds");
        peer.next(1).expect("a question");
        let error = loop {
            match peer.next_event() {
                Ok(StagingEvent::End) => panic!("the list is complete"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Closed { .. }), "{error}");
        rounds.wait_lost();
        assert_eq!(rounds.lost(), 1);
        let error = staging_peer(&running).map(|_| ()).expect_err("they have ended");
        assert!(matches!(error, Error::NoRounds), "{error}");
    }
}

#[test]
fn destination_that_does_not_take_the_pages_of_a_round_is_closed_at_the_time_limit() {
    let filled: Vec<u64> = (0..4096).collect();
    let memory = Memory::open(&spec("ram", &memfd(4096 * PAGE_SIZE as u64, &filled))).expect("memory");
    let whole = || step(chosen(1, 0, &[(0, 4096)]));
    let rounds = Script::new(vec![whole(), whole(), whole(), whole()], list(vec![]));
    let server = Arc::clone(&rounds);
    let running = Running::with(vec![memory], LIMITS, |it| it.with_rounds(server));
    let mut socket = running.raw();
    socket.write_all(&staging_greeting()).expect("somebody who listens");
    for tag in 1..=4 {
        socket.write_all(&next_frame(tag, 4096)).expect("somebody who listens");
    }
    let expected = format!("the peer did not take pages within {} s", TIMEOUT.as_secs_f32());
    assert_eq!(running.next_ended().1, Some(expected));
    assert_eq!(rounds.lost(), 1);
}
