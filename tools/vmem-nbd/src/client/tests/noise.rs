// SPDX-License-Identifier: GPL-2.0-or-later
//! Servers that send anything.

use proptest::prelude::*;

use super::*;

/// A right conversation: the handshake, and a reply to each of the two requests that `converse` makes.
fn right() -> (Vec<u8>, Vec<u8>) {
    let extents = [
        &chunk_header(DONE, chunk::BLOCK_STATUS, 2, 20)[..],
        &CONTEXT.to_be_bytes(),
        &4096_u32.to_be_bytes(),
        &3_u32.to_be_bytes(),
        &4096_u32.to_be_bytes(),
        &0_u32.to_be_bytes(),
    ];
    let replies = [
        at(0, chunk::OFFSET_DATA, 1, 4096, &[1; 300]),
        at(0, chunk::OFFSET_HOLE, 1, 4396, &212_u32.to_be_bytes()),
        extents.concat(),
        chunk_header(DONE, chunk::NONE, 1, 0).to_vec(),
    ];
    (handshake(MODERN), replies.concat())
}

/// Asks for something of a server that sends these bytes, and closes the connection. It must come to an end. What is read without an error is as long as
/// what was asked for.
fn converse(hello: Vec<u8>, replies: Vec<u8>) {
    let script = move |mut stream: UnixStream| {
        if stream.write_all(&hello).is_ok()
            && stream
                .read_exact(&mut vec![0; client_bytes(MODERN) + 2 * Request::SIZE])
                .is_ok()
        {
            let _ = stream.write_all(&replies);
        }
    };
    // Of a damaged length, the rest never comes: the server waits for the client, and the other way round.
    let Ok(session) = session(Duration::from_millis(100), script) else {
        return;
    };
    let Ok(client) = session.client(Priority::Urgent) else {
        return;
    };
    let asked = client
        .ask(read(4096, 512), 0)
        .and_then(|()| client.ask(Question::Extents { offset: 0, length: 8192 }, 1));
    for _ in 0..2 {
        match asked.clone().and_then(|()| client.next_reply()) {
            Ok((0, Outcome::Read(Ok(Bytes::Data(bytes)), _))) => assert_eq!(bytes.len(), 512),
            Ok((0, Outcome::Read(..)) | (1, Outcome::Extents(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(_) => return,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_conversation_comes_to_an_end(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<Option<prop::sample::Index>>(),
        in_handshake in any::<bool>(),
    ) {
        let (mut hello, mut replies) = right();
        let part = if in_handshake { &mut hello } else { &mut replies };
        for (at, byte) in flips {
            let at = at.index(part.len());
            part[at] ^= byte;
        }
        if let Some(cut) = cut {
            part.truncate(cut.index(part.len()));
        }
        converse(hello, replies);
    }

    #[test]
    fn any_bytes_after_the_handshake_come_to_an_end(
        kind in 0..8_u16, flags in 0..2_u16, cookie in 0..3_u64, length in prop_oneof![0..40_u32, any::<u32>()],
        rest in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let error = if kind > 6 { chunk::ERROR_BIT } else { 0 };
        let replies = [&chunk_header(flags, kind | error, cookie, length)[..], &rest].concat();
        converse(handshake(MODERN), replies);
    }
}

#[test]
fn right_conversation_is_one() {
    let (hello, replies) = right();
    let script = move |mut stream: UnixStream| {
        stream.write_all(&hello).expect("a client");
        stream
            .read_exact(&mut vec![0; client_bytes(MODERN) + 2 * Request::SIZE])
            .expect("requests");
        stream.write_all(&replies).expect("a client");
    };
    let client = session(LONG, script)
        .expect("a session")
        .client(Priority::Urgent)
        .expect("a client");
    client.ask(read(4096, 512), 0).expect("an open session");
    client
        .ask(Question::Extents { offset: 0, length: 8192 }, 1)
        .expect("an open session");
    assert!(matches!(client.next_reply(), Ok((1, Outcome::Extents(Ok(_))))));
    assert!(matches!(client.next_reply(), Ok((0, Outcome::Read(Ok(Bytes::Data(_)), _)))));
}
