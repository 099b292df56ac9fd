// SPDX-License-Identifier: GPL-2.0
//! A destination stages what the rounds choose; none reads contents that may still change, and the rounds learn when it is lost.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::*;
use crate::export::ExportRanges;
use crate::peer::StagingPeer;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::rounds::{BatchEnd, decode_batch, encode_next};

type Step = Box<dyn FnOnce() -> Result<Batch, RoundsError> + Send>;

/// Rounds that do what a test says.
#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<u64>>,
    remainder: Mutex<VecDeque<Remainder>>,
    sent: Mutex<Vec<(Batch, Sent)>>,
    lost: AtomicU64,
}

type Remainder = Box<dyn FnOnce() -> Result<Vec<ExportRanges>, RoundsError> + Send>;

impl Rounds for Script {
    fn next(&self, max: u64) -> Result<Batch, RoundsError> {
        self.asked.lock().expect("no panic").push(max);
        let step = self.steps.lock().expect("no panic").pop_front();
        step.unwrap_or_else(|| Box::new(|| Err(RoundsError::new("cannot go on: the script has ended"))))()
    }

    fn sent(&self, batch: &Batch, sent: &Sent) {
        assert_ne!(batch.round, 99, "a panic on purpose");
        self.sent.lock().expect("no panic").push((batch.clone(), *sent));
    }

    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
        let remainder = self.remainder.lock().expect("no panic").pop_front();
        remainder.expect("asked for once")()
    }

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }
}

impl Script {
    fn new(steps: Vec<Step>, remainder: Remainder) -> Arc<Self> {
        Arc::new(Self {
            steps: Mutex::new(steps.into()),
            remainder: Mutex::new([remainder].into()),
            ..Self::default()
        })
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Waits until the rounds are lost.
    fn wait_lost(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.lost() == 0 {
            assert!(Instant::now() < until, "the rounds do not learn that they are lost");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn pages(export: usize, ranges: &[(u64, u64)]) -> ExportRanges {
    let ranges = ranges.iter().map(|(first, count)| range(*first, *count)).collect();
    ExportRanges { export, ranges }
}

fn chosen(round: u32, export: usize, ranges: &[(u64, u64)]) -> Batch {
    Batch {
        round,
        pages: Some(pages(export, ranges)),
        over: false,
    }
}

fn empty(round: u32, over: bool) -> Batch {
    let pages = None;
    Batch { round, pages, over }
}

fn step(batch: Batch) -> Step {
    Box::new(|| Ok(batch))
}

fn list(remainder: Vec<ExportRanges>) -> Remainder {
    Box::new(|| Ok(remainder))
}

/// A server with these rounds and one export of ten pages, of which 1 and 2 have contents.
fn small_with(rounds: &Arc<Script>) -> Running {
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2]);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    let rounds = Arc::clone(rounds);
    Running::with(vec![memory], LIMITS, |server| server.with_rounds(rounds))
}

fn staging_peer(running: &Running) -> Result<StagingPeer, Error> {
    let address = running.address.to_string();
    Endpoint::new(&address, Security::Loopback, Duration::from_secs(10)).connect_staging()
}

fn staging_greeting() -> Vec<u8> {
    Greeting {
        version: Version::LATEST,
        lane: Lane::Stream,
        features: FEATURE_ROUNDS,
    }
    .encode()
    .to_vec()
}

fn next_frame(tag: u32, max: u64) -> Vec<u8> {
    frame(Type::Next, tag, &encode_next(max))
}

/// The text of the ERROR that ends these frames.
fn complaint(frames: &[(Type, Vec<u8>)]) -> Option<String> {
    let (kind, payload) = frames.last()?;
    (*kind == Type::Error).then(|| {
        let (code, text) = refusal::decode(payload).expect("a whole payload");
        assert_eq!(code, ErrorCode::Protocol, "{text}");
        text
    })
}

/// Applies the events of a source until one is not about pages, to the first bytes of all pages of an export.
fn stage(peer: &mut StagingPeer, staged: &mut [Vec<Option<u8>>]) -> Mark {
    loop {
        match peer.next_event().expect("an event") {
            StagingEvent::Pages(answer) => {
                for (range, contents) in answer.contents() {
                    for (at, page) in range.iter().enumerate() {
                        staged[answer.export()][page.get() as usize] = match contents {
                            Contents::Data(data) => Some(data[at * PAGE_SIZE]),
                            Contents::Zero => Some(0),
                            Contents::Unreadable => None,
                        };
                    }
                }
            }
            StagingEvent::Batch { round, over } => return Mark::Batch(round, over),
            StagingEvent::Remainder(pages) => return Mark::Remainder(pages),
            StagingEvent::End => return Mark::End,
        }
    }
}

/// An event that is not about pages.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Mark {
    Batch(u32, bool),
    Remainder(ExportRanges),
    End,
}

#[test]
fn rounds_are_staged_and_the_remainder_follows_in_its_order() {
    moves_a_program(None);
}

#[test]
fn rounds_are_staged_and_the_remainder_follows_in_its_order_with_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    moves_a_program(Some(Identity::load(directory.path()).expect("an identity")));
}

/// The remainder of [`moves_a_program`]: more ranges of one export than a frame has, between pages of the other one.
fn long_remainder() -> Vec<ExportRanges> {
    let many: Vec<_> = (0..1500).map(|number| (3998 - 2 * number, 1)).collect();
    vec![pages(1, &[(2, 1)]), pages(0, &many), pages(1, &[(0, 2)])]
}

fn moves_a_program(identity: Option<Identity>) {
    const PAGES: u64 = 4096;
    let filled: Vec<u64> = (0..200).collect();
    let (ram, video) = (memfd(PAGES * PAGE_SIZE as u64, &filled), memfd(3 * PAGE_SIZE as u64, &[]));
    let memories = [spec("ram", &ram), spec("video", &video)].map(|spec| Memory::open(&spec).expect("memory"));
    // The program writes before the pages are protected again.
    let write = |file: &File, page: u64, byte: u8| {
        let file = file.try_clone().expect("a descriptor");
        move || file.write_all_at(&[byte; PAGE_SIZE], page * PAGE_SIZE as u64).expect("room")
    };
    let (first, second, third) = (write(&ram, 5, 0xaa), write(&ram, 5, 0xbb), write(&video, 1, 0xcc));
    let zeroed = write(&ram, 6, 0);
    let steps: Vec<Step> = vec![
        Box::new(move || {
            first();
            Ok(chosen(1, 0, &[(100, 100), (0, 50), (300, 1000)]))
        }),
        step(empty(1, false)),
        Box::new(move || {
            second();
            zeroed();
            Ok(chosen(2, 0, &[(6, 1), (5, 1)]))
        }),
        Box::new(move || {
            third();
            let over = true;
            Ok(Batch {
                over,
                ..chosen(3, 1, &[(1, 1)])
            })
        }),
    ];
    let rounds = Script::new(steps, list(long_remainder()));
    let (server, script) = (Arc::clone(&rounds), &rounds);
    let running = Running::protected(identity.clone(), memories.into(), LIMITS, |it| it.with_rounds(server));
    let security = identity.map_or(Security::Loopback, Security::Tls);
    let endpoint = Endpoint::new(&running.address.to_string(), security, Duration::from_secs(10));
    let mut urgent = endpoint.connect(Lane::Urgent).expect("the other lane is open meanwhile");
    let mut peer = endpoint.connect_staging().expect("rounds");
    let mut staged = vec![vec![None; PAGES as usize], vec![None; 3]];
    // Six are asked for, and the rounds are over with the fourth.
    for max in [4096, 100, 4096, 7, 8, 9] {
        peer.next(max).expect("a question");
    }
    assert_eq!(stage(&mut peer, &mut staged), Mark::Batch(1, false));
    assert_eq!(staged[0][5], Some(0xaa), "what the program wrote before the choice");
    assert_eq!(stage(&mut peer, &mut staged), Mark::Batch(1, false));
    assert_eq!(stage(&mut peer, &mut staged), Mark::Batch(2, false));
    assert_eq!(stage(&mut peer, &mut staged), Mark::Batch(3, true));
    let contents = |page: u64| match page {
        5 => Some(0xbb),
        6 | 300..1300 => Some(0),
        0..50 | 100..200 => Some(page as u8 + 1),
        _ => None,
    };
    assert_eq!(staged[0], (0..PAGES).map(contents).collect::<Vec<_>>());
    assert_eq!(staged[1], [None, Some(0xcc), None]);
    let mut found: Vec<ExportRanges> = Vec::new();
    loop {
        match stage(&mut peer, &mut staged) {
            Mark::Remainder(pages) => match found.last_mut().filter(|last| last.export == pages.export) {
                Some(last) => last.ranges.extend(pages.ranges),
                None => found.push(pages),
            },
            Mark::End => break,
            batch @ Mark::Batch(..) => panic!("{batch:?}"),
        }
    }
    assert_eq!(found, long_remainder());
    // The list is complete: both lanes read.
    assert_eq!(fetch(&mut urgent, 4, 3), [Some(5), Some(0xbb), Some(0)]);
    let mut source = Box::new(peer).into_source();
    source.fetch(1, &[range(0, 3)]).expect("a question");
    assert_eq!(source.next_answer().expect("an answer").pages(), 3);
    drop(source);
    let (served, error) = running.next_ended();
    assert_eq!(error, None, "an orderly goodbye");
    assert_eq!((served.data, served.zero), (150 + 1 + 1 + 1, 1000 + 1 + 2));
    assert_eq!(script.lost(), 0);
    assert_eq!(*script.asked.lock().expect("no panic"), [4096, 100, 4096, 7]);
    let sent = script.sent.lock().expect("no panic");
    let counts: Vec<_> = sent
        .iter()
        .map(|(batch, sent)| (batch.round, sent.data, sent.zero, sent.unreadable))
        .collect();
    assert_eq!(counts, [(1, 150, 1000, 0), (1, 0, 0, 0), (2, 1, 1, 0), (3, 1, 0, 0)]);
    // The second answer is a BATCH alone: a header and its payload.
    assert_eq!(sent[1].1.bytes, 24 + 16);
    let one_page = 24 + 8 + 16 + PAGE_SIZE as u64 + 24 + 16;
    assert_eq!(sent[3].1.bytes, one_page);
    assert!(sent[0].1.elapsed < Duration::from_secs(10) && sent[0].1.bytes > 150 * PAGE_SIZE as u64);
}

#[test]
fn question_about_contents_is_refused_until_the_list_is_complete() {
    let rounds = Script::new(vec![step(empty(1, true))], list(vec![]));
    let running = small_with(&rounds);
    let release = frame(Type::Release, 0, &ranges::encode(0, &[range(0, 1)]));
    let urgent = Greeting {
        lane: Lane::Urgent,
        ..Greeting::decode(&greeting().try_into().expect("a greeting")).expect("a greeting")
    };
    let urgent = urgent.encode().to_vec();
    for (bytes, what) in [
        ([greeting(), read_frame(1, 1)].concat(), "READ"),
        ([urgent.clone(), read_frame(1, 1)].concat(), "READ"),
        ([greeting(), release.clone()].concat(), "RELEASE"),
        ([urgent, release].concat(), "RELEASE"),
    ] {
        let expected = ProtocolError::TooEarly(what).to_string();
        assert_eq!(complaint(&converse(&running, &bytes)), Some(expected));
    }
    assert_eq!(rounds.lost(), 0, "those connections staged nothing");
    let mut peer = staging_peer(&running).expect("rounds");
    peer.next(1).expect("a question");
    while !matches!(peer.next_event().expect("an event"), StagingEvent::End) {}
    let mut plain = running.peer().expect("a peer");
    assert_eq!(fetch(&mut plain, 1, 2), [Some(2), Some(3)]);
}

#[test]
fn destination_that_stages_nothing_reads_once_the_caller_allows_it() {
    let rounds = Script::new(vec![], list(vec![]));
    let running = small_with(&rounds);
    let mut peer = running.peer().expect("a peer");
    running.server.allow_reads();
    assert_eq!(fetch(&mut peer, 1, 2), [Some(2), Some(3)]);
    let error = staging_peer(&running).map(|_| ()).expect_err("there are no rounds any more");
    assert!(matches!(error, Error::NoRounds), "{error}");
    assert_eq!(rounds.lost(), 0);
}

#[test]
fn reads_are_not_allowed_by_the_caller_while_a_connection_stages() {
    let rounds = Script::new(vec![], list(vec![]));
    let running = small_with(&rounds);
    let _peer = staging_peer(&running).expect("rounds");
    running.server.allow_reads();
    let frames = converse(&running, &[greeting(), read_frame(1, 1)].concat());
    assert_eq!(complaint(&frames), Some(ProtocolError::TooEarly("READ").to_string()));
}

#[test]
fn second_staging_connection_is_refused_as_busy_and_leaves_the_first_alone() {
    let rounds = Script::new(vec![step(chosen(1, 0, &[(1, 1)])), step(empty(1, true))], list(vec![]));
    let running = small_with(&rounds);
    let mut first = staging_peer(&running).expect("rounds");
    match staging_peer(&running).map(|_| ()) {
        Err(
            error @ Error::Refused {
                code: ErrorCode::Busy, ..
            },
        ) => assert!(error.is_transient()),
        other => panic!("{other:?}"),
    }
    assert_eq!(rounds.lost(), 0);
    first.next(1).expect("a question");
    let mut staged = [vec![None; 10]];
    assert_eq!(stage(&mut first, &mut staged), Mark::Batch(1, false));
    assert_eq!(staged[0][1], Some(2));
    first.next(1).expect("a question");
    assert_eq!(stage(&mut first, &mut staged), Mark::Batch(1, true));
    assert_eq!(stage(&mut first, &mut staged), Mark::End);
    drop(first);
    let error = staging_peer(&running).map(|_| ()).expect_err("the rounds have ended");
    assert!(matches!(error, Error::NoRounds), "{error}");
    assert_eq!(rounds.lost(), 0);
}

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
fn rounds_are_offered_on_the_stream_lane_of_a_server_that_has_them() {
    let rounds = Script::new(vec![], list(vec![]));
    let features = |running: &Running, lane| {
        let mut socket = running.raw();
        let ours = Greeting {
            version: Version::LATEST,
            lane,
            features: u64::MAX,
        };
        socket.write_all(&ours.encode()).expect("somebody who listens");
        let mut theirs = [0; greeting::SIZE];
        socket.read_exact(&mut theirs).expect("a greeting");
        Greeting::decode(&theirs).expect("a greeting").features
    };
    let with = small_with(&rounds);
    assert_eq!(features(&with, Lane::Urgent), 0);
    assert_eq!(features(&with, Lane::Stream), FEATURE_ROUNDS);
    let without = small();
    assert_eq!(features(&without, Lane::Stream), 0);
    assert!(matches!(staging_peer(&without).map(|_| ()), Err(Error::NoRounds)));
    let frames = converse(&without, &[staging_greeting(), next_frame(1, 1)].concat());
    let unexpected = ProtocolError::Unexpected {
        got: "NEXT",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    assert_eq!(complaint(&frames), Some(unexpected.to_string()));
}

#[test]
fn next_that_breaks_the_protocol_is_refused_and_the_rounds_are_lost() {
    let payload = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let next = |tag, words: &[u32]| frame(Type::Next, tag, &payload(words));
    let unexpected = |got| ProtocolError::Unexpected {
        got,
        want: "NEXT, READ, RELEASE, GOODBYE or ERROR",
    };
    for (bytes, error) in [
        (next(1, &[0, 0]), ProtocolError::MaxPages(0)),
        (next(1, &[4097, 0]), ProtocolError::MaxPages(4097)),
        (next(1, &[1, 1]), ProtocolError::Reserved("NEXT")),
        (next(1, &[1]), ProtocolError::Short("NEXT")),
        (next(0, &[1, 0]), ProtocolError::NoTag("NEXT")),
        ([next_frame(1, 1), next(2, &[0, 0])].concat(), ProtocolError::MaxPages(0)),
        (read_frame(1, 1), ProtocolError::TooEarly("READ")),
        ([next_frame(1, 1), read_frame(1, 1)].concat(), ProtocolError::TooEarly("READ")),
        (
            frame(Type::Release, 0, &ranges::encode(0, &[range(0, 1)])),
            ProtocolError::TooEarly("RELEASE"),
        ),
        (frame(Type::Batch, 1, &[0; 16]), unexpected("BATCH")),
        (frame(Type::Remainder, 0, &[0; 8]), unexpected("REMAINDER")),
    ] {
        let rounds = Script::new(vec![step(empty(1, false))], list(vec![]));
        let running = small_with(&rounds);
        let frames = converse(&running, &[staging_greeting(), bytes].concat());
        assert_eq!(complaint(&frames), Some(error.to_string()));
        running.next_ended();
        assert_eq!(rounds.lost(), 1, "{error}");
    }
}

#[test]
fn next_of_before_the_end_is_answered_and_one_after_a_read_is_refused() {
    let rounds = Script::new(vec![step(empty(4, true))], list(vec![pages(0, &[(1, 2)])]));
    let running = small_with(&rounds);
    let words = [
        staging_greeting(),
        next_frame(1, 10),
        next_frame(2, 10),
        next_frame(3, 10),
        read_frame(1, 2),
        next_frame(4, 10),
    ];
    let frames = converse(&running, &words.concat());
    let kinds: Vec<_> = frames.iter().map(|(kind, _)| *kind).collect();
    let expected = [
        Type::Exports,
        Type::Batch,
        Type::Remainder,
        Type::Remainder,
        Type::Batch,
        Type::Batch,
        Type::Pages,
        Type::Error,
    ];
    assert_eq!(kinds, expected);
    for at in [1, 4, 5] {
        assert_eq!(decode_batch(&frames[at].1), Ok(BatchEnd { round: 4, over: true }));
    }
    assert_eq!(complaint(&frames), Some(ProtocolError::RoundsOver("NEXT").to_string()));
    running.next_ended();
    assert_eq!(rounds.lost(), 0, "all of the remainder was sent");
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
fn error_of_the_rounds_is_told_to_the_destination_and_is_final() {
    let io = || io::Error::other("bad address");
    let fail: fn() -> Step = || Box::new(|| Err(RoundsError::new("cannot take the dirty log of ram")));
    let outside = |batch| (step(batch), list(vec![]));
    for ((step, remainder), expected) in [
        ((fail(), list(vec![])), "cannot take the dirty log of ram"),
        (
            (
                step(empty(1, true)),
                Box::new(move || Err(RoundsError::with_source("cannot finish ram", io()))) as Remainder,
            ),
            "cannot finish ram: bad address",
        ),
        (
            outside(chosen(1, 1, &[(0, 1)])),
            "pages of export 1 were chosen, which does not exist",
        ),
        (
            outside(chosen(1, 0, &[(9, 2)])),
            "pages 9 to 10 of ram were chosen, which has 10 pages",
        ),
        (outside(chosen(1, 0, &[(0, 3), (5, 3)])), "6 pages were chosen, of at most 5"),
        (
            outside(chosen(0, 0, &[(0, 1)])),
            "the rounds went back: round 0 where round 1 was due",
        ),
        (
            (step(empty(1, true)), list(vec![pages(0, &[(9, 2)])])),
            "pages 9 to 10 of ram were chosen, which has 10 pages",
        ),
    ] {
        let rounds = Script::new(vec![step], remainder);
        let running = small_with(&rounds);
        let mut peer = staging_peer(&running).expect("rounds");
        peer.next(5).expect("a question");
        let error = loop {
            match peer.next_event() {
                Ok(StagingEvent::End) => panic!("the list is complete"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(!error.is_transient(), "{error}");
        match error {
            Error::Refused {
                code: ErrorCode::Protocol,
                text,
            } => assert_eq!(text, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(running.next_ended().1, Some(format!("the rounds cannot go on: {expected}")));
        assert_eq!(rounds.lost(), 1, "{expected}");
    }
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
fn destination_waits_for_rounds_that_have_nothing_to_send() {
    let waiting = |batch: Batch| -> Step {
        Box::new(|| {
            thread::sleep(Duration::from_secs(1));
            Ok(batch)
        })
    };
    let rounds = Script::new(vec![waiting(empty(1, false)), waiting(empty(1, true))], list(vec![]));
    let running = small_with(&rounds);
    let endpoint = Endpoint::new(&running.address.to_string(), Security::Loopback, Duration::from_millis(500));
    let mut peer = endpoint.connect_staging().expect("rounds");
    peer.next(1).expect("a question");
    peer.next(1).expect("a question");
    while !matches!(peer.next_event().expect("no time-out"), StagingEvent::End) {}
    assert_eq!(rounds.lost(), 0);
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
