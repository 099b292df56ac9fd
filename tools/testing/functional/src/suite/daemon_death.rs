// SPDX-License-Identifier: GPL-2.0-or-later
//! Death of the daemon is a state, not an accident; and how long a fault waits.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::pipe::pipe;
use rustix::process::Signal;
use vmem::{Access, Control, MapHandle, PAGE_SIZE, Region, RegionBuilder};
use vmem_functional_sys::{Area, AreaBuilder, MemoryAt, catch_signal, caught, write_from};
use vmem_sys::calls;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_words, contents, page};
use crate::world::wait_until;

crate::tests![
    waiters_of_a_dead_daemon_stay_killable,
    waiters_of_a_dead_daemon_go_on_with_the_next_one,
    a_touch_without_a_daemon_waits_for_the_next_one,
    the_next_daemon_gets_what_was_taken_and_not_answered,
    the_next_daemon_learns_which_pages_are_present,
    daemon_that_is_handed_the_descriptor_gets_what_was_taken_and_not_answered,
    resume_gives_the_region_to_a_region_descriptor_alone,
    a_killed_daemon_is_a_dead_daemon,
    a_region_lives_as_long_as_it_is_mapped,
    a_region_attached_by_name_is_the_same,
    a_daemon_that_waits_for_itself_can_be_killed,
    sigbus_mode_waiters_get_sigbus_when_the_daemon_dies,
    sigbus_mode_touch_without_a_daemon_gets_sigbus,
    sigbus_mode_next_daemon_serves_again,
    sigbus_mode_present_pages_stay_readable,
    a_fault_that_waits_too_long_gets_sigbus,
    fault_answered_within_the_time_limit_gets_no_sigbus,
    after_a_timeout_the_page_can_still_be_filled,
    read_only_waiter_gets_sigbus_alone_after_the_time_limit,
    signal_does_not_shorten_the_time_limit_of_a_read_only_waiter,
];

/// Drops the daemon of a setting, and leaves a map descriptor and the number of the region.
fn orphan(setting: Setting) -> (u64, MapHandle) {
    let Setting { region, map } = setting;
    (region.id(), map)
}

fn waiters_of_a_dead_daemon_stay_killable() -> Outcome {
    let setting = Setting::new(8)?;
    let readers = [setting.reader(1)?, setting.reader(2)?];
    setting.wait_waiters(2)?;
    equal!(setting.region.next_requests(1)?.len(), 1);
    let (_, map) = orphan(setting);
    ensure!(!map.info()?.attached);
    // They look around once, and wait on.
    wait_until("both wait", || Ok(map.info()?.waiters == 2))?;
    for reader in readers {
        reader.signal(Signal::KILL)?;
        reader.join_killed(Signal::KILL)?;
    }
    equal!(map.info()?.waiters, 0);
    Ok(())
}

fn waiters_of_a_dead_daemon_go_on_with_the_next_one() -> Outcome {
    let setting = Setting::new(8)?;
    let reader = setting.reader(1)?;
    setting.wait_waiters(1)?;
    let (id, map) = orphan(setting);
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(next.take_request()?, 1);
    next.fill([1])?;
    check_words(&reader.join()?, 1)
}

fn a_touch_without_a_daemon_waits_for_the_next_one() -> Outcome {
    let setting = Setting::new(8)?;
    let pages = setting.pages();
    let (id, map) = orphan(setting);
    let reader = Program::start(|| Ok(AreaBuilder::default().map(&map, 0, pages)?.page(3)))?;
    wait_until("it waits", || Ok(map.info()?.waiters == 1))?;
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(next.take_request()?, 3);
    next.fill([3])?;
    check_words(&reader.join()?, 3)
}

fn the_next_daemon_gets_what_was_taken_and_not_answered() -> Outcome {
    let setting = Setting::new(700)?;
    let wanted = [3, 64, 512, 699];
    let readers: Vec<_> = wanted.iter().map(|pgoff| setting.reader(*pgoff)).collect::<Outcome<_>>()?;
    setting.wait_waiters(4)?;
    // Two are taken, one of them is answered.
    let taken = setting.region.next_requests(2)?;
    equal!(taken.len(), 2);
    let answered = taken[0].get() as usize;
    setting.fill([answered])?;
    setting.wait_waiters(3)?;
    let (id, map) = orphan(setting);
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(next.region.info()?.queued, 3);
    let mut again: Vec<usize> = next
        .region
        .next_requests(64)?
        .iter()
        .map(|page| page.get() as usize)
        .collect();
    again.sort_unstable();
    equal!(
        again,
        wanted.into_iter().filter(|pgoff| *pgoff != answered).collect::<Vec<_>>()
    );
    next.fill(again)?;
    for (reader, pgoff) in readers.into_iter().zip(wanted) {
        check_words(&reader.join()?, pgoff)?;
    }
    Ok(())
}

fn the_next_daemon_learns_which_pages_are_present() -> Outcome {
    let setting = Setting::new(1000)?;
    let present = [0, 1, 63, 64, 65, 511, 512, 777, 999];
    setting.fill(present)?;
    let (id, _map) = orphan(setting);
    let next = Control::open()?.attach_id(id)?;
    let map = next.present_map()?;
    equal!(map.present(), present.len() as u64);
    for pgoff in 0..1000 {
        equal!(map.contains(page(pgoff)), present.contains(&pgoff));
    }
    let absent: u64 = map.absent().map(|run| run.count()).sum();
    equal!(absent, 1000 - present.len() as u64);
    Ok(())
}

/// As a service manager does it, which keeps the descriptor of a daemon that dies. The region has a daemon all the time: nobody gets SIGBUS.
fn daemon_that_is_handed_the_descriptor_gets_what_was_taken_and_not_answered() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(700 * PAGE_SIZE as u64).sigbus_without_daemon())?;
    let daemon = Program::start_with(|| {
        setting.region.ready()?;
        setting.fill([3])?;
        // It takes what comes, and answers nothing.
        loop {
            setting.region.next_requests(64)?;
        }
    })?;
    setting.map.wait_ready()?;
    let readers = [setting.reader(64)?, setting.reader(699)?];
    wait_until("both are taken", || {
        let info = setting.region.info()?;
        Ok(info.requested == 2 && info.queued == 0)
    })?;
    daemon.signal(Signal::KILL)?;
    daemon.join_killed(Signal::KILL)?;
    let late = setting.reader(512)?;
    setting.wait_waiters(3)?;
    equal!(setting.region.info()?.queued, 1);
    let Setting { region, map } = setting;
    let kept = region.as_fd().try_clone_to_owned()?;
    drop(region);
    ensure!(map.info()?.attached && map.info()?.ready);
    let (region, name) = Region::resume(kept)?;
    equal!(name, None);
    equal!(region.pages().count(), 700);
    let next = Setting {
        region: region.into(),
        map,
    };
    equal!(next.region.present_map()?.present(), 1);
    equal!(next.region.info()?.queued, 3);
    let mut again: Vec<_> = next.region.next_requests(64)?.iter().map(|page| page.get()).collect();
    again.sort_unstable();
    equal!(again, [64, 512, 699]);
    next.fill([64, 512, 699])?;
    for (reader, pgoff) in readers.into_iter().chain([late]).zip([64, 699, 512]) {
        check_words(&reader.join()?, pgoff)?;
    }
    Ok(())
}

fn resume_gives_the_region_to_a_region_descriptor_alone() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).name("kept"))?;
    setting.fill([2])?;
    let resumed = calls::resume(setting.region.as_fd())?;
    equal!((resumed.id, resumed.size), (setting.region.id(), 8 * PAGE_SIZE as u64));
    // The staging file is the region's own.
    let mut bytes = vec![0; PAGE_SIZE];
    File::from(resumed.shmem).read_exact_at(&mut bytes, 2 * PAGE_SIZE as u64)?;
    equal!(bytes, bytes_of(&contents(2)));
    let (_, name) = Region::resume(setting.region.as_fd().try_clone_to_owned()?)?;
    equal!(name.map(|name| name.to_string()).as_deref(), Some("kept"));
    let map = setting.map.as_fd().try_clone_to_owned()?;
    ensure!(
        matches!(Region::resume(map), Err(vmem::Error::MapOnly { .. })),
        "a map descriptor"
    );
    let staging = setting.region.staging().try_clone()?;
    let stranger = Region::resume(staging.into());
    ensure!(matches!(stranger, Err(vmem::Error::NotVmem { .. })), "a staging file");
    Ok(())
}

fn a_killed_daemon_is_a_dead_daemon() -> Outcome {
    let setting = Setting::new(8)?;
    let (id, map) = orphan(setting);
    let daemon = Program::start(|| {
        let region = Control::open()?.attach_id(id)?;
        region.ready()?;
        // It takes one request, and never answers.
        region.next_requests(1)?;
        region.next_requests(1)?;
        Ok(vec![])
    })?;
    map.wait_ready()?;
    let reader = Program::start(|| Ok(AreaBuilder::default().map(&map, 0, 8)?.page(5)))?;
    wait_until("the request is taken", || {
        let info = map.info()?;
        Ok(info.requested == 1 && info.queued == 0)
    })?;
    daemon.signal(Signal::KILL)?;
    daemon.join_killed(Signal::KILL)?;
    wait_until("nobody is attached", || Ok(!map.info()?.attached))?;
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(next.take_request()?, 5);
    next.fill([5])?;
    check_words(&reader.join()?, 5)
}

fn a_region_lives_as_long_as_it_is_mapped() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill([2])?;
    let area = setting.area()?;
    let id = setting.region.id();
    drop(setting);
    crate::setting::check_page(&area, 2, 2)?;
    let next = Control::open()?.attach_id(id)?;
    equal!(next.present_map()?.present(), 1);
    drop(next);
    drop(area);
    wait_until("the region is gone", || {
        Ok(matches!(Control::open()?.attach_id(id), Err(vmem::Error::NoSuchRegion)))
    })
}

fn a_region_attached_by_name_is_the_same() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).name("again"))?;
    setting.fill([2])?;
    let (id, _map) = orphan(setting);
    let next = Control::open()?.attach("again")?;
    equal!(next.id(), id);
    equal!(next.size(), 8 * PAGE_SIZE as u64);
    equal!(next.present_map()?.present(), 1);
    Ok(())
}

/// Its contents lie in an absent page of the region that it serves.
fn a_daemon_that_waits_for_itself_can_be_killed() -> Outcome {
    let setting = Setting::new(8)?;
    let id = setting.region.id();
    let daemon = Program::start_with(|| {
        let source = setting.area()?;
        let mut fill = vmem_sys::vmem_fill {
            nr: 1,
            ..Default::default()
        };
        let range = vmem_sys::vmem_fill_range {
            pgoff: 1,
            nr_pages: 1,
            addr: (source.address() + 5 * PAGE_SIZE) as u64,
        };
        fill.ranges = std::ptr::from_ref(&range) as u64;
        vmem_functional_sys::ioctl(&*setting.region, vmem_sys::VMEM_FILL_PAGES, &mut fill)?;
        Ok(vec![])
    })?;
    equal!(setting.take_request()?, 5);
    setting.wait_waiters(1)?;
    let (_, map) = orphan(setting);
    daemon.signal(Signal::KILL)?;
    daemon.join_killed(Signal::KILL)?;
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    equal!(next.region.info()?.present, 0);
    next.fill(0..8)?;
    next.checker(0..8)?.join()?;
    Ok(())
}

fn with_sigbus() -> Outcome<Setting> {
    Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).sigbus_without_daemon())
}

fn sigbus_mode_waiters_get_sigbus_when_the_daemon_dies() -> Outcome {
    let setting = with_sigbus()?;
    let reader = setting.reader(1)?;
    setting.wait_waiters(1)?;
    let (_, map) = orphan(setting);
    reader.join_killed(Signal::BUS)?;
    ensure!(map.info()?.sigbus >= 1);
    Ok(())
}

fn sigbus_mode_touch_without_a_daemon_gets_sigbus() -> Outcome {
    let (_, map) = orphan(with_sigbus()?);
    let reader = Program::start(|| Ok(AreaBuilder::default().map(&map, 0, 8)?.page(3)))?;
    reader.join_killed(Signal::BUS)
}

fn sigbus_mode_next_daemon_serves_again() -> Outcome {
    let (id, map) = orphan(with_sigbus()?);
    let early = Program::start(|| Ok(AreaBuilder::default().map(&map, 0, 8)?.page(3)))?;
    early.join_killed(Signal::BUS)?;
    let next = Setting {
        region: Control::open()?.attach_id(id)?.into(),
        map,
    };
    let reader = next.reader(3)?;
    next.wait_waiters(1)?;
    next.fill([3])?;
    check_words(&reader.join()?, 3)
}

fn sigbus_mode_present_pages_stay_readable() -> Outcome {
    let setting = with_sigbus()?;
    setting.fill([3])?;
    let (_, map) = orphan(setting);
    let reader = Program::start(|| Ok(AreaBuilder::default().map(&map, 0, 8)?.page(3)))?;
    check_words(&reader.join()?, 3)
}

fn impatient(timeout: Duration) -> Outcome<Setting> {
    Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).fault_timeout(timeout))
}

fn a_fault_that_waits_too_long_gets_sigbus() -> Outcome {
    let setting = impatient(Duration::from_millis(50))?;
    setting.reader(1)?.join_killed(Signal::BUS)?;
    let info = setting.region.info()?;
    equal!((info.sigbus, info.waiters), (1, 0));
    Ok(())
}

fn fault_answered_within_the_time_limit_gets_no_sigbus() -> Outcome {
    let setting = impatient(Duration::from_secs(3600))?;
    let reader = setting.reader(1)?;
    setting.wait_waiters(1)?;
    setting.fill([1])?;
    check_words(&reader.join()?, 1)?;
    equal!(setting.region.info()?.sigbus, 0);
    Ok(())
}

fn after_a_timeout_the_page_can_still_be_filled() -> Outcome {
    let setting = impatient(Duration::from_millis(50))?;
    setting.reader(1)?.join_killed(Signal::BUS)?;
    setting.fill([1])?;
    check_words(&setting.reader(1)?.join()?, 1)
}

/// What a private mapping is, too: its writes are its own.
fn read_only_waiter_gets_sigbus_alone_after_the_time_limit() -> Outcome {
    let builder = RegionBuilder::new(8 * PAGE_SIZE as u64).name("slow");
    let setting = Setting::create(builder.fault_timeout(Duration::from_millis(300)))?;
    let reader = MapHandle::open("slow", Access::ReadOnly)?;
    let (read_only, private) = (AreaBuilder::default().read_only(), AreaBuilder::default().private());
    for area in [read_only, private, private.read_only()] {
        let toucher = Program::start(|| {
            area.map(&reader, 0, 8)?.peek(PAGE_SIZE);
            Ok(vec![])
        })?;
        toucher.join_killed(Signal::BUS)?;
        let caller = Program::start(|| {
            let (area, (_end, pipe)) = (area.map(&reader, 0, 8)?, pipe()?);
            refused!(write_from(&pipe, whole_page(&area, 1)), FAULT);
            Ok(vec![])
        })?;
        caller.join()?;
    }
    let info = setting.region.info()?;
    equal!((info.unreadable, info.requested, info.waiters), (0, 1, 0));
    // A system call may touch the page more than once.
    ensure!(info.sigbus >= 6, "SIGBUS {} times", info.sigbus);
    // Nobody has to be told that it can be read again, and who waited has done no harm to who can write.
    let writer = setting.reader(1)?;
    setting.wait_waiters(1)?;
    setting.fill([1])?;
    check_words(&writer.join()?, 1)
}

fn signal_does_not_shorten_the_time_limit_of_a_read_only_waiter() -> Outcome {
    let setting = impatient(Duration::from_secs(3600))?;
    let program = Program::start(|| {
        catch_signal(Signal::USR1.as_raw(), true)?;
        let before = caught();
        let (area, (_end, pipe)) = (setting.area_as(AreaBuilder::default().private())?, pipe()?);
        equal!(write_from(&pipe, whole_page(&area, 1))?, PAGE_SIZE);
        Ok(vec![(caught() - before) as u64])
    })?;
    setting.wait_waiters(1)?;
    // It leaves its wait once to look around, and goes on waiting.
    let slept = program.sleeps()?;
    program.signal(Signal::USR1)?;
    wait_until("it waits again", || {
        Ok(program.sleeps()? > slept && setting.region.info()?.waiters == 1)
    })?;
    equal!(setting.region.info()?.sigbus, 0);
    setting.fill([1])?;
    equal!(program.join()?, [1]);
    Ok(())
}

fn whole_page(area: &Area, page: usize) -> MemoryAt<'_> {
    MemoryAt {
        area,
        offset: page * PAGE_SIZE,
        len: PAGE_SIZE,
    }
}
