// SPDX-License-Identifier: GPL-2.0-or-later

//! What else ends a wait: a signal, a time limit, a region that becomes plain, a daemon that is ready.

use super::primitives::Region;
use super::queue::{Task, WaitOutcome, WaitParams};
use super::{HERE, PAGES, fault, fault_until, in_every_order, join, serve, settle, slots, take};
use crate::model::{
    page_map::{Touch, Verdict},
    rendezvous::Queue,
};
use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;

/// Starts a fault in a thread of its own.
fn start(region: &Arc<Region>, params: WaitParams) -> thread::JoinHandle<Result<Touch, WaitOutcome>> {
    let region = region.clone();
    thread::spawn(move || fault_until(&region, HERE, &params))
}

/// What GET_PAGE_REQUEST does. No request: the region is plain.
fn get_page_request(region: &Region, params: &WaitParams) -> Result<Vec<u64>, WaitOutcome> {
    let is_plain = || region.plain.load(Ordering::Acquire);
    loop {
        match region.rendezvous().await_requests(params.clone(), is_plain) {
            WaitOutcome::Done => (),
            woken => return Err(woken),
        }
        let mut taken = Vec::new();
        region.rendezvous().take(8, |pgoff| taken.push(pgoff));
        if !taken.is_empty() || is_plain() {
            return Ok(taken);
        }
    }
}

/// The region becomes plain: `Region::set_plain`.
fn set_plain(region: &Region) {
    region.plain.store(true, Ordering::Release);
    region.ready_waiters.wake_all();
    region.request_waiters.wake_all();
}

#[test]
fn who_is_killed_goes_and_leaves_its_request() {
    in_every_order(4, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let touch = start(&region, WaitParams::of(&task));
        task.kill();
        assert_eq!(join(touch), Err(WaitOutcome::Signal));
        assert!(region.waiters(slots(&region, HERE)).is_empty());
        assert_eq!(serve(&region, 1, 8), [HERE]);
        assert_eq!(fault(&region, HERE, false), Some(Touch::Present));
    });
}

#[test]
fn a_kill_and_an_answer_meet() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let touches = [start(&region, WaitParams::of(&task)), start(&region, WaitParams::none())];
        task.kill();
        assert_eq!(serve(&region, 1, 8), [HERE]);
        let [killed, other] = touches.map(join);
        assert!([Ok(Touch::Present), Err(WaitOutcome::Signal)].contains(&killed), "{killed:?}");
        assert_eq!(other, Ok(Touch::Present));
        assert!(region.waiters(slots(&region, HERE)).is_empty());
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn the_end_of_one_wait_tells_all_who_wait_for_the_page() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let touches = [start(&region, WaitParams::of(&task)), start(&region, WaitParams::none())];
        task.expire();
        assert_eq!(touches.map(join), [Ok(Touch::Unreadable), Ok(Touch::Unreadable)]);
        assert!(!region.rendezvous().has_requests());
    });
}

#[test]
fn a_time_limit_and_an_answer_meet() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let touches = [start(&region, WaitParams::of(&task)), start(&region, WaitParams::none())];
        task.expire();
        settle(&region, HERE, Verdict::Present);
        for touch in touches.map(join) {
            assert!([Ok(Touch::Present), Ok(Touch::Unreadable)].contains(&touch), "{touch:?}");
        }
        assert_eq!(fault(&region, HERE, false), Some(Touch::Present), "what is here stays");
    });
}

#[test]
fn a_signal_to_who_waits_for_requests_loses_none() {
    in_every_order(4, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let taker = thread::spawn({
            let (region, params) = (region.clone(), WaitParams::of(&task));
            move || get_page_request(&region, &params)
        });
        task.kill();
        region.rendezvous().touch(slots(&region, HERE));
        match join(taker) {
            Ok(taken) => assert_eq!(taken, [HERE]),
            Err(woken) => {
                assert_eq!(woken, WaitOutcome::Signal);
                assert_eq!(take(&region, 8), [HERE]);
            }
        }
        assert!(region.request_waiters.is_empty());
    });
}

#[test]
fn who_waits_for_requests_hears_that_the_region_is_plain() {
    in_every_order(4, || {
        let region = Arc::new(Region::new(PAGES));
        let taker = thread::spawn({
            let region = region.clone();
            move || {
                (
                    get_page_request(&region, &WaitParams::none()),
                    get_page_request(&region, &WaitParams::none()),
                )
            }
        });
        region.rendezvous().touch(slots(&region, HERE));
        set_plain(&region);
        assert_eq!(join(taker), (Ok(vec![HERE]), Ok(Vec::new())));
    });
}

#[test]
fn who_waits_for_a_daemon_hears_that_it_is_ready_or_not_needed() {
    for plain in [false, true] {
        in_every_order(4, move || {
            let region = Arc::new(Region::new(PAGES));
            let ready_waiters = [Task::new(), Task::new()].map(|task| {
                let region = region.clone();
                thread::spawn(move || {
                    let done = || region.ready.load(Ordering::Acquire) || region.plain.load(Ordering::Acquire);
                    region.ready_waiters.wait(0, WaitParams::of(&task), done)
                })
            });
            if plain {
                set_plain(&region);
            } else {
                region.ready.store(true, Ordering::Release);
                region.ready_waiters.wake_all();
            }
            assert_eq!(ready_waiters.map(join), [WaitOutcome::Done, WaitOutcome::Done]);
        });
    }
}
