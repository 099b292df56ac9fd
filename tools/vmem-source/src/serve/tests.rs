// SPDX-License-Identifier: GPL-2.0-or-later
//! A server gives peers what they ask for, and nothing to those who do not ask properly; nobody makes it wait.

mod bandwidth;
mod compression;
mod hashes;
mod limit;
mod map;
mod release;
mod rounds;
mod session;
mod violation;

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
use crate::wire::frame::{self, HEADER_SIZE, Header, Type, encode};
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

#[test]
fn memory_is_released_when_the_server_and_the_last_connection_have_let_go_of_it() {
    use std::os::fd::AsFd;
    let file = memfd(PAGE_SIZE as u64, &[]);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    let (go, waits) = channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    // The thread of the connection ends when the test lets it.
    let report = move |event: Event<'_>| {
        if let Event::Ended { .. } = event {
            let _ = waits.lock().expect("no panic").recv_timeout(10 * TIMEOUT);
        }
    };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), vec![memory], LIMITS, None, report).expect("a server");
    let released = server.released();
    let address = server.local_addr().expect("its address");
    let stop = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(stop.as_fd()));
        let peer = Peer::connect(&address.to_string(), Lane::Stream, Duration::from_secs(10)).expect("a connection");
        rustix::io::write(&stop, &1_u64.to_ne_bytes()).expect("a signal");
        running.join().expect("no panic").expect("a run");
        drop(peer);
    });
    drop(server);
    assert!(!released.wait(Duration::from_millis(100)), "a connection has the memory");
    go.send(()).expect("it waits");
    assert!(released.wait(10 * TIMEOUT));
}

fn greeting() -> Vec<u8> {
    greeting_with(Lane::Stream, 0)
}

fn greeting_with(lane: Lane, features: u64) -> Vec<u8> {
    Greeting {
        version: Version::LATEST,
        lane,
        features,
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
        header.verify(payload, frame::Sum::Xxh3).expect("a good payload");
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
                other => panic!("{other:?}"),
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
                other => panic!("{other:?}"),
            }));
        }
    }
    found
}
