// SPDX-License-Identifier: GPL-2.0-or-later

//! Who brings a page puts it where it is wanted, before he wakes who waits for it (`Pages::settle_delivered`): whoever is told that it is
//! there does not look again.

use super::primitives::Region;
use super::queue::{Task, WaitOutcome, WaitParams};
use super::{BESIDE, HERE, PAGES, fault_until, in_every_order, join, leave, slots};
use crate::model::page_map::{Touch, Verdict};
use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;

/// Settles a page, and puts it into as many places as there is room for; or does not.
fn bring(region: &Region, pgoff: u64, room: usize, works: bool) {
    let wake = |queue: &super::queue::WaitQueue| {
        let addresses = queue.addresses(pgoff, pgoff + 1, room);
        if works {
            for &address in &addresses {
                region.mapped[address].store(true, Ordering::Relaxed);
            }
        }
        queue.wake_placed(pgoff, pgoff + 1, !addresses.is_empty() && works);
    };
    let settled = region.rendezvous().settle_and(slots(region, pgoff), Verdict::Present, wake);
    assert!(settled.changed <= 1, "one page");
}

/// Starts a fault that wants its page at a place. [`fault_until`] looks whether what was delivered is there.
fn start(region: &Arc<Region>, pgoff: u64, params: WaitParams) -> thread::JoinHandle<Result<Touch, WaitOutcome>> {
    let region = region.clone();
    thread::spawn(move || fault_until(&region, pgoff, &params))
}

#[test]
fn what_is_delivered_is_there() {
    in_every_order(5, || {
        let region = Arc::new(Region::new(PAGES));
        let touch = start(&region, HERE, WaitParams::none().at(0));
        bring(&region, HERE, 8, true);
        assert_eq!(join(touch), Ok(Touch::Present));
    });
}

#[test]
fn who_comes_too_late_for_the_delivery_looks_again() {
    in_every_order(4, || {
        let region = Arc::new(Region::new(PAGES));
        let touches = [0, 1].map(|address| start(&region, HERE, WaitParams::none().at(address)));
        bring(&region, HERE, 8, true);
        assert_eq!(touches.map(join), [Ok(Touch::Present), Ok(Touch::Present)]);
    });
}

#[test]
fn where_there_is_no_room_or_it_does_not_work_everybody_looks_again() {
    for (room, works) in [(1, true), (8, false)] {
        in_every_order(3, move || {
            let region = Arc::new(Region::new(PAGES));
            let touches = [0, 1].map(|address| start(&region, HERE, WaitParams::none().at(address)));
            bring(&region, HERE, room, works);
            assert_eq!(touches.map(join), [Ok(Touch::Present), Ok(Touch::Present)]);
        });
    }
}

#[test]
fn a_delivery_is_for_those_alone_who_wait_for_the_page() {
    in_every_order(2, || {
        let region = Arc::new(Region::new(PAGES));
        let touches = [(HERE, 0), (BESIDE, 1)].map(|(pgoff, address)| start(&region, pgoff, WaitParams::none().at(address)));
        bring(&region, HERE, 8, true);
        // Its waiter's place has no page.
        bring(&region, BESIDE, 8, false);
        assert_eq!(touches.map(join), [Ok(Touch::Present), Ok(Touch::Present)]);
    });
}

#[test]
fn a_kill_and_a_dying_daemon_meet_a_delivery() {
    in_every_order(3, || {
        let region = Arc::new(Region::new(PAGES));
        let task = Task::new();
        let touch = start(&region, HERE, WaitParams::of(&task).at(0));
        let other = thread::spawn({
            let region = region.clone();
            move || bring(&region, HERE, 8, true)
        });
        task.kill();
        leave(&region);
        join(other);
        let touch = join(touch);
        assert!([Ok(Touch::Present), Err(WaitOutcome::Signal)].contains(&touch), "{touch:?}");
        assert!(region.waiters(slots(&region, HERE)).is_empty());
    });
}
