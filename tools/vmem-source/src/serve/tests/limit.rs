// SPDX-License-Identifier: GPL-2.0-or-later
//! Limits of time and of connections: neither a slow peer nor many peers keep the others from their pages.

use super::*;

#[test]
fn stalled_peer_is_closed_at_the_time_limit() {
    let running = small();
    let since = Instant::now();
    // One connection sends nothing, one stops in its greeting, one in a frame. None is closed by its peer.
    let stalled: Vec<_> = [0, 10, greeting::SIZE + 30]
        .map(|end| {
            let mut socket = running.raw();
            socket
                .write_all(&[greeting(), read_frame(1, 2)].concat()[..end])
                .expect("somebody who listens");
            socket
        })
        .into();
    let mut peer = running.peer().expect("others are served meanwhile");
    peer.fetch(0, &[PageRange::from_pgoff(1, 1).expect("a range")])
        .expect("a question");
    assert_eq!(peer.next_answer().expect("an answer").pages(), 1);
    let mut errors: Vec<_> = stalled.iter().map(|_| running.next_ended().1.expect("an error")).collect();
    errors.sort_unstable();
    let expected = ["send a whole frame", "send its greeting", "send its greeting"];
    let limit = TIMEOUT.as_secs_f32();
    assert_eq!(
        errors,
        expected.map(|action| format!("the peer did not {action} within {limit} s"))
    );
    assert!(since.elapsed() < 10 * TIMEOUT, "{:?}", since.elapsed());
    peer.fetch(0, &[PageRange::from_pgoff(2, 1).expect("a range")])
        .expect("to be silent between questions is no offence");
    assert_eq!(peer.next_answer().expect("an answer").pages(), 1);
}

#[test]
fn peer_that_does_not_read_its_pages_is_closed_at_the_time_limit() {
    let pages: Vec<u64> = (0..4096).collect();
    let memory = Memory::open(&spec("ram", &memfd(4096 * PAGE_SIZE as u64, &pages))).expect("memory");
    let running = Running::new(vec![memory], LIMITS);
    let mut socket = running.raw();
    socket.write_all(&greeting()).expect("somebody who listens");
    for _ in 0..4 {
        // 64 MiB are more than any socket buffer takes.
        socket.write_all(&read_frame(0, 4096)).expect("somebody who listens");
    }
    let expected = format!("the peer did not take pages within {} s", TIMEOUT.as_secs_f32());
    assert_eq!(running.next_ended().1, Some(expected));
}

#[test]
fn connection_beyond_the_limit_is_refused_as_busy() {
    let running = small();
    let mut peers: Vec<_> = (0..LIMITS.connections).map(|_| running.peer().expect("a peer")).collect();
    match running.peer().map(|_| ()) {
        Err(error) => assert!(error.is_transient(), "a daemon tries again: {error}"),
        Ok(()) => panic!("one too many"),
    }
    peers.pop();
    running.next_ended();
    assert!(running.peer().is_ok(), "there is room again");
}

/// One that has sent more than its greeting before it is refused is told all the same: the connection ends in order. A reset could take the
/// reason from it on a network.
#[test]
fn refused_peer_that_keeps_sending_receives_the_error() {
    let running = small();
    let _peers: Vec<_> = (0..LIMITS.connections).map(|_| running.peer().expect("a peer")).collect();
    let questions = (0..50).flat_map(|_| read_frame(1, 2));
    let words: Vec<u8> = greeting().into_iter().chain(questions).collect();
    for _ in 0..20 {
        let mut socket = running.raw();
        socket.write_all(&words).expect("room");
        socket.shutdown(Shutdown::Write).expect("a socket");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an end, and no reset");
        let (header, payload) = answer[greeting::SIZE..].split_first_chunk::<HEADER_SIZE>().expect("a frame");
        assert_eq!(Header::decode(header).expect("a good header").kind, Type::Error);
        assert_eq!(refusal::decode(payload).expect("a whole payload").0, ErrorCode::Busy);
    }
}

/// What strangers do to a destination that has lost its connection: nothing.
#[test]
fn silent_connections_do_not_block_a_destination() {
    keeps_strangers_apart(None);
}

/// As before; what they do not do is to show a certificate.
#[test]
fn silent_connections_do_not_block_a_destination_with_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    keeps_strangers_apart(Some(Identity::load(directory.path()).expect("an identity")));
}

fn keeps_strangers_apart(identity: Option<Identity>) {
    let limits = Limits {
        connections: 4,
        timeout: Duration::from_secs(20),
    };
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2]);
    let memories = vec![Memory::open(&spec("ram", &file)).expect("memory")];
    let running = Running::protected(identity.clone(), memories, limits, |server| server);
    let security = identity.map_or(Security::Loopback, Security::Tls);
    let endpoint = Endpoint::new(&running.address.to_string(), security, Duration::from_secs(10));
    let peer = || endpoint.connect(Lane::Stream).expect("a peer");
    let mut known = peer();
    let strangers: Vec<_> = (0..5 * slots::MAX_HANDSHAKES).map(|_| running.raw()).collect();
    let since = Instant::now();
    let mut peers: Vec<_> = (1..limits.connections).map(|_| peer()).collect();
    assert!(since.elapsed() < Duration::from_secs(5), "it waits for strangers");
    for peer in peers.iter_mut().chain([&mut known]) {
        assert_eq!(fetch(peer, 1, 2), [Some(2), Some(3)]);
    }
    // The oldest have been closed, and the others are still there.
    let is_closed = |mut socket: &TcpStream| {
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
        !matches!(socket.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    };
    assert!(is_closed(&strangers[0]));
    assert!(!is_closed(&strangers[strangers.len() - 1]));
}
