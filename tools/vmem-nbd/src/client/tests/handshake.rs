// SPDX-License-Identifier: GPL-2.0-or-later
//! The handshake.

use super::*;

#[test]
fn features_of_the_server_are_used() {
    let session = session(LONG, says(handshake(MODERN))).expect("a session");
    let description = session.description();
    assert_eq!(
        (description.size, description.min_block, description.max_read),
        (SIZE, 1, MAX_PAYLOAD)
    );
    assert!(description.structured && description.has_extents() && !description.can_multi_conn);
}

#[test]
fn features_that_a_server_lacks_are_done_without() {
    let old = session(LONG, says(handshake(OLD))).expect("a session").description();
    assert!(!old.structured && !old.has_extents());
    let features = Features {
        allocation: false,
        blocks: Some([4096, 4096, (1 << 20) + 5]),
        flags: flag::HAS_FLAGS | flag::CAN_MULTI_CONN,
        ..MODERN
    };
    let some = session(LONG, says(handshake(features))).expect("a session").description();
    assert!(some.structured && !some.has_extents() && some.can_multi_conn);
    assert_eq!((some.min_block, some.max_read), (4096, 1 << 20), "reads are whole blocks");
}

#[test]
fn server_without_go_gives_the_export_by_its_name() {
    for (greeting, zeros) in [(GREETING, 0), (b"NBDMAGICIHAVEOPT\0\x01", 124)] {
        let mut bytes = greeting.to_vec();
        bytes.extend(option_reply(option::STRUCTURED_REPLY, reply::UNSUP, b""));
        bytes.extend(option_reply(option::GO, reply::UNSUP, b"what?"));
        bytes.extend(SIZE.to_be_bytes());
        bytes.extend(flag::HAS_FLAGS.to_be_bytes());
        bytes.extend(vec![0; zeros]);
        let session = session(LONG, says(bytes)).expect("a session");
        assert_eq!(session.description().size, SIZE);
        thread::sleep(Duration::from_millis(20));
        assert!(session.is_open(), "all zeros were read");
    }
}

#[test]
fn server_that_refuses_is_an_error_that_says_why() {
    for (kind, is_transient, part) in [
        (reply::TLS_REQD, false, "demands TLS"),
        (reply::SHUTDOWN, true, "shutting down"),
        (reply::UNKNOWN, false, "\"ram\": it has no such export (none of that name)"),
        (reply::POLICY, false, "its policy forbids it"),
    ] {
        let mut bytes = GREETING.to_vec();
        bytes.extend(option_reply(option::STRUCTURED_REPLY, reply::UNSUP, b""));
        bytes.extend(option_reply(option::GO, kind, b"none of\x1b that name\n"));
        let error = session(LONG, says(bytes)).expect_err(part);
        check_error(&error, part);
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
    // A server with nothing but TLS says so to whatever comes first.
    let mut bytes = GREETING.to_vec();
    bytes.extend(option_reply(option::STRUCTURED_REPLY, reply::TLS_REQD, b""));
    assert!(matches!(session(LONG, says(bytes)), Err(Error::TlsRequired)));
}

#[test]
fn server_that_violates_the_handshake_is_refused() {
    let begin = |rest: &[u8]| [GREETING, rest].concat();
    let structured = option_reply(option::STRUCTURED_REPLY, reply::UNSUP, b"");
    let go = |kind, data: &[u8]| begin(&[&structured[..], &option_reply(option::GO, kind, data)].concat());
    let sizes = |blocks: [u32; 3]| {
        let blocks = blocks.map(u32::to_be_bytes).concat();
        go(reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &blocks].concat())
    };
    let mut long = option_reply(option::STRUCTURED_REPLY, reply::ACK, b"");
    long.truncate(16);
    long.extend(u32::MAX.to_be_bytes());
    let context = [
        &option_reply(option::STRUCTURED_REPLY, reply::ACK, b"")[..],
        &option_reply(option::SET_META_CONTEXT, reply::META_CONTEXT, b"abc"),
    ]
    .concat();
    let endless = option_reply(option::GO, reply::INFO, &[0, 9]).repeat(100);
    for (bytes, part) in [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(), "not those of an NBD server"),
        (
            b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0\0\0".to_vec(),
            "the oldstyle handshake",
        ),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), "not the fixed one"),
        (b"NBDMAGICIHAVEOP?\0\x03".to_vec(), "no known kind"),
        (begin(&[0xff; 20]), "without its magic number"),
        (begin(&option_reply(option::GO, reply::ACK, b"")), "to another option"),
        (begin(&long), "a reply of 4294967295 bytes"),
        (begin(&context), "a metadata context without a number"),
        (go(reply::ACK, b""), "an export without its size"),
        (go(reply::INFO, &[0, 0, 1]), "an export without size or flags"),
        (go(reply::INFO, &[0, 3, 1]), "block sizes that are cut off"),
        (sizes([0, 4096, 4096]), "block sizes of at least 0"),
        (sizes([3, 4096, 4096]), "block sizes of at least 3"),
        (sizes([1 << 17, 1 << 17, 1 << 20]), "block sizes of at least 131072"),
        (sizes([1, 256, 4096]), "preferably 256"),
        (sizes([4096, 4096, 512]), "at most 512"),
        (begin(&[&structured[..], &endless].concat()), "more than 64 replies"),
    ] {
        let error = session(LONG, says(bytes)).expect_err(part);
        check_error(&error, part);
        assert!(!error.is_transient(), "{error}");
    }
}

#[test]
fn handshake_has_one_time_limit_for_all_of_it() {
    let limit = Duration::from_millis(200);
    let check = |script: Box<dyn FnOnce(UnixStream) + Send>| {
        let since = Instant::now();
        let error = session(limit, script).expect_err("it never ends");
        assert!(matches!(error, Error::TimedOut { .. }) && error.is_transient(), "{error}");
        assert!(since.elapsed() < LONG, "{:?}", since.elapsed());
    };
    check(Box::new(says(Vec::new())));
    check(Box::new(says(handshake(MODERN)[..100].to_vec())));
    // A byte now and then, in a reply that is as long as one may be.
    check(Box::new(|mut stream| {
        let mut bytes = [GREETING, &option_reply(option::STRUCTURED_REPLY, reply::UNSUP, &[0; 4000])]
            .concat()
            .into_iter();
        while bytes.next().is_some_and(|byte| stream.write_all(&[byte]).is_ok()) {
            thread::sleep(Duration::from_millis(5));
        }
    }));
    let closed = session(limit, drop).expect_err("it has gone");
    assert!(matches!(closed, Error::Closed) && closed.is_transient(), "{closed}");
}
