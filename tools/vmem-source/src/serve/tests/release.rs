// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that a destination releases.

use super::*;

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
