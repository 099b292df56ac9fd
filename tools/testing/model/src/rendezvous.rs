// SPDX-License-Identifier: GPL-2.0-or-later

//! Touches and daemons meet in every order of events that the rules of memory allow, by loom.
//!
//! A lost wake-up or a lost request is a thread that waits for good, and loom says "deadlock".

mod delivery;
mod ends;
mod primitives;
mod queue;

use crate::model::{
    page_map::{Touch, Verdict},
    range::PageRange,
    shards::Slots,
};
use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;
use primitives::Region;
use queue::{WaitOutcome, WaitParams};
use std::process::Command;

/// Pages that are in different shards.
const PAGES: u64 = 1024;
const HERE: u64 = 3;
const BESIDE: u64 = 4;
const ELSEWHERE: u64 = 512 + 3;

/// Runs `test` in every order of events in which threads are interrupted at most so often where they could have run on.
fn in_every_order(interruptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(test);
}

fn slots(region: &Region, pgoff: u64) -> Slots {
    let page = PageRange::within(pgoff, 1, PAGES).expect("a page of the region");
    region.layout.locate(page)
}

/// What a fault does: touches, waits, and touches again. What it found in the end; [`None`] if it gave up.
fn fault(region: &Region, pgoff: u64, gives_up: bool) -> Option<Touch> {
    let cancelled = || gives_up && !region.attached.load(Ordering::Acquire);
    loop {
        match region.rendezvous().touch(slots(region, pgoff)) {
            Touch::NewlyRequested | Touch::AlreadyRequested | Touch::AlreadyClaimed if cancelled() => return None,
            Touch::NewlyRequested | Touch::AlreadyRequested | Touch::AlreadyClaimed => {
                let waited = region
                    .rendezvous()
                    .await_page(slots(region, pgoff), WaitParams::none(), cancelled);
                assert!(waited.is_some(), "the page is one of the region");
            }
            found => return Some(found),
        }
    }
}

/// The same by a thread whose waits may end otherwise, and which may get its page at a place: what it found, or why it went.
fn fault_until(region: &Region, pgoff: u64, limit: &WaitParams) -> Result<Touch, WaitOutcome> {
    loop {
        let waited = match region.rendezvous().touch(slots(region, pgoff)) {
            Touch::NewlyRequested | Touch::AlreadyRequested | Touch::AlreadyClaimed => {
                region.rendezvous().await_page(slots(region, pgoff), limit.clone(), || false)
            }
            found => return Ok(found),
        };
        match waited.expect("the page is one of the region") {
            WaitOutcome::Done => (),
            WaitOutcome::Mapped => {
                let address = limit.address.expect("only who wants a page somewhere gets it there");
                assert!(region.mapped[address].load(Ordering::Relaxed), "nothing was put there");
                return Ok(Touch::Present);
            }
            WaitOutcome::Timeout => settle(region, pgoff, Verdict::Unreadable),
            WaitOutcome::Signal => return Err(WaitOutcome::Signal),
        }
    }
}

/// Waits for requests and takes them, at most so many.
fn take(region: &Region, max: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    while taken.is_empty() {
        region.rendezvous().await_requests(WaitParams::none(), || false);
        region.rendezvous().take(max, |pgoff| taken.push(pgoff));
    }
    taken
}

fn settle(region: &Region, pgoff: u64, verdict: Verdict) {
    region.rendezvous().settle(slots(region, pgoff), verdict);
}

/// A daemon that answers until it has answered so many; which.
fn serve(region: &Region, nr: usize, max: usize) -> Vec<u64> {
    let mut served = Vec::new();
    while served.len() < nr {
        for pgoff in take(region, max) {
            settle(region, pgoff, Verdict::Present);
            served.push(pgoff);
        }
    }
    served.sort_unstable();
    served
}

/// The daemon goes.
fn leave(region: &Region) {
    let detach = || region.attached.store(false, Ordering::Release);
    region.rendezvous().detach_daemon(detach);
}

/// A fault whose page has backing, read by a thread that is over before the page is: it brings the page, gives up, or has the daemon asked.
fn backed_fault(region: &Arc<Region>, pgoff: u64, ends: &[Option<bool>]) -> Option<Touch> {
    let mut ends = ends.iter();
    loop {
        match region.rendezvous().claim(slots(region, pgoff)) {
            Touch::NewlyClaimed => {
                let region = region.clone();
                let end = ends.next().copied().flatten();
                thread::spawn(move || match end {
                    None => settle(&region, pgoff, Verdict::Present),
                    Some(requests) => {
                        region.rendezvous().release(slots(&region, pgoff), requests);
                    }
                });
            }
            Touch::AlreadyClaimed | Touch::AlreadyRequested => (),
            found => return Some(found),
        }
        region
            .rendezvous()
            .await_page(slots(region, pgoff), WaitParams::none(), || false)?;
    }
}

/// Starts a fault in a thread of its own.
fn start_fault(region: &Arc<Region>, pgoff: u64, gives_up: bool) -> thread::JoinHandle<Option<Touch>> {
    let region = region.clone();
    thread::spawn(move || fault(&region, pgoff, gives_up))
}

fn join<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().expect("the thread panics only if the test fails")
}

#[test]
fn a_touch_and_its_answer_meet() {
    in_every_order(6, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start_fault(&region, HERE, false);
        assert_eq!(serve(&region, 1, 8), [HERE]);
        assert_eq!(join(touch), Some(Touch::Present));
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn a_page_that_nobody_asked_the_daemon_for_is_seen_too() {
    in_every_order(6, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start_fault(&region, HERE, false);
        settle(&region, HERE, Verdict::Present);
        assert_eq!(join(touch), Some(Touch::Present));
        assert!(!region.rendezvous().has_requests(), "its request went with it");
    });
}

#[test]
fn two_touches_of_a_page_make_one_request() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let touches = [start_fault(&region, HERE, false), start_fault(&region, HERE, false)];
        assert_eq!(serve(&region, 1, 8), [HERE]);
        for touch in touches {
            assert_eq!(join(touch), Some(Touch::Present));
        }
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn touches_of_two_shards_are_both_answered() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let touches = [start_fault(&region, HERE, false), start_fault(&region, ELSEWHERE, false)];
        assert_eq!(serve(&region, 2, 1), [HERE, ELSEWHERE]);
        for touch in touches {
            assert_eq!(join(touch), Some(Touch::Present));
        }
    });
}

#[test]
fn touches_of_one_word_are_both_answered() {
    in_every_order(2, || {
        let region = Arc::new(Region::new(PAGES));
        let touches = [start_fault(&region, HERE, false), start_fault(&region, BESIDE, false)];
        assert_eq!(serve(&region, 2, 1), [HERE, BESIDE]);
        for touch in touches {
            assert_eq!(join(touch), Some(Touch::Present));
        }
    });
}

#[test]
fn an_unreadable_page_and_a_time_out_wake_who_waits() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start_fault(&region, HERE, false);
        let other = thread::spawn({
            let region = region.clone();
            move || settle(&region, HERE, Verdict::Unreadable)
        });
        // Too late or in time: a page that is here stays.
        settle(&region, HERE, Verdict::Present);
        join(other);
        assert!(join(touch).is_some());
        assert_eq!(fault(&region, HERE, false), Some(Touch::Present));
    });
}

#[test]
fn two_takers_never_get_the_same_request() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        for pgoff in [HERE, ELSEWHERE] {
            region.rendezvous().touch(slots(&region, pgoff));
        }
        let other = thread::spawn({
            let region = region.clone();
            move || serve(&region, 1, 1)
        });
        let mut served = serve(&region, 1, 1);
        served.extend(join(other));
        served.sort_unstable();
        assert_eq!(served, [HERE, ELSEWHERE]);
    });
}

#[test]
fn a_touch_and_the_read_of_its_page_meet() {
    in_every_order(4, || {
        let region = Arc::new(Region::new(PAGES));
        assert_eq!(backed_fault(&region, HERE, &[]), Some(Touch::Present));
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn a_read_that_is_given_up_lets_the_page_be_touched_again() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let other = thread::spawn({
            let region = region.clone();
            move || backed_fault(&region, HERE, &[])
        });
        assert_eq!(backed_fault(&region, HERE, &[Some(false)]), Some(Touch::Present));
        assert_eq!(join(other), Some(Touch::Present));
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn a_read_that_fails_is_a_request_and_its_answer_is_heard() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = thread::spawn({
            let region = region.clone();
            move || backed_fault(&region, HERE, &[Some(true)])
        });
        assert_eq!(serve(&region, 1, 8), [HERE]);
        assert_eq!(join(touch), Some(Touch::Present));
    });
}

#[test]
fn a_request_that_is_taken_back_lets_the_page_be_touched_again() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        region.rendezvous().touch(slots(&region, HERE));
        let touch = thread::spawn({
            let region = region.clone();
            move || backed_fault(&region, HERE, &[])
        });
        region.rendezvous().withdraw(slots(&region, HERE));
        assert_eq!(join(touch), Some(Touch::Present));
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn a_request_that_cannot_be_handed_over_goes_to_another_taker() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        region.rendezvous().touch(slots(&region, HERE));
        let other = thread::spawn({
            let region = region.clone();
            move || serve(&region, 1, 8)
        });
        let mut taken = Vec::new();
        region.rendezvous().take(8, |pgoff| taken.push(slots(&region, pgoff)));
        region.rendezvous().requeue(taken.into_iter());
        assert_eq!(join(other), [HERE]);
    });
}

#[test]
fn what_a_dead_daemon_had_taken_goes_to_the_next_one() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start_fault(&region, HERE, false);
        region.rendezvous().take(8, |_| ());
        let mut next = None;
        region.rendezvous().detach_daemon(|| {
            // From now on it can attach.
            let region = region.clone();
            next = Some(thread::spawn(move || serve(&region, 1, 8)));
        });
        assert_eq!(next.map(join), Some(vec![HERE]));
        assert_eq!(join(touch), Some(Touch::Present));
    });
}

#[test]
fn the_next_daemon_gets_each_request_once() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        for pgoff in [HERE, BESIDE] {
            region.rendezvous().touch(slots(&region, pgoff));
        }
        region.rendezvous().take(1, |_| ());
        let mut next = None;
        region.rendezvous().detach_daemon(|| {
            let region = region.clone();
            next = Some(thread::spawn(move || {
                let mut taken = Vec::new();
                while taken.len() < 2 {
                    taken.extend(take(&region, 8));
                }
                taken.sort_unstable();
                taken
            }));
        });
        assert_eq!(next.map(join), Some(vec![HERE, BESIDE]));
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn who_gives_up_without_a_daemon_hears_of_its_death() {
    in_every_order(6, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start_fault(&region, HERE, true);
        leave(&region);
        assert_eq!(join(touch), None);
        assert!(region.rendezvous().has_requests(), "the next daemon finds the request");
    });
}

/// The checker checked: this is what a lost wake-up looks like. It ends the process, so that is another one.
#[test]
fn looking_before_entering_the_queue_loses_a_wake_up() {
    const LOOK_FIRST: &str = "VMEM_MODEL_LOOK_FIRST";
    if std::env::var_os(LOOK_FIRST).is_some() {
        in_every_order(3, || {
            let region = Arc::new(Region::that_looks_first(PAGES));
            let touch = start_fault(&region, HERE, false);
            serve(&region, 1, 8);
            join(touch);
        });
        return;
    }
    let this_test = [
        "--nocapture",
        "--exact",
        "rendezvous::looking_before_entering_the_queue_loses_a_wake_up",
    ];
    let other = Command::new(std::env::current_exe().expect("a running test is a file"))
        .args(this_test)
        .env(LOOK_FIRST, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("it can be run once more");
    assert!(!other.status.success(), "the checker found nothing");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("deadlock"), "the checker found something else: {said}");
}
