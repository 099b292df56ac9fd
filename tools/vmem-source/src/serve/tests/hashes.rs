// SPDX-License-Identifier: GPL-2.0-or-later
//! A server leaves out contents that a destination has announced, and pages that were written with the contents that they had when they were
//! sent; what it sends of a page is never that of another one.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::*;
use crate::digest::{Digest, Key};
use crate::export::ExportRanges;
use crate::staging::{StagingEvent, StagingSource};
use crate::wire::digests;
use crate::wire::greeting::FEATURE_HASHES;

fn range(first: u64, count: u64) -> PageRange {
    PageRange::from_pgoff(first, count).expect("a range")
}

/// What each page of an answer is: its first byte, or what was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Got {
    Data(u8),
    Known(Digest),
    Same,
}

fn got(answer: &crate::answer::Answer<'_>) -> Vec<Got> {
    let mut found = Vec::new();
    for (range, contents) in answer.contents() {
        for at in 0..range.count() as usize {
            found.push(match contents {
                Contents::Data(data) => Got::Data(data[at * PAGE_SIZE]),
                Contents::Zero => Got::Data(0),
                Contents::Known(digests) => {
                    Got::Known(Digest::from_bytes(digests[16 * at..][..16].try_into().expect("16 bytes")))
                }
                Contents::Same => Got::Same,
                Contents::Unreadable => panic!("{range} is unreadable"),
            });
        }
    }
    found
}

fn fetch_all(peer: &mut Peer, count: u64) -> Vec<Got> {
    peer.fetch(0, &[range(0, count)]).expect("a question");
    let mut found = Vec::new();
    while found.len() < count as usize {
        found.extend(got(&peer.next_answer().expect("an answer")));
    }
    found
}

#[test]
fn announced_contents_are_not_sent_wherever_they_are() {
    let file = memfd(6 * PAGE_SIZE as u64, &[1, 2, 4, 5]);
    let running = Running::new(vec![Memory::open(&spec("ram", &file)).expect("memory")], LIMITS);
    let mut peer = running.peer().expect("a peer");
    let key = Key::random().expect("a key");
    let digest = |byte: u8| key.digest(&[byte; PAGE_SIZE]);
    let prefixes: Vec<u64> = [3, 6, 77].map(|byte| digest(byte).prefix()).into();
    peer.announce(&key, &prefixes).expect("room");
    let expected = [
        Got::Data(0),
        Got::Data(2),
        Got::Known(digest(3)),
        Got::Data(0),
        Got::Data(5),
        Got::Known(digest(6)),
    ];
    assert_eq!(fetch_all(&mut peer, 6), expected);
    // The urgent lane, and another connection, get contents.
    let mut urgent = Peer::connect(&running.address.to_string(), Lane::Urgent, Duration::from_secs(10)).expect("a peer");
    assert!(!urgent.can_hash());
    assert_eq!(fetch_all(&mut urgent, 6)[5], Got::Data(6));
    assert_eq!(fetch_all(&mut running.peer().expect("a peer"), 6)[5], Got::Data(6));
    peer.announce(&key, &[]).expect("room");
    assert_eq!(fetch_all(&mut peer, 6)[5], Got::Data(6), "it was withdrawn");
    drop(urgent);
    while running.next_ended().0.data != 4 {}
    drop(peer);
    while running.next_ended().0.known != 2 {}
}

#[test]
fn digests_that_break_the_protocol_are_refused() {
    let running = small();
    let digests = |byte, prefixes: &[u64]| frame(Type::Digests, 0, &digests::encode(&Key::from_bytes([byte; 32]), prefixes));
    let stream = greeting_with(Lane::Stream, FEATURE_HASHES);
    let unexpected = ProtocolError::Unexpected {
        got: "DIGESTS",
        want: "READ, RELEASE, GOODBYE or ERROR",
    };
    for (bytes, error) in [
        ([greeting(), digests(1, &[5])].concat(), unexpected.clone()),
        (
            [greeting_with(Lane::Urgent, FEATURE_HASHES), digests(1, &[5])].concat(),
            unexpected,
        ),
        (
            [stream.clone(), digests(1, &[5]), digests(1, &[]), digests(2, &[5])].concat(),
            ProtocolError::OtherKey,
        ),
        (
            [stream, frame(Type::Digests, 0, &[0; 39])].concat(),
            ProtocolError::Short("DIGESTS"),
        ),
    ] {
        let frames = converse(&running, &bytes);
        let (kind, payload) = frames.last().expect("an answer");
        assert_eq!(*kind, Type::Error);
        let said = refusal::decode(payload).expect("a whole payload");
        assert_eq!(said, (ErrorCode::Protocol, error.to_string()));
    }
}

/// Rounds that write bytes to a page before each of their batches, which are all of page 3.
struct Writes {
    file: std::fs::File,
    bytes: Mutex<VecDeque<u8>>,
    sent: Mutex<Vec<Sent>>,
}

impl Rounds for Writes {
    fn next(&self, _: u64) -> Result<Batch, RoundsError> {
        let byte = self.bytes.lock().expect("no panic").pop_front();
        if let Some(byte) = byte {
            self.file
                .write_all_at(&[byte; PAGE_SIZE], 3 * PAGE_SIZE as u64)
                .expect("room");
        }
        let pages = ExportRanges {
            export: 0,
            ranges: vec![range(3, 1)],
        };
        Ok(Batch {
            round: 1,
            pages: byte.map(|_| pages),
            over: byte.is_none(),
        })
    }

    fn sent(&self, _: &Batch, sent: &Sent) {
        self.sent.lock().expect("no panic").push(*sent);
    }

    fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
        Ok(Vec::new())
    }

    fn lost(&self) {}
}

#[test]
fn page_that_is_written_with_the_same_contents_is_not_sent_in_the_rounds() {
    let file = memfd(10 * PAGE_SIZE as u64, &[1]);
    let memory = Memory::open(&spec("ram", &file)).expect("memory");
    let rounds = Arc::new(Writes {
        file,
        bytes: Mutex::new([7, 7, 7, 8, 8, 0, 8, 8, 8].into()),
        sent: Mutex::default(),
    });
    let of = Arc::clone(&rounds);
    let running = Running::with(vec![memory], LIMITS, |server| server.with_rounds(of));
    let endpoint = Endpoint::new(&running.address.to_string(), Security::Loopback, Duration::from_secs(10));
    let mut peer = endpoint.connect_staging().expect("rounds");
    let mut found = Vec::new();
    peer.next(1).expect("a question");
    loop {
        match peer.next_event().expect("an event") {
            StagingEvent::Pages(answer) => found.extend(got(&answer)),
            StagingEvent::Batch { over: false, .. } => peer.next(1).expect("a question"),
            StagingEvent::End => break,
            _ => {}
        }
    }
    let expected = [
        Got::Data(7),
        Got::Data(7),
        Got::Same,
        Got::Data(8),
        Got::Same,
        Got::Data(0),
        Got::Data(8),
        Got::Data(8),
        Got::Same,
    ];
    assert_eq!(found, expected);
    // After the rounds, the destination fetches what it wants, with its contents.
    let mut source = Box::new(peer).into_source();
    source.fetch(0, &[range(3, 1)]).expect("a question");
    assert_eq!(got(&source.next_answer().expect("an answer")), [Got::Data(8)]);
    let sent = rounds.sent.lock().expect("no panic");
    let same: Vec<_> = sent.iter().map(|sent| (sent.data, sent.zero, sent.same)).collect();
    assert_eq!(same.iter().map(|sent| sent.2).sum::<u64>(), 3);
    assert_eq!((same[2], same[3]), ((0, 0, 1), (1, 0, 0)));
    // A PAGES without contents, and a BATCH.
    assert_eq!(sent[2].bytes, 24 + 8 + 16 + 24 + 16);
}
