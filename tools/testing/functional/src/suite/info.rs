// SPDX-License-Identifier: GPL-2.0-or-later
//! What a region tells of itself.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_sys::{VMEM_STATE_ATTACHED, VMEM_STATE_PLAIN, VMEM_STATE_READY, calls};

use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, pages};
use crate::world::{field, wait_until};

crate::tests![
    fdinfo_shows_what_get_info_gives,
    info_counts_pages_requests_and_waiters,
    info_tells_the_greatest_age_of_a_waiter,
    info_counts_mappings,
    info_shows_the_state_of_the_region,
];

fn fdinfo_shows_what_get_info_gives() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(100 * PAGE_SIZE as u64).name("seen").huge())?;
    setting.fill(0..10)?;
    setting.region.mark_unreadable(&[pages(20, 5)]).complete()?;
    let _area = setting.area()?;
    let readers = [setting.reader(50)?, setting.reader(51)?];
    setting.wait_waiters(2)?;
    setting.region.next_requests(1)?;
    for fd in [setting.region.as_fd(), setting.map.as_fd()] {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let info = calls::get_info(fd)?;
        equal!(info.reserved, 0);
        for (name, value) in [
            ("id", info.id),
            ("size", info.size),
            ("flags", info.flags.into()),
            ("state", info.state.into()),
            ("present", info.present),
            ("unreadable", info.unreadable),
            ("requested", info.requested),
            ("queued", info.queued),
            ("waiters", info.waiters),
            ("faults", info.faults),
            ("requests", info.requests),
            ("sigbus", info.sigbus),
            ("mappings", info.mappings),
            ("length", info.length),
            ("backed", info.backed),
        ] {
            equal!((name, field(&text, &format!("vmem-{name}"))?), (name, value));
        }
        // This one goes on between the two.
        let age = field(&text, "vmem-oldest_wait_ns")?;
        ensure!(
            age > 0 && age <= info.oldest_wait_ns,
            "{age} and then {}",
            info.oldest_wait_ns
        );
        equal!(
            (info.present, info.unreadable, info.requested, info.queued, info.waiters),
            (10, 5, 2, 1, 2)
        );
    }
    setting.fill([50, 51])?;
    for reader in readers {
        reader.join()?;
    }
    Ok(())
}

fn info_counts_pages_requests_and_waiters() -> Outcome {
    let setting = Setting::new(1000)?;
    let first = setting.reader(600)?;
    setting.wait_waiters(1)?;
    let second = setting.reader(600)?;
    setting.wait_waiters(2)?;
    let info = setting.map.info()?;
    equal!((info.requested, info.queued, info.requests), (1, 1, 1));
    equal!(setting.take_request()?, 600);
    let info = setting.map.info()?;
    equal!((info.requested, info.queued, info.requests), (1, 0, 1));
    setting.fill([600])?;
    first.join()?;
    second.join()?;
    let info = setting.map.info()?;
    equal!(
        (info.present, info.requested, info.queued, info.waiters, info.oldest_wait),
        (1, 0, 0, 0, Duration::ZERO)
    );
    equal!((info.requests, info.sigbus), (1, 0));
    // Each of the two has faulted; a fault that starts again counts again.
    ensure!(info.faults >= 2, "{} faults", info.faults);
    Ok(())
}

fn info_tells_the_greatest_age_of_a_waiter() -> Outcome {
    let setting = Setting::new(1000)?;
    let first = setting.reader(1)?;
    wait_until("it has waited for 50 ms", || {
        Ok(setting.region.info()?.oldest_wait > Duration::from_millis(50))
    })?;
    let second = setting.reader(999)?;
    setting.wait_waiters(2)?;
    ensure!(
        setting.region.info()?.oldest_wait > Duration::from_millis(50),
        "the age is that of the last"
    );
    setting.fill([1])?;
    first.join()?;
    setting.fill([999])?;
    second.join()?;
    equal!(setting.region.info()?.oldest_wait, Duration::ZERO);
    Ok(())
}

fn info_counts_mappings() -> Outcome {
    let setting = Setting::new(16)?;
    let count = || -> Outcome<u64> { Ok(setting.region.info()?.mappings) };
    equal!(count()?, 0);
    let (one, other) = (setting.area()?, setting.area()?);
    equal!(count()?, 2);
    one.unmap(4..8)?;
    equal!(count()?, 3);
    drop(one);
    equal!(count()?, 1);
    drop(other);
    equal!(count()?, 0);
    Ok(())
}

fn info_shows_the_state_of_the_region() -> Outcome {
    let setting = Setting::new(1)?;
    let state = |fd: &vmem::MapHandle| -> Outcome<u32> { Ok(calls::get_info(fd.as_fd())?.state) };
    equal!(state(&setting.map)?, VMEM_STATE_ATTACHED);
    setting.region.ready()?;
    equal!(state(&setting.map)?, VMEM_STATE_ATTACHED | VMEM_STATE_READY);
    let Setting { region, map } = setting;
    let id = region.id();
    drop(region);
    equal!(state(&map)?, 0);
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(state(&next.map)?, VMEM_STATE_ATTACHED);
    next.region.ready()?;
    next.fill([0])?;
    next.region.make_vma_anonymous()?;
    equal!(state(&next.map)?, VMEM_STATE_ATTACHED | VMEM_STATE_READY | VMEM_STATE_PLAIN);
    Ok(())
}
