// SPDX-License-Identifier: GPL-2.0-or-later
//! A source that breaks the rules of rounds over several connections gets an error.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier};

use super::*;
use crate::endpoint::{Endpoint, Security};
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::rounds::{BatchEnd, encode_batch};
use crate::wire::session::{Session, Token, encode_session};

const TOKEN: u128 = 0x1234;

/// A source whose connections send these bytes each, whatever they are asked. The bytes that the destination sends are given to `heard` when it
/// closes the connection.
fn source(connections: Vec<Vec<u8>>, heard: Sender<(usize, Vec<u8>)>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for (number, bytes) in connections.into_iter().enumerate() {
            let (mut socket, _) = listener.accept().expect("a connection");
            let heard = heard.clone();
            thread::spawn(move || {
                let _ = socket.write_all(&bytes);
                let mut found = Vec::new();
                let _ = socket.read_to_end(&mut found);
                let _ = heard.send((number, found));
            });
        }
    });
    address
}

fn hello_with(features: u64) -> Vec<u8> {
    hello_of(Lane::Stream, features, &[export_of(2000)])
}

fn session(token: u128, connections: usize) -> Vec<u8> {
    let token = Token::from_bits(token);
    frame(Type::Session, 0, &encode_session(Session { token, connections }))
}

fn first(frames: &[Vec<u8>]) -> Vec<u8> {
    [
        hello_with(FEATURE_ROUNDS | FEATURE_STREAMS),
        session(TOKEN, 3),
        frames.concat(),
    ]
    .concat()
}

fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    [hello_with(FEATURE_STREAMS), session(TOKEN, 3), frames.concat()].concat()
}

fn zeros(tag: u32, first: u64, count: u64) -> Vec<u8> {
    pages_frame(tag, 0, &[(first, count, Kind::Zero)])
}

fn batch(tag: u32, round: u32, over: bool) -> Vec<u8> {
    frame(Type::Batch, tag, &encode_batch(BatchEnd { round, over }))
}

fn list_end() -> Vec<u8> {
    frame(Type::Remainder, 0, &ranges::encode(0, &[]))
}

fn connect(address: SocketAddr, streams: usize) -> Result<Vec<StagingPeer>, Error> {
    Endpoint::new(&address.to_string(), Security::Loopback, TIMEOUT).connect_rounds(streams)
}

/// Asks on all connections, and takes the events of one after the other until each has ended.
fn stage(connections: Vec<Vec<u8>>, asks: u64) -> Result<Vec<Vec<bool>>, Error> {
    let count = connections.len();
    let mut peers = connect(source(connections, channel().0), count)?;
    let mut found = Vec::new();
    for peer in &mut peers {
        (0..asks).try_for_each(|_| peer.next(100))?;
        let mut overs = Vec::new();
        loop {
            match peer.next_event()? {
                StagingEvent::End => break,
                StagingEvent::Batch { over, .. } => overs.push(over),
                _ => {}
            }
        }
        found.push(overs);
    }
    Ok(found)
}

#[test]
fn joined_connection_ends_without_a_list_and_says_that_all_has_arrived() {
    let (heard, hears) = channel();
    let connections = vec![
        first(&[zeros(1, 0, 10), batch(1, 1, true), list_end()]),
        joined(&[zeros(1, 600, 10), batch(1, 2, false), batch(2, 2, true), batch(3, 2, true)]),
    ];
    let mut peers = connect(source(connections, heard), 2).expect("rounds");
    assert_eq!(peers.len(), 2);
    let mut second = peers.pop().expect("two");
    (0..3).try_for_each(|_| second.next(100)).expect("room");
    assert!(matches!(second.next_event(), Ok(StagingEvent::Pages(_))));
    assert!(matches!(second.next_event(), Ok(StagingEvent::Batch { over: false, .. })));
    assert!(matches!(second.next_event(), Ok(StagingEvent::Batch { over: true, .. })));
    assert!(
        matches!(second.next_event(), Ok(StagingEvent::End)),
        "the last NEXT is answered"
    );
    assert!(second.next(1).is_err(), "the rounds are over");
    drop(second);
    drop(peers);
    let mut ended = 0;
    for _ in 0..2 {
        let (number, bytes) = hears.recv_timeout(10 * TIMEOUT).expect("a connection that ends");
        let end = frame(Type::Ended, 0, &[]);
        let count = bytes.windows(end.len()).filter(|window| *window == end).count();
        assert_eq!(count, usize::from(number == 1), "connection {number}");
        ended += count;
    }
    assert_eq!(ended, 1);
}

#[test]
fn valid_rounds_over_two_connections_are_accepted() {
    let connections = vec![
        first(&[zeros(1, 0, 10), batch(1, 1, true), list_end()]),
        joined(&[zeros(1, 600, 10), batch(1, 2, true)]),
    ];
    // The event `End` of the joined connection is its last batch as well.
    assert_eq!(stage(connections, 1).expect("good rounds"), [vec![true], vec![]]);
}

#[test]
fn page_whose_chunk_came_over_another_connection_is_refused() {
    for (pgoff, refused) in [(10, Some(10)), (511, Some(511)), (500, Some(500)), (512, None), (1999, None)] {
        let count = if pgoff == 500 { 20 } else { 1 };
        let connections = vec![
            first(&[zeros(1, 0, 1), batch(1, 1, true), list_end()]),
            joined(&[zeros(1, pgoff, count), batch(1, 1, true)]),
        ];
        let error = stage(connections, 1).err();
        match refused {
            None => assert!(error.is_none(), "{error:?}"),
            Some(page) => assert!(
                matches!(error, Some(Error::Protocol(ProtocolError::OtherConnection(found))) if found == page),
                "{error:?}"
            ),
        }
    }
}

#[test]
fn answers_that_break_the_rules_of_a_session_are_refused() {
    let unexpected = |got, want| ProtocolError::Unexpected { got, want };
    let good = || first(&[batch(1, 1, true), list_end()]);
    for (connections, expected) in [
        (
            vec![[hello_with(FEATURE_ROUNDS | FEATURE_STREAMS), batch(0, 1, false)].concat()],
            unexpected("BATCH", "SESSION or ERROR"),
        ),
        (
            vec![good(), [hello_with(FEATURE_STREAMS), session(TOKEN + 1, 3)].concat()],
            ProtocolError::Token("SESSION"),
        ),
        (
            vec![good(), [hello_with(FEATURE_STREAMS), list_end()].concat()],
            unexpected("REMAINDER", "SESSION or ERROR"),
        ),
        (
            vec![good(), joined(&[batch(1, 1, true), list_end()])],
            ProtocolError::RoundsOver("REMAINDER"),
        ),
        (
            vec![good(), joined(&[list_end()])],
            unexpected("REMAINDER", "PAGES, BATCH or ERROR"),
        ),
        (
            vec![good(), joined(&[batch(1, 1, true), zeros(2, 600, 1)])],
            ProtocolError::RoundsOver("PAGES"),
        ),
        (
            vec![good(), joined(&[batch(1, 1, true), batch(2, 1, false)])],
            ProtocolError::RoundsOver("BATCH"),
        ),
        (
            vec![good(), [hello_with(FEATURE_STREAMS | FEATURE_ROUNDS)].concat()],
            ProtocolError::Features(FEATURE_STREAMS | FEATURE_ROUNDS),
        ),
    ] {
        // Two questions: the joined connection waits for the second answer.
        let connections = match connections.len() {
            1 => connections,
            _ => {
                let mut connections = connections;
                connections[0] = first(&[batch(1, 1, true), list_end(), batch(2, 1, true)]);
                connections
            }
        };
        let count = connections.len().max(2);
        let result = match connections.len() {
            1 => connect(source(connections, channel().0), count).map(|_| Vec::new()),
            _ => stage(connections, 2),
        };
        assert_eq!(protocol_error(result), expected);
    }
}

/// A source that answers the later connections when all of them are there.
#[test]
fn connections_of_a_session_join_at_the_same_time() {
    const CONNECTIONS: usize = 6;
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    let hello = |number| match number {
        0 => hello_with(FEATURE_ROUNDS | FEATURE_STREAMS),
        _ => hello_with(FEATURE_STREAMS),
    };
    let all = Arc::new(Barrier::new(CONNECTIONS - 2));
    thread::spawn(move || {
        for number in 0..CONNECTIONS {
            let (mut socket, _) = listener.accept().expect("a connection");
            let bytes = [hello(number), session(TOKEN, CONNECTIONS)].concat();
            let all = Arc::clone(&all);
            thread::spawn(move || {
                if number > 1 {
                    all.wait();
                }
                let _ = socket.write_all(&bytes);
                let _ = socket.read_to_end(&mut Vec::new());
            });
        }
    });
    let endpoint = Endpoint::new(&address.to_string(), Security::Loopback, Duration::from_secs(20));
    assert_eq!(endpoint.connect_rounds(CONNECTIONS).expect("rounds").len(), CONNECTIONS);
}

#[test]
fn source_that_knows_no_sessions_or_takes_no_more_gets_fewer_connections() {
    let busy = frame(Type::Error, 0, &refusal::encode(ErrorCode::Busy, "enough"));
    let protocol = frame(Type::Error, 0, &refusal::encode(ErrorCode::Protocol, "no"));
    let old = hello_with(FEATURE_ROUNDS);
    let count = |connections: Vec<Vec<u8>>, streams| connect(source(connections, channel().0), streams).map(|peers| peers.len());
    assert_eq!(count(vec![old], 4).expect("rounds"), 1);
    let refuses = |error: &[u8]| [hello_with(FEATURE_STREAMS), error.to_vec()].concat();
    assert_eq!(count(vec![first(&[]), joined(&[]), refuses(&busy)], 4).expect("rounds"), 2);
    assert_eq!(count(vec![first(&[]), hello_with(0)], 4).expect("rounds"), 1);
    assert_eq!(
        count(vec![first(&[]), joined(&[]), joined(&[]), joined(&[])], 16).expect("rounds"),
        3,
        "as many as it says"
    );
    assert!(matches!(
        count(vec![first(&[]), refuses(&protocol)], 4),
        Err(Error::Refused {
            code: ErrorCode::Protocol,
            ..
        })
    ));
    // The source may count it, and then the rounds are lost with it.
    assert!(matches!(
        count(vec![first(&[]), hello_with(FEATURE_STREAMS)], 2),
        Err(Error::TimedOut { .. } | Error::Closed { .. })
    ));
}
