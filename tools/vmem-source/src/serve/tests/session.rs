// SPDX-License-Identifier: GPL-2.0-or-later
//! Rounds over several connections: each page over one of them, the list after all of them, and the loss of any loses the rounds.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use super::*;
use crate::export::ExportRanges;
use crate::peer::StagingPeer;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::greeting::{FEATURE_MAP, FEATURE_ROUNDS, FEATURE_STREAMS};
use crate::wire::map::encode_map;
use crate::wire::rounds::encode_next;
use crate::wire::session::{Token, decode_session, encode_join};

const PAGES: u64 = 8192;

/// Rounds that go over all pages of an export so many times, and then are over.
struct Sweeps {
    sweeps: u32,
    /// The most pages of a batch, which is not a part of a chunk.
    piece: u64,
    /// Round and first page of the next batch.
    at: Mutex<(u32, u64)>,
    /// How often the list was asked for, and how often the rounds were lost.
    lists: AtomicU64,
    lost: AtomicU64,
    /// Pages of the answers, and those of them without contents that have not changed.
    sent: AtomicU64,
    same: AtomicU64,
    /// The batches come to an end only when this says so.
    may_end: std::sync::atomic::AtomicBool,
}

impl Sweeps {
    fn new(sweeps: u32, piece: u64) -> Arc<Self> {
        Arc::new(Self {
            sweeps,
            piece,
            at: Mutex::new((1, 0)),
            lists: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            same: AtomicU64::new(0),
            may_end: true.into(),
        })
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }
}

impl Rounds for Sweeps {
    fn next(&self, max: u64) -> Result<Batch, RoundsError> {
        let may_end = self.may_end.load(Ordering::SeqCst);
        let mut at = self.at.lock().expect("no panic");
        let (round, first) = *at;
        if round > self.sweeps {
            let over = may_end;
            if !over {
                thread::sleep(Duration::from_millis(5));
            }
            return Ok(Batch {
                round,
                pages: None,
                over,
            });
        }
        let count = self.piece.min(max).min(PAGES - first);
        *at = match first + count {
            PAGES => (round + 1, 0),
            next => (round, next),
        };
        let (export, ranges) = (0, vec![range(first, count)]);
        let pages = Some(ExportRanges { export, ranges });
        Ok(Batch {
            round,
            pages,
            over: false,
        })
    }

    fn sent(&self, batch: &Batch, sent: &Sent) {
        let pages = batch.pages.as_ref().map_or(0, ExportRanges::pages);
        assert_eq!(pages, sent.data + sent.zero + sent.unreadable + sent.same);
        self.sent.fetch_add(pages, Ordering::SeqCst);
        self.same.fetch_add(sent.same, Ordering::SeqCst);
    }

    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        Ok(vec![ExportRanges {
            export: 0,
            ranges: vec![range(7, 2)],
        }])
    }

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn running_with(rounds: &Arc<Sweeps>, identity: Option<Identity>) -> Running {
    let file = memfd(PAGES * PAGE_SIZE as u64, &[1, 2, 600, 8191]);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    let rounds = Arc::clone(rounds);
    let limits = Limits {
        connections: 20,
        ..LIMITS
    };
    Running::protected(identity, vec![memory], limits, |server| server.with_rounds(rounds))
}

fn connect(running: &Running, streams: usize) -> Vec<StagingPeer> {
    let endpoint = Endpoint::new(&running.address.to_string(), Security::Loopback, Duration::from_secs(10));
    endpoint.connect_rounds(streams).expect("rounds")
}

/// What one connection has brought: for each page how often, and the list.
#[derive(Default)]
struct Brought {
    pages: HashMap<u64, u32>,
    remainder: Vec<PageRange>,
}

/// Stages until the rounds of the connection have ended.
fn stage(peer: &mut StagingPeer, max: u64) -> Result<Brought, Error> {
    let mut brought = Brought::default();
    let mut is_over = false;
    let mut outstanding = 0;
    loop {
        while !is_over && outstanding < 3 {
            peer.next(max)?;
            outstanding += 1;
        }
        match peer.next_event()? {
            StagingEvent::Pages(answer) => {
                for page in answer.contents().flat_map(|(range, _)| range.iter()) {
                    *brought.pages.entry(page.get()).or_default() += 1;
                }
            }
            StagingEvent::Batch { over, .. } => {
                is_over |= over;
                outstanding -= 1;
            }
            StagingEvent::Remainder(pages) => brought.remainder.extend(pages.ranges),
            StagingEvent::Holes(holes) => panic!("nobody has asked for {holes:?}"),
            StagingEvent::End => return Ok(brought),
        }
    }
}

fn sweep(streams: usize, identity: Option<Identity>) {
    let rounds = Sweeps::new(3, 100);
    let running = running_with(&rounds, identity.clone());
    let security = identity.map_or(Security::Loopback, Security::Tls);
    let endpoint = Endpoint::new(&running.address.to_string(), security, Duration::from_secs(10));
    let mut peers = endpoint.connect_rounds(streams).expect("rounds");
    assert_eq!(peers.len(), streams);
    let brought: Vec<Brought> = thread::scope(|scope| {
        let threads: Vec<_> = peers.iter_mut().map(|peer| scope.spawn(|| stage(peer, 64))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads
            .into_iter()
            .map(join)
            .collect::<Result<_, Error>>()
            .expect("good rounds")
    });
    for page in 0..PAGES {
        let times: Vec<u32> = brought.iter().filter_map(|one| one.pages.get(&page).copied()).collect();
        assert_eq!(times, [3], "page {page} over one connection, in each round");
    }
    assert_eq!(brought[0].remainder, [range(7, 2)]);
    assert!(brought[1..].iter().all(|one| one.remainder.is_empty()));
    assert_eq!(
        [&rounds.lists, &rounds.lost, &rounds.sent].map(Sweeps::get),
        [1, 0, 3 * PAGES],
        "{streams} connections"
    );
    // All of them are connections of the stream now.
    for peer in peers {
        let mut source = Box::new(peer).into_source();
        source.fetch(0, &[range(0, 3)]).expect("a question");
        assert_eq!(source.next_answer().expect("an answer").pages(), 3);
    }
    assert_eq!(Sweeps::get(&rounds.lost), 0);
}

#[test]
fn each_page_comes_over_one_connection_of_any_number() {
    for streams in [1, 2, 8, 16] {
        sweep(streams, None);
    }
}

#[test]
fn rounds_over_several_connections_with_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    sweep(4, Some(Identity::load(directory.path()).expect("an identity")));
}

fn join(token: Token) -> Vec<u8> {
    frame(Type::Join, 0, &encode_join(token))
}

fn next(tag: u32) -> Vec<u8> {
    frame(Type::Next, tag, &encode_next(10))
}

fn ended() -> Vec<u8> {
    frame(Type::Ended, 0, &[])
}

/// Reads one frame.
fn read(socket: &mut TcpStream) -> (Type, Vec<u8>) {
    let mut header = [0; HEADER_SIZE];
    socket.read_exact(&mut header).expect("a header");
    let header = Header::decode(&header).expect("a header");
    let mut payload = vec![0; header.length as usize];
    socket.read_exact(&mut payload).expect("a payload");
    (header.kind, payload)
}

fn map(tag: u32, first: u64, count: u64) -> Vec<u8> {
    frame(Type::Map, tag, &encode_map(0, range(first, count)))
}

/// A first connection that stays open, and the token that it was told.
fn begin(running: &Running, features: u64) -> (TcpStream, Token) {
    let mut socket = running.raw();
    socket
        .write_all(&greeting_with(Lane::Stream, FEATURE_ROUNDS | FEATURE_STREAMS | features))
        .expect("somebody who listens");
    socket.read_exact(&mut [0; greeting::SIZE]).expect("a greeting");
    assert_eq!(read(&mut socket).0, Type::Exports);
    let (kind, payload) = read(&mut socket);
    assert_eq!(kind, Type::Session);
    let session = decode_session(&payload).expect("a session");
    (socket, session.token)
}

fn complaint(frames: &[(Type, Vec<u8>)]) -> Option<(ErrorCode, String)> {
    let (kind, payload) = frames.last()?;
    (*kind == Type::Error).then(|| refusal::decode(payload).expect("a whole payload"))
}

#[test]
fn join_that_breaks_the_rules_is_refused() {
    let protocol = |error: ProtocolError| (ErrorCode::Protocol, error.to_string());
    let unexpected = |got, want| protocol(ProtocolError::Unexpected { got, want });
    let plain = "READ, RELEASE, GOODBYE or ERROR";
    let first = "NEXT, READ, RELEASE, GOODBYE or ERROR";
    let after = "a frame ENDED after the last BATCH of a joined connection";
    let over = || protocol(ProtocolError::RoundsOver("NEXT"));
    type Bytes = Box<dyn Fn(Token) -> Vec<Vec<u8>>>;
    let cases: Vec<(u64, Bytes, (ErrorCode, String), u64)> = vec![
        // A wrong token harms nobody.
        (
            FEATURE_STREAMS,
            Box::new(|_| vec![join(Token::from_bits(7))]),
            protocol(ProtocolError::Token("JOIN")),
            0,
        ),
        (0, Box::new(|token| vec![join(token)]), unexpected("JOIN", plain), 0),
        (0, Box::new(|_| vec![ended()]), unexpected("ENDED", plain), 0),
        (FEATURE_STREAMS, Box::new(|_| vec![next(1)]), over(), 0),
        (FEATURE_STREAMS, Box::new(|_| vec![ended()]), unexpected("ENDED", after), 0),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token)[..30].to_vec(), vec![0; 10]]),
            (ErrorCode::Protocol, String::new()),
            0,
        ),
        (
            FEATURE_STREAMS | FEATURE_MAP,
            Box::new(|_| vec![map(1, 0, 1)]),
            protocol(ProtocolError::TooEarly("MAP")),
            0,
        ),
        // Who has joined and then breaks a rule loses the rounds.
        (
            FEATURE_STREAMS | FEATURE_MAP,
            Box::new(|token| vec![join(token), map(1, 0, 1)]),
            protocol(ProtocolError::TooEarly("MAP")),
            1,
        ),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token), join(token)]),
            unexpected("JOIN", "NEXT, ENDED, GOODBYE or ERROR"),
            1,
        ),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token), ended()]),
            unexpected("ENDED", after),
            1,
        ),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token), next(1), next(2), ended(), next(3)]),
            over(),
            1,
        ),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token), next(1), ended(), ended()]),
            unexpected("ENDED", after),
            1,
        ),
        (
            FEATURE_STREAMS,
            Box::new(|token| vec![join(token), read_frame(0, 1)]),
            protocol(ProtocolError::TooEarly("READ")),
            1,
        ),
    ];
    for (number, (features, bytes, expected, lost)) in cases.into_iter().enumerate() {
        let rounds = Sweeps::new(0, 1);
        let running = running_with(&rounds, None);
        let (_first, token) = begin(&running, 0);
        let frames = converse(
            &running,
            &[vec![greeting_with(Lane::Stream, features)], bytes(token)].concat().concat(),
        );
        let found = complaint(&frames).expect("an error");
        if expected.1.is_empty() {
            assert_eq!(found.0, expected.0, "case {number}");
        } else {
            assert_eq!(found, expected, "case {number}");
        }
        running.next_ended();
        assert_eq!(Sweeps::get(&rounds.lost), lost, "case {number}");
        assert_eq!(Sweeps::get(&rounds.lists), 0);
    }
    let rounds = Sweeps::new(0, 1);
    let running = running_with(&rounds, None);
    let frames = converse(
        &running,
        &[greeting_with(Lane::Stream, FEATURE_ROUNDS | FEATURE_STREAMS), ended()].concat(),
    );
    assert_eq!(complaint(&frames), Some(unexpected("ENDED", first)));
}

#[test]
fn connection_that_comes_too_late_or_is_one_too_many_is_refused_as_busy() {
    let rounds = Sweeps::new(0, 1);
    let running = running_with(&rounds, None);
    let busy = |bytes: Vec<u8>| {
        let frames = converse(&running, &[greeting_with(Lane::Stream, FEATURE_STREAMS), bytes].concat());
        complaint(&frames).is_some_and(|(code, _)| code == ErrorCode::Busy)
    };
    assert!(busy(join(Token::from_bits(7))), "there is no session yet");
    let (_first, token) = begin(&running, 0);
    let mut kept = Vec::new();
    for _ in 1..16 {
        let mut socket = running.raw();
        let bytes = [greeting_with(Lane::Stream, FEATURE_STREAMS), join(token)].concat();
        socket.write_all(&bytes).expect("somebody who listens");
        // The greeting, the list of exports, and the SESSION.
        let mut all = vec![0; greeting::SIZE + HEADER_SIZE + 8 + 64 + HEADER_SIZE + 24];
        socket.read_exact(&mut all).expect("a SESSION");
        kept.push(socket);
    }
    assert!(busy(join(token)), "a seventeenth connection");
    assert_eq!(Sweeps::get(&rounds.lost), 0);
    // Now the rounds are over.
    kept[0].write_all(&next(1)).expect("somebody who listens");
    kept[0].read_exact(&mut [0; HEADER_SIZE + 16]).expect("a BATCH");
    assert!(busy(join(token)));
    assert_eq!(Sweeps::get(&rounds.lost), 0);
}

/// A hole that is staged after a page over another connection could be the page's older contents.
#[test]
fn map_after_a_question_for_pages_over_any_connection_is_refused() {
    let rounds = Sweeps::new(0, 1);
    rounds.may_end.store(false, Ordering::SeqCst);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 2);
    peers[0].map(0, range(0, 5)).expect("a question");
    assert!(matches!(peers[0].next_event(), Ok(StagingEvent::Holes(_))));
    peers[1].next(10).expect("a question");
    assert!(matches!(peers[1].next_event(), Ok(StagingEvent::Batch { over: false, .. })));
    let refused = peers[0].map(0, range(5, 5)).expect_err("too late");
    assert!(matches!(refused, Error::InvalidFetch(_)), "{refused}");
    // A destination that does not see to it itself.
    let running = running_with(&rounds, None);
    let (mut first, token) = begin(&running, FEATURE_MAP);
    first.write_all(&map(1, 0, 5)).expect("somebody who listens");
    assert_eq!(read(&mut first).0, Type::Holes);
    let mut second = running.raw();
    let bytes = [greeting_with(Lane::Stream, FEATURE_STREAMS), join(token), next(1)].concat();
    second.write_all(&bytes).expect("somebody who listens");
    second.read_exact(&mut [0; greeting::SIZE]).expect("a greeting");
    let kinds = [(); 3].map(|()| read(&mut second).0);
    assert_eq!(kinds, [Type::Exports, Type::Session, Type::Batch]);
    first.write_all(&map(2, 5, 5)).expect("somebody who listens");
    let late = (ErrorCode::Protocol, ProtocolError::LateMap.to_string());
    assert_eq!(complaint(&[read(&mut first)]), Some(late));
}

/// A page comes as the same on its connection from its third sending on, and a READ never does.
#[test]
fn pages_that_have_not_changed_come_as_the_same_over_several_connections() {
    let rounds = Sweeps::new(4, 100);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 3);
    thread::scope(|scope| {
        let others: Vec<_> = peers.drain(1..).collect();
        let others = others
            .into_iter()
            .map(|mut peer| scope.spawn(move || stage(&mut peer, 64).map(|_| peer)));
        let others: Vec<_> = others.collect();
        stage(&mut peers[0], 64).expect("a good end");
        let others = others
            .into_iter()
            .map(|other| other.join().expect("a thread").expect("a good end"));
        let sources = others.chain(peers.drain(..)).map(|peer| Box::new(peer).into_source());
        for mut source in sources {
            for _ in 0..3 {
                source.fetch(0, &[range(1, 2)]).expect("a question");
                let answer = source.next_answer().expect("an answer");
                assert!(answer.contents().all(|(_, contents)| matches!(contents, Contents::Data(_))));
            }
        }
    });
    // Four pages have contents, and each is sent four times.
    assert_eq!(Sweeps::get(&rounds.same), 8);
}

/// The list waits for the word of each connection that all of its pages have arrived, and no longer.
#[test]
fn list_is_sent_when_every_joined_connection_has_ended() {
    let rounds = Sweeps::new(1, 600);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 3);
    let (mut second, mut third) = (peers.remove(1), peers.remove(1));
    let (said, says): (Sender<()>, _) = channel();
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let brought = stage(&mut peers[0], 4096);
            said.send(()).expect("it listens");
            brought
        });
        stage(&mut second, 4096).expect("its rounds");
        // The third one takes nothing for a while. The first is told that the rounds go on.
        assert!(says.recv_timeout(Duration::from_millis(1500)).is_err());
        assert_eq!(Sweeps::get(&rounds.lists), 0);
        let began = Instant::now();
        stage(&mut third, 4096).expect("its rounds");
        says.recv_timeout(Duration::from_secs(10)).expect("the list");
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        first.join().expect("no panic").expect("its rounds");
    });
    assert_eq!((Sweeps::get(&rounds.lists), Sweeps::get(&rounds.lost)), (1, 0));
}

/// At which step a connection is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Before it has asked for anything.
    Begin,
    /// In the middle of the rounds.
    Middle,
    /// When it has ended its rounds, and the list is not sent.
    End,
}

#[test]
fn loss_of_any_connection_at_any_step_before_the_list_loses_the_rounds() {
    for at in [At::Begin, At::Middle, At::End] {
        for lost in 0..3 {
            if at == At::End && lost == 0 {
                // It ends with the list.
                continue;
            }
            let rounds = Sweeps::new(2, 100);
            rounds.may_end.store(at == At::End, Ordering::SeqCst);
            let running = running_with(&rounds, None);
            let mut peers = connect(&running, 3);
            let mut gone = peers.remove(lost);
            let mut others = peers;
            if at == At::End {
                // None of the others asks: the list cannot be sent.
                let keeps = others.pop().expect("two");
                thread::scope(|scope| {
                    let ends = scope.spawn(|| stage(&mut gone, 4096).map(drop));
                    thread::sleep(Duration::from_millis(100));
                    drop(keeps);
                    // It may have ended before.
                    let _ = ends.join().expect("no panic");
                });
                assert_eq!(wait_lost(&rounds), 1, "{at:?} {lost}");
                continue;
            }
            let results: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = others
                    .iter_mut()
                    .map(|peer| scope.spawn(|| stage(peer, 100).map(drop)))
                    .collect();
                if at == At::Middle {
                    for _ in 0..3 {
                        gone.next(10).expect("a question");
                        while !matches!(gone.next_event().expect("an event"), StagingEvent::Batch { .. }) {}
                    }
                }
                drop(gone);
                let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
                threads.into_iter().map(join).collect()
            });
            for result in results {
                let error: Error = result.expect_err("the rounds are lost");
                assert!(!error.is_transient(), "{error}");
            }
            assert_eq!(wait_lost(&rounds), 1, "{at:?} {lost}");
            assert_eq!(Sweeps::get(&rounds.lists), 0);
            let frames = converse(&running, &[greeting(), read_frame(1, 1)].concat());
            assert!(complaint(&frames).is_some_and(|(_, text)| text == ProtocolError::TooEarly("READ").to_string()));
        }
    }
}

/// A joined connection has ended its rounds, and is lost before the list is sent.
#[test]
fn loss_of_a_connection_that_has_ended_loses_the_rounds_until_the_list_is_sent() {
    let rounds = Sweeps::new(1, 600);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 2);
    let mut second = peers.pop().expect("two");
    let (mut first, ended) = (peers.pop().expect("one"), &rounds);
    // The pages of the first connection wait for its question.
    let drained = stage(&mut second, 4096).map(drop);
    drained.expect("its rounds");
    drop(second);
    assert_eq!(wait_lost(ended), 1);
    assert!(stage(&mut first, 4096).is_err());
    assert_eq!(Sweeps::get(&rounds.lists), 0);

    let rounds = Sweeps::new(1, 600);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 2);
    thread::scope(|scope| {
        let threads: Vec<_> = peers
            .iter_mut()
            .map(|peer| scope.spawn(|| stage(peer, 4096).map(drop)))
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().expect("no panic").expect("good rounds"));
    });
    drop(peers.pop());
    running.next_ended();
    assert_eq!(Sweeps::get(&rounds.lost), 0, "after the list it is a connection like others");
    let mut source = Box::new(peers.pop().expect("one")).into_source();
    source.fetch(0, &[range(0, 3)]).expect("a question");
    assert_eq!(source.next_answer().expect("an answer").pages(), 3);
}

fn wait_lost(rounds: &Sweeps) -> u64 {
    let until = Instant::now() + Duration::from_secs(10);
    while Sweeps::get(&rounds.lost) == 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    // A second call would come soon.
    thread::sleep(Duration::from_millis(20));
    Sweeps::get(&rounds.lost)
}

/// What waits for a connection that does not ask is bounded, and the others are told that the rounds go on.
#[test]
fn connection_that_does_not_ask_holds_the_others_up_only_when_much_waits_for_it() {
    let rounds = Sweeps::new(50, 100);
    let running = running_with(&rounds, None);
    let mut peers = connect(&running, 2);
    let mut slow = peers.pop().expect("two");
    slow.next(100).expect("a question");
    while !matches!(slow.next_event().expect("an event"), StagingEvent::Batch { .. }) {}
    let mut fast = peers.pop().expect("one");
    let mut pages = 0;
    let mut empty = false;
    while !empty {
        fast.next(4096).expect("a question");
        empty = true;
        while let StagingEvent::Pages(answer) = fast.next_event().expect("an event") {
            pages += answer.pages();
            empty = false;
        }
    }
    assert!(pages > PAGES / 2, "it went on for a while: {pages}");
    let (round, _) = *rounds.at.lock().expect("no panic");
    assert!(round < 40, "and not to the end: round {round}");
}
