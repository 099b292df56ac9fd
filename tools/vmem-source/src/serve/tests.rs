// SPDX-License-Identifier: GPL-2.0
//! A server gives peers what they ask for, and nothing to those who do not ask properly; nobody makes it wait.

mod rounds;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use vmem::PAGE_SIZE;
use vmem_tls::Identity;

use super::*;
use crate::answer::Contents;
use crate::endpoint::{Endpoint, Security};
use crate::memory::tests::{memfd, spec};
use crate::peer::Peer;
use crate::source::PageSource;
use crate::wire::frame::{HEADER_SIZE, Header, Type, encode};
use crate::wire::greeting::{self, Greeting};
use crate::wire::version::Version;
use crate::wire::{ErrorCode, ProtocolError, previous, ranges, refusal};

const TIMEOUT: Duration = Duration::from_secs(1);
const LIMITS: Limits = Limits {
    connections: 4,
    timeout: TIMEOUT,
};

/// The texts of an error and of its sources.
fn chain(error: &Error) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// A server that runs until it is dropped, and what it said about ended connections.
struct Running {
    server: Arc<Server>,
    address: SocketAddr,
    stop: Arc<std::os::fd::OwnedFd>,
    ended: Receiver<(Served, Option<String>)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn new(memories: Vec<Memory>, limits: Limits) -> Self {
        Self::with(memories, limits, |server| server)
    }

    fn with(memories: Vec<Memory>, limits: Limits, change: impl FnOnce(Server) -> Server) -> Self {
        Self::protected(None, memories, limits, change)
    }

    fn protected(
        identity: Option<Identity>,
        memories: Vec<Memory>,
        limits: Limits,
        change: impl FnOnce(Server) -> Server,
    ) -> Self {
        use std::os::fd::AsFd;
        let (sender, ended) = channel();
        let report = move |event: Event<'_>| {
            if let Event::Ended { served, error, .. } = event {
                let _ = sender.send((served, error.map(chain)));
            }
        };
        let server = Server::bind(([127, 0, 0, 1], 0).into(), memories, limits, identity, report);
        let server = Arc::new(change(server.expect("a server")));
        let address = server.local_addr().expect("its address");
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let (stopped, running) = (Arc::clone(&stop), Arc::clone(&server));
        let thread = Some(thread::spawn(move || running.run(stopped.as_fd()).expect("a run")));
        Self {
            server,
            address,
            stop,
            ended,
            thread,
        }
    }

    fn peer(&self) -> Result<Peer, Error> {
        Peer::connect(&self.address.to_string(), Lane::Stream, Duration::from_secs(10))
    }

    fn raw(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).expect("a connection");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        socket
    }

    /// How the next connection to end did so.
    fn next_ended(&self) -> (Served, Option<String>) {
        self.ended
            .recv_timeout(Duration::from_secs(10))
            .expect("a connection that ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("a signal");
        self.thread
            .take()
            .map(thread::JoinHandle::join)
            .transpose()
            .expect("a thread that ended well");
    }
}

/// A server with one export of ten pages, of which 1 and 2 have contents.
fn small() -> Running {
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2]);
    Running::new(vec![Memory::open(&spec("ram", &file)).expect("memory")], LIMITS)
}

fn greeting() -> Vec<u8> {
    Greeting {
        version: Version::LATEST,
        lane: Lane::Stream,
        features: 0,
    }
    .encode()
    .to_vec()
}

fn frame(kind: Type, tag: u32, payload: &[u8]) -> Vec<u8> {
    [&encode(kind, tag, &[payload])[..], payload].concat()
}

fn read_frame(first: u64, count: u64) -> Vec<u8> {
    frame(
        Type::Read,
        1,
        &ranges::encode(0, &[PageRange::from_pgoff(first, count).expect("a range")]),
    )
}

/// Sends bytes and nothing more, and returns the frames that come back. The greeting, if one comes, is left out.
fn converse(running: &Running, bytes: &[u8]) -> Vec<(Type, Vec<u8>)> {
    let mut socket = running.raw();
    // The server may have heard enough before the end.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // A connection that was reset has given what there is.
    let _ = socket.read_to_end(&mut answer);
    let mut frames = Vec::new();
    let mut rest = answer.get(greeting::SIZE..).unwrap_or_default();
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let header = Header::decode(header).expect("a good header");
        let (payload, after) = after.split_at(header.length as usize);
        header.verify(payload).expect("a good payload");
        frames.push((header.kind, payload.to_vec()));
        rest = after;
    }
    frames
}

#[test]
fn peers_read_the_memory_as_it_is() {
    let pages: Vec<u64> = (100..400).chain([600, 1000]).collect();
    let (large, small) = (memfd(1024 * PAGE_SIZE as u64, &pages), memfd(5000, &[0]));
    let memories = [spec("large", &large), spec("small", &small)].map(|spec| Memory::open(&spec).expect("memory"));
    let running = Running::new(memories.into(), LIMITS);
    let mut peer = running.peer().expect("a peer");
    let exports: Vec<_> = peer
        .exports()
        .iter()
        .map(|export| (export.name.to_string(), export.pages.count()))
        .collect();
    assert_eq!(exports, [("large".to_owned(), 1024), ("small".to_owned(), 2)]);

    // All questions at once, and more than one range in one of them.
    peer.fetch(
        0,
        &[
            PageRange::from_pgoff(0, 512).expect("a range"),
            PageRange::from_pgoff(512, 512).expect("a range"),
        ],
    )
    .expect("a question");
    peer.fetch(1, &[PageRange::from_pgoff(0, 2).expect("a range")])
        .expect("a question");
    peer.fetch(0, &[PageRange::from_pgoff(1000, 1).expect("a range")])
        .expect("a question");
    let mut found = Vec::new();
    let mut missing = 1024 + 2 + 1;
    while missing > 0 {
        let answer = peer.next_answer().expect("an answer");
        missing -= answer.pages();
        for (range, contents) in answer.contents() {
            match contents {
                Contents::Zero => found.extend(range.iter().map(|page| (answer.export(), page.get(), 0))),
                Contents::Data(data) => {
                    let bytes = data.chunks(PAGE_SIZE).map(|page| page[0]);
                    found.extend(
                        range
                            .iter()
                            .zip(bytes)
                            .map(|(page, byte)| (answer.export(), page.get(), byte)),
                    );
                }
                Contents::Unreadable => panic!("{range} is unreadable"),
            }
        }
    }
    let byte = |page: u64| if pages.contains(&page) { (page % 255) as u8 + 1 } else { 0 };
    let expected: Vec<_> = (0..1024)
        .map(|page| (0, page, byte(page)))
        .chain([(1, 0, 1), (1, 1, 0), (0, 1000, byte(1000))])
        .collect();
    assert_eq!(found, expected);
    drop(peer);
    let (served, error) = running.next_ended();
    assert_eq!(error, None, "an orderly goodbye");
    assert_eq!((served.data, served.zero, served.unreadable), (302 + 1 + 1, 722 + 1, 0));
}

#[test]
fn damaged_read_is_answered_by_an_error() {
    let running = small();
    let good = [greeting(), read_frame(1, 2)].concat();
    assert_eq!(converse(&running, &good).last().expect("an answer").0, Type::Pages);
    for bit in 0..good.len() * 8 {
        let mut damaged = good.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let frames = converse(&running, &damaged);
        assert!(frames.iter().all(|(kind, _)| *kind != Type::Pages), "bit {bit}: {frames:?}");
        if bit / 8 >= 8 {
            assert_eq!(
                frames.last().map(|(kind, _)| *kind),
                Some(Type::Error),
                "bit {bit}: no reason was given"
            );
        }
    }
    assert_eq!(
        converse(&running, &good).last().expect("an answer").0,
        Type::Pages,
        "and the server goes on"
    );
}

#[test]
fn truncated_read_closes_the_connection() {
    let running = small();
    let good = [greeting(), read_frame(1, 2)].concat();
    for end in 0..good.len() {
        let frames = converse(&running, &good[..end]);
        assert!(
            frames.iter().all(|(kind, _)| *kind == Type::Exports),
            "up to {end}: {frames:?}"
        );
        let (served, error) = running.next_ended();
        assert_eq!(served, Served::default());
        let within = end != 0 && end != greeting::SIZE;
        let error = error.expect("no goodbye was said");
        assert_eq!(error.contains("in the middle of a frame"), within, "up to {end}: {error}");
    }
}

#[test]
fn violation_of_the_protocol_is_answered_by_an_error_that_says_why() {
    let running = small();
    let outside = ProtocolError::Outside { pgoff: 9, nr_pages: 2 };
    let unexpected = ProtocolError::Unexpected {
        got: "PAGES",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    let no_export = frame(
        Type::Read,
        1,
        &ranges::encode(7, &[PageRange::from_pgoff(0, 1).expect("a range")]),
    );
    let mut version = greeting();
    version[8] ^= 0x80;
    for (bytes, error) in [
        ([greeting(), read_frame(9, 2)].concat(), outside),
        ([greeting(), frame(Type::Pages, 0, &[0; 8])].concat(), unexpected),
        ([greeting(), no_export].concat(), ProtocolError::NoExport(7)),
        (version, ProtocolError::Version(Version::LATEST.number() ^ 0x80)),
    ] {
        let frames = converse(&running, &bytes);
        let (kind, payload) = frames.last().expect("an answer");
        assert_eq!(*kind, Type::Error);
        let said = refusal::decode(payload).expect("a whole payload");
        assert_eq!(said, (ErrorCode::Protocol, error.to_string()));
        assert_eq!(
            running.next_ended().1,
            Some(format!("the peer violated the page protocol: {error}"))
        );
    }
}

#[test]
fn destination_of_the_previous_version_is_served_in_that_version() {
    let running = small();
    let mut socket = running.raw();
    socket.write_all(&previous::GREETING).expect("somebody who listens");
    let mut answer = [0; previous::GREETING.len() + previous::EXPORTS.len()];
    socket.read_exact(&mut answer).expect("a greeting and a list");
    let (greeting, frame) = answer.split_at(previous::GREETING.len());
    assert_eq!(greeting, previous::GREETING);
    // All but the identity, and what hangs on it: two checksums.
    assert_eq!(frame[..12], previous::EXPORTS[..12]);
    assert_eq!(frame[24..44], previous::EXPORTS[24..44]);
    assert_eq!(frame[48..], previous::EXPORTS[48..]);
}

#[test]
fn error_frame_of_a_peer_is_reported() {
    let running = small();
    let complaint = frame(
        Type::Error,
        0,
        &refusal::encode(ErrorCode::Protocol, "pages that nobody wants"),
    );
    assert_eq!(
        converse(&running, &[greeting(), complaint].concat()).len(),
        1,
        "nothing but EXPORTS"
    );
    assert_eq!(
        running.next_ended().1.as_deref(),
        Some("the peer refused: pages that nobody wants (protocol error)")
    );
}

#[test]
fn peer_of_another_protocol_gets_no_answer() {
    let running = small();
    let mut socket = running.raw();
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("somebody who listens");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let (_, error) = running.next_ended();
    assert!(
        error.is_some_and(|error| error.contains("GET / HT")),
        "the log says what it was"
    );
}

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

#[test]
fn bind_refuses_no_exports_and_duplicate_names() {
    let file = memfd(4096, &[0]);
    let memory = || Memory::open(&spec("ram", &file)).expect("memory");
    let bind = |memories| Server::bind(([127, 0, 0, 1], 0).into(), memories, LIMITS, None, |_| ()).map(|_| ());
    assert!(matches!(bind(vec![]), Err(Error::ExportCount(0))));
    assert!(matches!(bind(vec![memory(), memory()]), Err(Error::DuplicateName(_))));
    assert!(bind(vec![memory()]).is_ok());
}

/// Asks for pages, and returns what becomes of each.
fn fetch(peer: &mut Peer, first: u64, count: u64) -> Vec<Option<u8>> {
    peer.fetch(0, &[PageRange::from_pgoff(first, count).expect("a range")])
        .expect("a question");
    let mut found = Vec::new();
    while found.len() < count as usize {
        let answer = peer.next_answer().expect("an answer");
        for (range, contents) in answer.contents() {
            let pages = 0..range.count() as usize;
            found.extend(pages.map(|page| match contents {
                Contents::Data(data) => Some(data[page * PAGE_SIZE]),
                Contents::Zero => Some(0),
                Contents::Unreadable => None,
            }));
        }
    }
    found
}

#[test]
fn released_pages_are_freed_and_unreadable_from_then_on() {
    let records = tempfile::tempdir().expect("a directory");
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2, 5]);
    let memory = || {
        // The last thread of an earlier server may not have let go yet.
        let until = Instant::now() + TIMEOUT;
        loop {
            match Memory::open_releasable(&spec("ram", &file), records.path()) {
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(10)),
                Ok(memory) => return vec![memory],
            }
        }
    };
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        file.metadata().expect("metadata").blocks() * 512 / PAGE_SIZE as u64
    };
    assert_eq!(blocks(), 3);
    let server = Running::new(memory(), LIMITS);
    let mut peer = server.peer().expect("a peer");
    assert_eq!(fetch(&mut peer, 0, 4), [Some(0), Some(2), Some(3), Some(0)]);
    peer.release(
        0,
        &[
            PageRange::from_pgoff(0, 2).expect("a range"),
            PageRange::from_pgoff(3, 1).expect("a range"),
        ],
    )
    .expect("a release");
    let after = [None, None, Some(3), None, Some(0), Some(6)];
    assert_eq!(fetch(&mut peer, 0, 6), after);
    assert_eq!(blocks(), 2);
    drop(peer);
    assert_eq!(server.next_ended().0.released, 3);
    drop(server);
    // The next server knows it as well: a hole is not taken for a page of zeros.
    let server = Running::new(memory(), LIMITS);
    let mut peer = server.peer().expect("a peer");
    assert_eq!(fetch(&mut peer, 0, 6), after);
}

#[test]
fn memory_opened_without_a_record_is_never_released() {
    let server = small();
    let mut peer = server.peer().expect("a peer");
    peer.release(0, &[PageRange::from_pgoff(0, 10).expect("a range")])
        .expect("nothing");
    assert_eq!(fetch(&mut peer, 0, 3), [Some(0), Some(2), Some(3)]);
    // Not even if a peer says so that was not asked to.
    let release = frame(
        Type::Release,
        0,
        &ranges::encode(0, &[PageRange::from_pgoff(0, 10).expect("a range")]),
    );
    let mut raw = server.raw();
    raw.write_all(&[greeting(), release].concat()).expect("a write");
    drop(raw);
    let mut peer = server.peer().expect("a peer");
    assert_eq!(fetch(&mut peer, 0, 3), [Some(0), Some(2), Some(3)]);
}

#[test]
fn releases_are_deferred_until_allowed_and_then_all_executed() {
    let records = tempfile::tempdir().expect("a directory");
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2, 5]);
    let memory = Memory::open_releasable(&spec("ram", &file), records.path()).expect("memory");
    let server = Running::with(vec![memory], LIMITS, Server::hold_release);
    let mut peer = server.peer().expect("a peer");
    peer.release(0, &[PageRange::from_pgoff(0, 2).expect("a range")])
        .expect("a release");
    assert_eq!(fetch(&mut peer, 0, 3), [Some(0), Some(2), Some(3)], "they are still here");
    server.server.allow_release();
    assert_eq!(fetch(&mut peer, 0, 3), [None, None, Some(3)]);
    peer.release(0, &[PageRange::from_pgoff(2, 1).expect("a range")])
        .expect("a release");
    assert_eq!(fetch(&mut peer, 0, 3), [None, None, None]);
    assert_eq!(server.server.totals().released.load(Ordering::Relaxed), 3);
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

/// One frame of a peer that means harm: it names every page of a large memory a thousand times.
#[test]
fn release_with_too_many_or_overlapping_pages_is_refused() {
    const PAGES: u64 = 1 << 28;
    let records = tempfile::tempdir().expect("a directory");
    let file = memfd(PAGES * PAGE_SIZE as u64, &[1, 2]);
    let memory = Memory::open_releasable(&spec("ram", &file), records.path()).expect("memory");
    let server = Running::with(vec![memory], LIMITS, Server::hold_release);
    let release = |ranges: &[(u64, u64)]| {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(first, count)| PageRange::from_pgoff(*first, *count).expect("a range"))
            .collect();
        let frames = converse(
            &server,
            &[greeting(), frame(Type::Release, 0, &ranges::encode(0, &ranges))].concat(),
        );
        let error = frames.last().filter(|(kind, _)| *kind == Type::Error);
        error.map(|(_, payload)| refusal::decode(payload).expect("a whole payload").1)
    };
    let since = Instant::now();
    let all = ProtocolError::TooMuch(PAGES).to_string();
    assert_eq!(release(&vec![(0, PAGES); 1024]), Some(all));
    assert_eq!(
        release(&[(7, 10), (100, 3), (0, 8)]),
        Some(ProtocolError::Overlap(7).to_string())
    );
    assert_eq!(
        release(&[(17, 10), (8, 9), (MAX_RELEASE_PAGES, MAX_RELEASE_PAGES - 19)]),
        None
    );
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    server.server.allow_release();
    let mut peer = server.peer().expect("a peer");
    assert_eq!(fetch(&mut peer, 7, 2), [Some(0), None]);
}
