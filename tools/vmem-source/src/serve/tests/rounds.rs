// SPDX-License-Identifier: GPL-2.0-or-later
//! A destination stages what the rounds choose; none reads contents that may still change, and the rounds learn when it is lost.

mod access;
mod loss;
mod violation;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::*;
use crate::export::ExportRanges;
use crate::peer::StagingPeer;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::greeting::{FEATURE_HASHES, FEATURE_MAP};
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
    greeting_with(Lane::Stream, FEATURE_ROUNDS)
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
                            other => panic!("{other:?}"),
                        };
                    }
                }
            }
            StagingEvent::Holes(holes) => panic!("{holes:?}"),
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
