// SPDX-License-Identifier: GPL-2.0-or-later
//! The user's limit of the bandwidth, on connections of the loopback network.

use super::*;

const MIB: u64 = 1 << 20;

/// Pages of the memory: 4 MiB.
const PAGES: u64 = 1024;

fn limited(rate: u64) -> Running {
    let pages: Vec<u64> = (0..PAGES).collect();
    let memory = Memory::open(&spec("ram", &memfd(PAGES * PAGE_SIZE as u64, &pages))).expect("memory");
    let running = Running::new(vec![memory], LIMITS);
    running.server.limiter().set(Some(rate));
    running
}

fn connect(running: &Running, lane: Lane) -> Peer {
    Peer::connect(&running.address.to_string(), lane, Duration::from_secs(10)).expect("a connection")
}

/// How long it takes until so many pages have arrived.
fn fetch(peer: &mut Peer, pages: u64) -> Duration {
    let began = Instant::now();
    peer.fetch(0, &[PageRange::from_pgoff(0, pages).expect("a range")])
        .expect("a question");
    let mut left = pages;
    while left > 0 {
        left -= peer.next_answer().expect("an answer").pages();
    }
    began.elapsed()
}

#[test]
fn stream_keeps_to_the_limit_and_urgent_pages_do_not_wait_behind_it() {
    // 64 pages take a second.
    let running = limited(LEAST_BANDWIDTH);
    let (mut stream, mut urgent) = (connect(&running, Lane::Stream), connect(&running, Lane::Urgent));
    let streams = thread::spawn(move || fetch(&mut stream, 3 * 64));
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_millis(1500) {
        slowest = slowest.max(fetch(&mut urgent, 1));
    }
    let taken = streams.join().expect("no panic");
    // The last frame does not wait for itself.
    assert!(
        taken > Duration::from_millis(1800) && taken < Duration::from_secs(6),
        "{taken:?}"
    );
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// As many as one destination has for the stream.
#[test]
fn connection_of_sixteen_is_not_silent_for_long_at_the_least_limit() {
    const CONNECTIONS: u64 = 16;
    let limits = Limits {
        connections: CONNECTIONS as usize,
        ..LIMITS
    };
    let file = memfd(PAGES * PAGE_SIZE as u64, &(0..PAGES).collect::<Vec<_>>());
    let running = Running::new(vec![Memory::open(&spec("ram", &file)).expect("memory")], limits);
    let limiter = running.server.limiter();
    limiter.set(Some(LEAST_BANDWIDTH));
    // Frames of 256 KiB would take a second each: the last connection would get its first one after 15 seconds.
    let silence = Duration::from_secs(4);
    let connect = || Peer::connect(&running.address.to_string(), Lane::Stream, silence).expect("a connection");
    let streams: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let mut peer = connect();
            thread::spawn(move || {
                peer.fetch(0, &[PageRange::from_pgoff(number * 64, 64).expect("a range")])
                    .expect("a question");
                let mut left = 64;
                while left > 0 {
                    left -= peer.next_answer()?.pages();
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    thread::sleep(silence + Duration::from_secs(1));
    assert!(
        streams.iter().all(|stream| !stream.is_finished()),
        "one has ended: it was too fast, or has failed"
    );
    limiter.set(None);
    for stream in streams {
        stream.join().expect("no panic").expect("its pages");
    }
}

#[test]
fn limit_that_is_raised_or_ended_is_followed_by_a_stream_that_waits() {
    for limit in [Some(1000 * MIB), None] {
        let running = limited(LEAST_BANDWIDTH);
        let mut stream = connect(&running, Lane::Stream);
        let streams = thread::spawn(move || fetch(&mut stream, PAGES));
        thread::sleep(Duration::from_millis(300));
        assert!(!streams.is_finished());
        running.server.limiter().set(limit);
        // It would have taken 16 seconds.
        let taken = streams.join().expect("no panic");
        assert!(taken < Duration::from_secs(5), "{taken:?}");
    }
}

#[test]
fn server_that_ends_does_not_wait_for_a_limited_stream() {
    let running = limited(LEAST_BANDWIDTH);
    let mut stream = connect(&running, Lane::Stream);
    stream
        .fetch(0, &[PageRange::from_pgoff(0, PAGES).expect("a range")])
        .expect("a question");
    stream.next_answer().expect("an answer");
    // What waits would wait for 20 seconds.
    running.server.limiter().count(20 * LEAST_BANDWIDTH);
    thread::sleep(Duration::from_millis(1200));
    let released = running.server.released();
    let began = Instant::now();
    drop(running);
    assert!(released.wait(Duration::from_secs(5)), "the thread of the connection waits");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
