// SPDX-License-Identifier: GPL-2.0-or-later
//! Sources of other versions, and sources that refuse, are silent or cannot be reached.

use super::*;

/// A source of the version before: it refuses another one's greeting, and serves who has its own. Two connections.
fn previous_source() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().expect("a connection");
            let mut theirs = [0; greeting::SIZE];
            socket.read_exact(&mut theirs).expect("a greeting");
            socket.write_all(&previous::GREETING).expect("somebody who listens");
            if theirs[8..10] != previous::GREETING[8..10] {
                socket.write_all(previous::REFUSAL).expect("somebody who listens");
                continue;
            }
            socket.write_all(&previous::EXPORTS).expect("somebody who listens");
            let _ = socket.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn source_of_the_previous_version_is_used_in_that_version() {
    let peer = Peer::connect(&previous_source().to_string(), Lane::Urgent, TIMEOUT).expect("a source");
    let [export] = peer.exports() else {
        panic!("{:?}", peer.exports())
    };
    assert_eq!((export.name.as_str(), export.pages.count()), ("ram", 10));
    assert_eq!(export.identity, 0x83be_fa44);
}

#[test]
fn other_protocol_version_or_lane_is_named_in_the_error() {
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    assert_eq!(
        protocol_error(fetch(sender(http), &[(0, 1)])),
        ProtocolError::Magic(*b"HTTP/1.1")
    );
    let mut version = hello(Lane::Urgent);
    version[8] = 9;
    assert_eq!(protocol_error(fetch(sender(version), &[(0, 1)])), ProtocolError::Version(9));
    assert_eq!(
        protocol_error(fetch(sender(hello(Lane::Stream)), &[(0, 1)])),
        ProtocolError::OtherLane
    );
    let eager = hello_with(Lane::Urgent, 4);
    assert_eq!(protocol_error(fetch(sender(eager), &[(0, 1)])), ProtocolError::Features(4));
}

#[test]
fn error_frame_of_the_source_is_returned_as_refused() {
    let error = frame(Type::Error, 0, &refusal::encode(ErrorCode::Busy, "later"));
    for bytes in [
        [greeting(Lane::Urgent, 0), error.clone()].concat(),
        [hello(Lane::Urgent), error].concat(),
    ] {
        match fetch(sender(bytes), &[(0, 1)]) {
            Err(Error::Refused {
                code: ErrorCode::Busy,
                text,
            }) => assert_eq!(text, "later"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn silent_source_times_out() {
    let silent = server(|socket| {
        thread::sleep(10 * TIMEOUT);
        drop(socket);
    });
    let since = Instant::now();
    assert!(matches!(fetch(silent, &[(0, 1)]), Err(Error::TimedOut { .. })));
    let silent_later = server(|mut socket| {
        socket.write_all(&hello(Lane::Urgent)).expect("somebody who listens");
        thread::sleep(10 * TIMEOUT);
    });
    assert!(matches!(fetch(silent_later, &[(0, 1)]), Err(Error::TimedOut { .. })));
    assert!(since.elapsed() < 8 * TIMEOUT, "{:?}", since.elapsed());
}

#[test]
fn bytes_sent_one_by_one_do_not_extend_the_time_limit() {
    let dripping = server(|mut socket| {
        let bytes = [hello(Lane::Urgent), pages_frame(1, 0, &[(0, 1, Kind::Data)])].concat();
        let (hello, pages) = bytes.split_at(hello(Lane::Urgent).len());
        socket.write_all(hello).expect("somebody who listens");
        for byte in pages {
            if socket.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(TIMEOUT / 10);
        }
    });
    let since = Instant::now();
    assert!(matches!(fetch(dripping, &[(0, 1)]), Err(Error::TimedOut { .. })));
    assert!(since.elapsed() < 4 * TIMEOUT, "{:?}", since.elapsed());
}

#[test]
fn unreachable_source_is_named_in_the_error() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let error = Peer::connect(&address, Lane::Urgent, TIMEOUT)
        .map(|_| ())
        .expect_err("nobody is there");
    assert!(error.is_lost() && error.to_string().contains(&address), "{error}");
}
