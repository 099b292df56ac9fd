// SPDX-License-Identifier: GPL-2.0-or-later
//! A server says which pages are holes, in bounded frames, and while the program runs only of pages that are out of the dirty log.

use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::*;
use crate::export::ExportRanges;
use crate::holes::{Holes, MAX_HOLES, MAX_MAP_PAGES};
use crate::source::Reply;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::greeting::{FEATURE_MAP, FEATURE_ROUNDS};
use crate::wire::map::{decode_holes, encode_map};

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

fn map_frame(tag: u32, first: u64, count: u64) -> Vec<u8> {
    frame(Type::Map, tag, &encode_map(0, range(first, count)))
}

fn complaint(frames: &[(Type, Vec<u8>)]) -> Option<String> {
    let (kind, payload) = frames.last()?;
    (*kind == Type::Error).then(|| refusal::decode(payload).expect("a whole payload").1)
}

/// Asks for a map of pages, and takes all parts of the answer.
fn map(peer: &mut Peer, first: u64, count: u64) -> Vec<Holes> {
    peer.map(0, range(first, count)).expect("a question");
    let (mut known, mut parts) = (0, Vec::new());
    while known < count {
        match peer.next_reply().expect("an answer") {
            Reply::Holes(answer) => {
                known += answer.holes.pages.count();
                parts.push(answer.holes);
            }
            Reply::Pages(answer) => panic!("{answer:?}"),
        }
    }
    parts
}

#[test]
fn terabyte_of_holes_is_one_frame_a_question() {
    const PAGES: u64 = 1 << 28;
    let memory = Memory::open(&spec("ram", &memfd(PAGES * PAGE_SIZE as u64, &[7]))).expect("memory");
    let running = Running::new(vec![memory], LIMITS);
    let mut peer = running.peer().expect("a peer");
    // All questions are sent before the first answer is read.
    let questions = PAGES / MAX_MAP_PAGES;
    for number in 0..questions {
        peer.map(0, range(number * MAX_MAP_PAGES, MAX_MAP_PAGES)).expect("a question");
    }
    let (mut frames, mut holes) = (0, 0);
    for _ in 0..questions {
        match peer.next_reply().expect("an answer") {
            Reply::Holes(answer) => holes += answer.holes.count(),
            Reply::Pages(answer) => panic!("{answer:?}"),
        }
        frames += 1;
    }
    assert_eq!((frames, holes), (1024, PAGES - 1));
    drop(peer);
    let (served, error) = running.next_ended();
    assert_eq!((served.zero, served.data, error), (PAGES - 1, 0, None));
}

#[test]
fn answer_with_many_holes_is_split_into_bounded_frames() {
    let data: Vec<u64> = (0..3 * MAX_HOLES as u64).map(|number| 2 * number).collect();
    let pages = 2 * data.len() as u64;
    let memory = Memory::open(&spec("ram", &memfd(pages * PAGE_SIZE as u64, &data))).expect("memory");
    let running = Running::new(vec![memory], LIMITS);
    let mut peer = running.peer().expect("a peer");
    let parts = map(&mut peer, 0, pages);
    assert!(
        parts.len() >= 3 && parts.iter().all(|part| part.ranges.len() <= MAX_HOLES),
        "{}",
        parts.len()
    );
    let holes: Vec<u64> = parts
        .iter()
        .flat_map(|part| &part.ranges)
        .map(|hole| hole.first().get())
        .collect();
    assert_eq!(holes, data.iter().map(|page| page + 1).collect::<Vec<_>>());
    // Pages and maps are answered over the same connection.
    assert_eq!(fetch(&mut peer, 2, 2), [Some(3), Some(0)]);
    assert_eq!(map(&mut peer, 1, 1)[0].count(), 1);
}

#[test]
fn map_is_offered_on_the_stream_lane_and_refused_where_it_was_not_accepted() {
    let running = small();
    let unexpected = |want| ProtocolError::Unexpected { got: "MAP", want }.to_string();
    for greeting in [greeting_with(Lane::Urgent, FEATURE_MAP), greeting()] {
        let frames = converse(&running, &[greeting, map_frame(1, 0, 1)].concat());
        assert_eq!(complaint(&frames), Some(unexpected("READ, RELEASE, GOODBYE or ERROR")));
    }
    let frames = converse(
        &running,
        &[greeting_with(Lane::Stream, FEATURE_MAP), map_frame(1, 0, 10)].concat(),
    );
    assert_eq!(frames[1].0, Type::Holes);
    let answer = decode_holes(&frames[1].1).expect("an answer");
    assert_eq!((answer.end, answer.ranges), (10, vec![range(0, 1), range(3, 7)]));
}

#[test]
fn map_that_breaks_the_protocol_is_refused() {
    let running = small();
    let greeting = greeting_with(Lane::Stream, FEATURE_MAP);
    let outside = ProtocolError::Outside { pgoff: 9, nr_pages: 2 };
    for (bytes, error) in [
        (map_frame(0, 0, 1), ProtocolError::NoTag("MAP")),
        (map_frame(1, 9, 2), outside),
        (frame(Type::Map, 1, &[0; 23]), ProtocolError::Short("MAP")),
        (
            frame(Type::Holes, 1, &[0; 16]),
            ProtocolError::Unexpected {
                got: "HOLES",
                want: "MAP, READ, RELEASE, GOODBYE or ERROR",
            },
        ),
    ] {
        let frames = converse(&running, &[greeting.clone(), bytes].concat());
        assert_eq!(complaint(&frames), Some(error.to_string()));
    }
}

/// Rounds that write to the memory at the moment of the take, and note what they were asked.
struct Writing {
    file: std::fs::File,
    taken: Mutex<Vec<(usize, PageRange)>>,
}

impl Rounds for Writing {
    fn next(&self, _: u64) -> Result<Batch, RoundsError> {
        let (round, pages, over) = (1, None, true);
        Ok(Batch { round, pages, over })
    }

    fn map(&self, export: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, RoundsError> {
        self.taken.lock().expect("no panic").push((export, pages));
        // What is written before the log is taken is seen in the map.
        self.file.write_all_at(&[9], 5 * PAGE_SIZE as u64).expect("room");
        let holes = holes(pages);
        self.file.write_all_at(&[9], 6 * PAGE_SIZE as u64).expect("room");
        Ok(holes)
    }

    fn sent(&self, _: &Batch, _: &Sent) {}

    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
        let ranges = vec![range(6, 1)];
        Ok(vec![ExportRanges { export: 0, ranges }])
    }

    fn lost(&self) {}
}

fn rounds() -> (Arc<Writing>, Running) {
    let file = memfd(10 * PAGE_SIZE as u64, &[1, 2]);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    let rounds = Arc::new(Writing {
        file,
        taken: Mutex::default(),
    });
    let of = Arc::clone(&rounds);
    let running = Running::with(vec![memory], LIMITS, |server| server.with_rounds(of));
    (rounds, running)
}

#[test]
fn holes_of_a_program_that_runs_are_looked_for_after_the_take() {
    let (rounds, running) = rounds();
    let endpoint = Endpoint::new(&running.address.to_string(), Security::Loopback, Duration::from_secs(10));
    let mut peer = endpoint.connect_staging().expect("rounds");
    assert!(peer.can_map());
    peer.map(0, range(0, 10)).expect("a question");
    peer.next(1).expect("a question");
    match peer.next_event().expect("an event") {
        StagingEvent::Holes(answer) => assert_eq!(answer.holes.ranges, [range(0, 1), range(3, 2), range(6, 4)]),
        other => panic!("{other:?}"),
    }
    while !matches!(peer.next_event().expect("an event"), StagingEvent::End) {}
    assert_eq!(*rounds.taken.lock().expect("no panic"), [(0, range(0, 10))]);
    // The rounds are over: the memory does not change, and the log is not asked.
    let mut source = Box::new(peer).into_source();
    source.map(0, range(0, 10)).expect("a question");
    match source.next_reply().expect("an answer") {
        Reply::Holes(answer) => assert_eq!(answer.holes.ranges, [range(0, 1), range(3, 2), range(7, 3)]),
        Reply::Pages(answer) => panic!("{answer:?}"),
    }
    assert_eq!(rounds.taken.lock().expect("no panic").len(), 1);
}

#[test]
fn map_is_refused_in_the_rounds_and_on_connections_that_do_not_stage() {
    let stages = greeting_with(Lane::Stream, FEATURE_MAP | FEATURE_ROUNDS);
    let reads = greeting_with(Lane::Stream, FEATURE_MAP);
    let next = frame(Type::Next, 1, &crate::wire::rounds::encode_next(1));
    let (_, running) = rounds();
    let frames = converse(&running, &[reads, map_frame(1, 0, 1)].concat());
    assert_eq!(complaint(&frames), Some(ProtocolError::TooEarly("MAP").to_string()));

    /// Rounds that go on.
    struct Endless;
    impl Rounds for Endless {
        fn next(&self, _: u64) -> Result<Batch, RoundsError> {
            let (round, pages, over) = (1, None, false);
            Ok(Batch { round, pages, over })
        }
        fn sent(&self, _: &Batch, _: &Sent) {}
        fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
            Ok(Vec::new())
        }
        fn lost(&self) {}
    }
    let memory = Memory::open(&spec("ram", &memfd(10 * PAGE_SIZE as u64, &[]))).expect("memory");
    let running = Running::with(vec![memory], LIMITS, |server| server.with_rounds(Arc::new(Endless)));
    let frames = converse(&running, &[stages, map_frame(1, 0, 10), next, map_frame(2, 0, 10)].concat());
    let kinds: Vec<_> = frames.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [Type::Exports, Type::Holes, Type::Batch, Type::Error]);
    assert!(
        decode_holes(&frames[1].1).expect("an answer").ranges.is_empty(),
        "rounds that know of no map"
    );
    assert_eq!(complaint(&frames), Some(ProtocolError::LateMap.to_string()));
}
