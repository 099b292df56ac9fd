// SPDX-License-Identifier: GPL-2.0-or-later
//! Replies to requests.

use std::sync::mpsc::channel;

use super::*;
use crate::wire::{errno, simple_reply};

/// Asks for 8,192 bytes at 4,096, cookie 1; the error that comes of this reply.
fn error_of(features: Features, bytes: Vec<u8>) -> Error {
    let script = after_handshake(features, move |stream| {
        request(stream);
        let _ = stream.write_all(&bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let session = session(LONG, script).expect("a session");
    let client = session.client(Priority::Urgent).expect("a client");
    let other = session.client(Priority::Background).expect("a client");
    client.ask(read(4096, 8192), 5).expect("an open session");
    let error = client.next_reply().expect_err("no reply is right");
    assert_eq!(
        other.next_reply().expect_err("the same connection").to_string(),
        error.to_string()
    );
    assert!(!session.is_open() && session.client(Priority::Urgent).is_err() && client.ask(read(0, 1), 6).is_err());
    error
}

#[test]
fn reply_that_is_not_one_to_the_request_ends_the_session() {
    let data = |flags, offset, length: usize| at(flags, chunk::OFFSET_DATA, 1, offset, &vec![1; length]);
    let hole = |flags, offset, length: u32| at(flags, chunk::OFFSET_HOLE, 1, offset, &length.to_be_bytes());
    let bare = |flags, kind, cookie, length| chunk_header(flags, kind, cookie, length).to_vec();
    let extents = |context: u32, rest: &[u32]| {
        let rest: Vec<u8> = rest.iter().flat_map(|word| word.to_be_bytes()).collect();
        [
            &bare(DONE, chunk::BLOCK_STATUS, 1, 4 + rest.len() as u32)[..],
            &context.to_be_bytes(),
            &rest,
        ]
        .concat()
    };
    let error = |kind, length: u32, rest: &[u8]| [&bare(DONE, kind, 1, length)[..], rest].concat();
    for (bytes, part) in [
        (vec![0; 16], "without its magic number"),
        (simple_reply(0, 1).to_vec(), "a simple reply to a read"),
        (bare(DONE, chunk::NONE, 2, 0), "the cookie 0x2"),
        (bare(DONE, chunk::NONE, 1, 0), "without all bytes"),
        (bare(0, chunk::NONE, 1, 0), "a chunk of type 0"),
        (bare(DONE, 77, 1, 4), "a chunk of type 77"),
        (data(DONE, 4096, 8191), "without all bytes"),
        ([data(0, 4096, 4096), hole(DONE, 8193, 4095)].concat(), "without all bytes"),
        (data(DONE, 4096, 8193), "not asked for"),
        (data(DONE, 4095, 100), "not asked for"),
        (data(DONE, u64::MAX, 100), "not asked for"),
        (bare(DONE, chunk::OFFSET_DATA, 1, 8), "a chunk of data with 8 bytes"),
        (
            [&bare(DONE, chunk::OFFSET_DATA, 1, u32::MAX)[..], &4096_u64.to_be_bytes()].concat(),
            "not asked for",
        ),
        ([data(0, 4096, 4096), data(DONE, 8191, 4097)].concat(), "sent before"),
        ([hole(0, 4096, 8192), data(DONE, 4096, 1)].concat(), "sent before"),
        (hole(DONE, 4096, 0), "not asked for"),
        (hole(DONE, 4096, 8193), "not asked for"),
        (bare(DONE, chunk::OFFSET_HOLE, 1, 11), "a chunk of type 2 with 11 bytes"),
        (extents(CONTEXT, &[4096, 0]), "extents that were not asked for"),
        (extents(9, &[4096, 0]), "that was not negotiated"),
        (extents(CONTEXT, &[4096]), "a chunk of extents with 8 bytes"),
        (extents(CONTEXT, &[]), "a chunk of extents with 4 bytes"),
        (
            bare(DONE, chunk::BLOCK_STATUS, 1, 4 + 8 * ((1 << 20) + 1)),
            "a chunk of extents with 8388620 bytes",
        ),
        (error(chunk::ERROR, 5, &[0; 5]), "an error chunk"),
        (error(chunk::ERROR, 6, &[0; 6]), "an error chunk"),
        (error(chunk::ERROR, 6, &[0, 0, 0, 5, 0, 1]), "an error chunk"),
        (error(chunk::ERROR, 7, &[0, 0, 0, 5, 0, 0, 1]), "an error chunk"),
        (bare(DONE, chunk::ERROR, 1, 1 << 20), "an error chunk"),
        (
            error(chunk::ERROR_OFFSET, 14, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "an error at 0",
        ),
    ] {
        let error = error_of(MODERN, bytes);
        check_error(&error, part);
        assert!(!error.is_transient(), "{error}");
    }
    check_error(&error_of(OLD, data(DONE, 4096, 8192)), "was not negotiated");
    let scattered = (0..2000).flat_map(|at| data(0, 4096 + 2 * at, 1)).collect();
    check_error(&error_of(MODERN, scattered), "scattered");
}

#[test]
fn second_reply_to_a_request_ends_the_session() {
    let whole = at(DONE, chunk::OFFSET_DATA, 1, 4096, &[1; 8192]);
    let script = after_handshake(MODERN, move |stream| {
        request(stream);
        stream.write_all(&whole.repeat(2)).expect("a client");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let session = session(LONG, script).expect("a session");
    let client = session.client(Priority::Urgent).expect("a client");
    client.ask(read(4096, 8192), 5).expect("an open session");
    assert!(
        matches!(client.next_reply(), Ok((5, Outcome::Read(Ok(_), _)))),
        "the first one is right"
    );
    check_error(&client.next_reply().expect_err("nothing was asked for"), "the cookie 0x1");
}

#[test]
fn replies_come_in_any_order_and_in_any_parts() {
    let script = after_handshake(MODERN, |stream| {
        let requests = [request(stream), request(stream), request(stream), request(stream)];
        assert_eq!(
            requests.map(|request| (request.offset, request.length)),
            [(0, 4), (100, 6), (200, 2), (300, 1)]
        );
        let bytes = [
            at(0, chunk::OFFSET_DATA, 2, 104, b"EF"),
            at(DONE, chunk::OFFSET_HOLE, 3, 200, &2_u32.to_be_bytes()),
            at(0, chunk::OFFSET_DATA, 2, 100, b"A"),
            [
                &chunk_header(0, chunk::ERROR_OFFSET, 4, 17)[..],
                b"\0\0\0\x05\0\x03bad",
                &300_u64.to_be_bytes(),
            ]
            .concat(),
            at(DONE, chunk::OFFSET_DATA, 1, 0, b"1234"),
            at(0, chunk::OFFSET_HOLE, 2, 101, &3_u32.to_be_bytes()),
            chunk_header(DONE, chunk::NONE, 4, 0).to_vec(),
            chunk_header(DONE, chunk::NONE, 2, 0).to_vec(),
        ];
        stream.write_all(&bytes.concat()).expect("a client");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let session = session(LONG, script).expect("a session");
    let client = session.client(Priority::Background).expect("a client");
    for (tag, question) in [(10, read(0, 4)), (11, read(100, 6)), (12, read(200, 2)), (13, read(300, 1))] {
        client.ask(question, tag).expect("an open session");
    }
    let mut replies: Vec<(u64, Result<Bytes, Failure>)> = Vec::new();
    while replies.len() < 4 {
        match client.next_reply().expect("a reply") {
            (tag, Outcome::Read(read, _)) => replies.push((tag, read)),
            other => panic!("{other:?}"),
        }
    }
    let failure = Failure {
        errno: errno::EIO,
        text: ": bad".to_owned(),
    };
    assert_eq!(
        replies,
        [
            (12, Ok(Bytes::Zero)),
            (10, Ok(Bytes::Data(b"1234".to_vec()))),
            (13, Err(failure)),
            (11, Ok(Bytes::Data(b"A\0\0\0EF".to_vec()))),
        ]
    );
}

#[test]
fn simple_replies_are_read_and_their_errors_are_those_of_one_request() {
    let script = after_handshake(OLD, |stream| {
        let (first, second) = (request(stream), request(stream));
        let bytes = [
            &simple_reply(errno::EIO, second.cookie)[..],
            &simple_reply(0, first.cookie),
            b"abc",
        ]
        .concat();
        stream.write_all(&bytes).expect("a client");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let session = session(LONG, script).expect("a session");
    let client = session.client(Priority::Urgent).expect("a client");
    client.ask(read(1, 3), 1).expect("an open session");
    client.ask(read(4, 3), 2).expect("an open session");
    assert!(matches!(
        client.next_reply(),
        Ok((2, Outcome::Read(Err(Failure { errno: 5, .. }), _)))
    ));
    assert!(matches!(client.next_reply(), Ok((1, Outcome::Read(Ok(Bytes::Data(bytes)), 19))) if bytes == b"abc"));
}

#[test]
fn extents_are_joined_and_checked() {
    let ask = |bytes: Vec<u8>| {
        let script = after_handshake(MODERN, move |stream| {
            assert_eq!(request(stream).command, crate::wire::command::BLOCK_STATUS);
            stream.write_all(&bytes).expect("a client");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let client = session(LONG, script)
            .expect("a session")
            .client(Priority::Background)
            .expect("a client");
        client
            .ask(
                Question::Extents {
                    offset: 512,
                    length: 100,
                },
                3,
            )
            .expect("an open session");
        client.next_reply().map(|(tag, outcome)| (tag, format!("{outcome:?}")))
    };
    let extents = |rest: &[u32]| {
        let rest: Vec<u8> = rest.iter().flat_map(|word| word.to_be_bytes()).collect();
        let header = chunk_header(DONE, chunk::BLOCK_STATUS, 1, 4 + rest.len() as u32);
        [&header[..], &CONTEXT.to_be_bytes(), &rest].concat()
    };
    // A hole is zero only if the server says that it reads so.
    let (tag, found) = ask(extents(&[10, 1, 20, 0, 30, 3, 5, 2, 1000, 3])).expect("extents");
    let expected = [(30, false), (1035, true)].map(|(bytes, zero)| Extent { bytes, zero });
    assert_eq!((tag, found), (3, format!("{:?}", Outcome::Extents(Ok(expected.to_vec())))));
    for wrong in [&[10, 1, 0, 0][..], &[100, 0, 1, 0], &[0, 3]] {
        check_error(&ask(extents(wrong)).expect_err("wrong"), "an extent");
    }
    check_error(&ask(simple_reply(0, 1).to_vec()).expect_err("wrong"), "without the extents");
    check_error(
        &ask(at(DONE, chunk::OFFSET_DATA, 1, 512, b"x")).expect_err("wrong"),
        "not asked for",
    );
    let (_, refused) = ask(simple_reply(errno::EINVAL, 1).to_vec()).expect("an error of one request");
    assert!(refused.contains("errno: 22"), "{refused}");
}

#[test]
fn lost_connections_and_servers_that_end_are_transient_errors() {
    let cut = error_of_lost(at(DONE, chunk::OFFSET_DATA, 1, 4096, &[1; 100])[..50].to_vec());
    assert!(matches!(cut, Error::Closed) && cut.is_transient(), "{cut}");
    let ends = [
        &chunk_header(DONE, chunk::ERROR, 1, 6)[..],
        &errno::ESHUTDOWN.to_be_bytes(),
        &[0; 2],
    ]
    .concat();
    let ends = error_of(MODERN, ends);
    assert!(matches!(ends, Error::ShuttingDown) && ends.is_transient(), "{ends}");
}

/// As `error_of`, but the server has gone after the bytes.
fn error_of_lost(bytes: Vec<u8>) -> Error {
    let script = after_handshake(MODERN, move |stream| {
        request(stream);
        stream.write_all(&bytes).expect("a client");
    });
    let session = session(LONG, script).expect("a session");
    let client = session.client(Priority::Urgent).expect("a client");
    client.ask(read(4096, 8192), 5).expect("an open session");
    client.next_reply().expect_err("it has gone")
}

#[test]
fn each_answer_has_a_time_limit_whatever_else_is_answered() {
    let limit = Duration::from_millis(300);
    // It answers all requests but the first one.
    let script = after_handshake(MODERN, |stream| {
        request(stream);
        while let Ok(bytes) = {
            let mut bytes = [0; Request::SIZE];
            stream.read_exact(&mut bytes).map(|()| bytes)
        } {
            let request = Request::decode(&bytes).expect("a request");
            let reply = at(
                DONE,
                chunk::OFFSET_DATA,
                request.cookie,
                request.offset,
                &vec![1; request.length as usize],
            );
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    });
    let session = session(limit, script).expect("a session");
    thread::sleep(2 * limit);
    assert!(session.is_open(), "nothing is due");
    let client = session.client(Priority::Urgent).expect("a client");
    let since = Instant::now();
    let error = (0..).find_map(|tag| {
        thread::sleep(Duration::from_millis(5));
        let asked = client.ask(read(tag, 1), tag);
        match asked.and_then(|()| if tag == 0 { Ok(None) } else { client.next_reply().map(Some) }) {
            Ok(reply) => {
                assert!(since.elapsed() < LONG, "{reply:?}");
                None
            }
            Err(error) => Some(error),
        }
    });
    let error = error.expect("an error");
    assert!(matches!(error, Error::TimedOut { .. }) && error.is_transient(), "{error}");
    assert!(since.elapsed() >= limit, "{:?}", since.elapsed());
}

#[test]
fn server_is_told_when_nobody_uses_the_session_any_more() {
    let (sender, last) = channel();
    let script = after_handshake(MODERN, move |stream| {
        let request = request(stream);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the end");
        sender.send((request.command, rest)).expect("a test");
    });
    let client = session(LONG, script)
        .expect("a session")
        .client(Priority::Urgent)
        .expect("a client");
    assert!(last.recv_timeout(Duration::from_millis(50)).is_err(), "a client uses it");
    drop(client);
    let (command, rest) = last.recv_timeout(LONG).expect("the server is told");
    assert_eq!((command, rest), (crate::wire::command::DISC, Vec::new()));
}

#[test]
fn descriptor_is_readable_as_long_as_something_waits() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let is_readable = |client: &Client, limit: Duration| {
        let limit = Timespec::try_from(limit).expect("a time");
        poll(&mut [PollFd::from_borrowed_fd(client.fd(), PollFlags::IN)], Some(&limit)).expect("a poll") == 1
    };
    let (go_on, gate) = channel::<()>();
    let script = after_handshake(MODERN, move |stream| {
        for _ in 0..2 {
            let request = request(stream);
            stream
                .write_all(&at(
                    DONE,
                    chunk::OFFSET_HOLE,
                    request.cookie,
                    request.offset,
                    &request.length.to_be_bytes(),
                ))
                .expect("a client");
        }
        let _ = gate.recv();
    });
    let client = session(LONG, script)
        .expect("a session")
        .client(Priority::Urgent)
        .expect("a client");
    assert!(!is_readable(&client, Duration::ZERO));
    client.ask(read(0, 1), 0).expect("an open session");
    client.ask(read(1, 1), 1).expect("an open session");
    assert!(is_readable(&client, LONG));
    client.next_reply().expect("a reply");
    client.next_reply().expect("a reply");
    client.rearm(true);
    assert!(is_readable(&client, Duration::ZERO), "the caller has more");
    client.rearm(false);
    assert!(!is_readable(&client, Duration::ZERO));
    drop(go_on);
    assert!(is_readable(&client, LONG), "the server has gone");
    client.rearm(false);
    assert!(is_readable(&client, Duration::ZERO), "and that stays so");
    assert!(matches!(client.next_reply(), Err(Error::Closed)));
}
