// SPDX-License-Identifier: GPL-2.0-or-later
//! Everybody dies, at any moment and in any order.
//!
//! `VMEM_ROUNDS` says how often each (`make death`: a thousand times), and `VMEM_SEED` which moments; the order of events is the machine's.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use vmem::{Access, Control, Error, Fill, MapHandle, PAGE_SIZE, PageIndex, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, close_descriptors};

use super::module::cannot_remove;
use super::stress::Numbers;
use super::vmemd::{self, Daemon, Scratch, Source};
use crate::failure::{Outcome, ensure, equal};
use crate::kernel::Cgroup;
use crate::program::Program;
use crate::server::Server;
use crate::setting::{Setting, bytes_of, check_page, contents, page};
use crate::watchdog::still_moving;
use crate::world::{insert_module, module_users, nodes, remove_module, wait_until};

pub(super) mod tracker;

crate::tests![
    vmemd_and_programs_are_killed_at_random_moments,
    whoever_is_stopped_holds_up_nobody_else_for_good,
    descriptors_can_be_closed_in_every_order,
    a_program_can_exec_while_its_threads_wait,
    a_program_can_exit_while_its_threads_wait,
    a_program_that_runs_out_of_memory_dies_alone,
    a_mapping_survives_forks_without_end,
];

fn number(variable: &str, default: u64) -> Outcome<u64> {
    Ok(std::env::var(variable).map_or(Ok(default), |value| value.parse())?)
}

/// The rounds of a test: `VMEM_ROUNDS`, or so many.
fn rounds(default: u64) -> Outcome<std::ops::Range<u64>> {
    Ok(0..number("VMEM_ROUNDS", default)?)
}

const NAME: &str = "mortal";
const PAGES: u64 = 2048;
/// The module is removed and inserted again after every so many deaths only: that takes longer than a death.
const REMOVALS: u64 = 16;

/// The module is in use: it cannot be removed.
fn before(round: u64) -> Outcome {
    still_moving();
    if round % REMOVALS == 0 { cannot_remove() } else { Ok(()) }
}

/// Nothing of the dead is left: nothing uses the module, and it can be removed.
fn after(round: u64) -> Outcome {
    wait_until("nothing uses the module", || Ok(module_users()? == 0))?;
    equal!(nodes()?, Vec::<String>::new());
    if round % REMOVALS == 0 {
        remove_module()?;
        insert_module()?;
    }
    Ok(())
}

/// [`after`] the last use of a region: the next daemon has it, and after that one nobody.
fn after_region(setting: Setting, round: u64) -> Outcome {
    let Setting { region, map } = setting;
    let id = region.id();
    drop(region);
    let next = Control::open()?.attach_id(id)?;
    equal!(next.info()?.waiters, 0);
    drop((next, map));
    after(round)
}

/// A program that reads random pages for ever, by several threads, and finds the source's contents in each.
fn reader(seed: u64) -> Outcome<Program> {
    Program::start(|| {
        let handle = MapHandle::open(NAME, Access::ReadWrite)?;
        let memory = vmemd::map(&handle)?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let (memory, mut numbers) = (&memory, Numbers(seed * 3 + thread + 1));
                    scope.spawn(move || -> Outcome {
                        loop {
                            vmemd::check_page(memory, numbers.below(PAGES as usize) as u64)?;
                        }
                    })
                })
                .collect();
            // Whichever ends has found a wrong page.
            while !threads.iter().any(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(1));
            }
            std::process::exit(1)
        })
    })
}

/// Whether somebody waits for a page, or nobody ever will.
fn in_need(handle: &MapHandle) -> Outcome<bool> {
    let info = handle.info()?;
    Ok(info.waiters > 0 || info.present == PAGES)
}

fn vmemd_and_programs_are_killed_at_random_moments() -> Outcome {
    let (rounds, seed) = (rounds(25)?, number("VMEM_SEED", 1)?);
    let mut numbers = Numbers(seed);
    let file = Scratch::new("mortal", PAGES)?;
    let source = Source::new(&[&file.export(NAME)])?;
    let (mut region, mut regions, mut pending) = (None, 0, 0);
    for round in rounds.clone() {
        let mut daemon = Daemon::new(&source.address, &["--no-background", "--attach"])?;
        let handle = match region.take() {
            Some(handle) => handle,
            None => {
                regions += 1;
                vmemd::open(NAME)?
            }
        };
        wait_until("vmemd serves", || Ok(handle.info()?.ready))?;
        let program = reader(seed + round)?;
        wait_until("faults are pending", || in_need(&handle))?;
        before(round)?;
        thread::sleep(Duration::from_micros(numbers.below(20_000) as u64));
        let deaths = numbers.below(3);
        if deaths == 0 {
            daemon.process.kill()?;
            wait_until("all wait, or nothing is left to wait for", || {
                let info = handle.info()?;
                Ok(info.waiters == 3 || info.present == PAGES)
            })?;
        } else {
            wait_until("faults are pending", || in_need(&handle))?;
        }
        let info = handle.info()?;
        if deaths == 1 {
            daemon.process.signal(Signal::KILL)?;
        }
        program.signal(Signal::KILL)?;
        thread::sleep(Duration::from_micros(numbers.below(2_000) as u64));
        pending += u64::from(info.waiters > 0);
        program.join_killed(Signal::KILL)?;
        daemon.process.kill()?;
        wait_until("nobody is left", || {
            let info = handle.info()?;
            Ok(!info.attached && info.waiters == 0)
        })?;
        if handle.info()?.present < PAGES {
            region = Some(handle);
            continue;
        }
        // All of it is here, in the pieces that so many daemons have brought.
        let memory = handle.map(Access::ReadWrite, vmem::Sharing::Shared)?;
        (0..PAGES).try_for_each(|pgoff| vmemd::check_page(&memory, pgoff))?;
    }
    if let Some(handle) = region {
        // The rest comes from one who is left alone.
        let _daemon = Daemon::new(&source.address, &["--resume"])?;
        let memory = vmemd::map(&handle)?;
        (0..PAGES).try_for_each(|pgoff| vmemd::check_page(&memory, pgoff))?;
    }
    println!(
        "  {} rounds on {regions} regions; faults were pending at {pending} deaths",
        rounds.end
    );
    ensure!(pending * 2 > rounds.end, "faults were pending at {pending} deaths only");
    after(0)
}

fn whoever_is_stopped_holds_up_nobody_else_for_good() -> Outcome {
    let file = Scratch::new("mortal", PAGES)?;
    let source = Source::new(&[&file.export(NAME)])?;
    let mut served: Option<(Daemon, MapHandle)> = None;
    for round in rounds(8)? {
        let (mut daemon, handle) = match served.take() {
            Some(served) => served,
            None => {
                let daemon = Daemon::new(&source.address, &["--no-background"])?;
                let handle = vmemd::open(NAME)?;
                wait_until("vmemd serves", || Ok(handle.info()?.ready))?;
                (daemon, handle)
            }
        };
        before(round)?;
        // A stopped daemon is a slow one: who waits can be killed, and goes on when it does.
        let stays = reader(round)?;
        let goes = reader(round + 100)?;
        daemon.process.signal(Signal::STOP)?;
        wait_until("all wait", || Ok(handle.info()?.waiters == 6))?;
        goes.signal(Signal::KILL)?;
        goes.join_killed(Signal::KILL)?;
        wait_until("those of the dead have gone", || Ok(handle.info()?.waiters == 3))?;
        // A stopped program misses nothing.
        stays.signal(Signal::STOP)?;
        daemon.process.signal(Signal::CONT)?;
        wait_until("its pages have come", || Ok(handle.info()?.requested == 0))?;
        let there = handle.info()?.present;
        stays.signal(Signal::CONT)?;
        wait_until("it goes on", || Ok(handle.info()?.present > there))?;
        stays.signal(Signal::KILL)?;
        stays.join_killed(Signal::KILL)?;
        if handle.info()?.present < PAGES / 2 {
            served = Some((daemon, handle));
        } else {
            // Soon there would be nothing left to wait for.
            daemon.process.kill()?;
            drop((daemon, handle));
            after(0)?;
        }
    }
    drop(served);
    after(0)
}

/// All orders of `len` things.
fn orders(len: usize) -> Vec<Vec<usize>> {
    if len == 0 {
        return vec![vec![]];
    }
    let insert = |order: Vec<usize>| {
        (0..len).map(move |at| {
            let mut order = order.clone();
            order.insert(at, len - 1);
            order
        })
    };
    orders(len - 1).into_iter().flat_map(insert).collect()
}

fn descriptors_can_be_closed_in_every_order() -> Outcome {
    const STAGING: usize = 1;
    let all = orders(5);
    equal!(all.len(), 120);
    // All of them, more than once if there are to be so many rounds.
    let rounds = 0..rounds(0)?.end.max(all.len() as u64);
    for (round, order) in rounds.zip(all.iter().cycle()) {
        let setting = Setting::create(RegionBuilder::new(4 * PAGE_SIZE as u64).name(NAME))?;
        setting.fill([1])?;
        let node = MapHandle::open(NAME, Access::ReadOnly)?;
        let area = setting.area()?;
        let mut waiter = Some(waiter_alone(&setting)?);
        // All orders are there with the waiter's death at each place, after six times as many rounds.
        let death = (round + round / all.len() as u64) as usize % 6;
        let control = Control::open()?;
        before(round)?;
        let Setting { region, map } = setting;
        let id = region.id();
        let region = std::sync::Arc::into_inner(region).ok_or("nobody else has it")?;
        let (vmem, staging) = region.into_fds();
        let mut things: [Option<Box<dyn std::any::Any>>; 5] = [
            Some(Box::new(vmem)),
            Some(Box::new(staging)),
            Some(Box::new(map)),
            Some(Box::new(node)),
            Some(Box::new(area)),
        ];
        for nr in 0..6 {
            if nr == death {
                let waiter = waiter.take().ok_or("it dies once")?;
                waiter.signal(Signal::KILL)?;
                waiter.join_killed(Signal::KILL)?;
            }
            let Some(&thing) = order.get(nr) else { break };
            things[thing] = None;
            // The staging file is the only one that keeps nothing.
            let kept = waiter.is_some() || order[nr + 1..].iter().any(|&left| left != STAGING);
            let found = !matches!(control.attach_id(id), Err(Error::NoSuchRegion));
            ensure!(found == kept, "in the order {order:?}, after {nr}: found is {found}");
        }
        ensure!(matches!(control.attach_id(id), Err(Error::NoSuchRegion)));
        drop(control);
        after(round)?;
    }
    Ok(())
}

/// A program that waits for a page of the region, and has nothing of it but a mapping.
fn waiter_alone(setting: &Setting) -> Outcome<Program> {
    let program = Program::start(|| {
        let area = setting.area()?;
        close_descriptors(|target| target.contains("[vmem") || target.starts_with("/dev/vmem/"))?;
        Ok(area.page(2))
    })?;
    setting.wait_waiters(1)?;
    Ok(program)
}

/// A program, of which some threads wait for pages, and the first does something else.
fn with_waiting_threads(setting: &Setting, then: impl FnOnce() -> Outcome) -> Outcome<Program> {
    let map = &setting.map;
    Program::start(move || {
        let area = std::sync::Arc::new(AreaBuilder::default().map(map, 0, 8)?);
        for pgoff in 1..4 {
            let area = area.clone();
            thread::spawn(move || area.peek(pgoff * PAGE_SIZE));
        }
        wait_until("they wait", || Ok(map.info()?.waiters == 3))?;
        then()?;
        Ok(vec![])
    })
}

/// The dead have left nothing, and the region goes on.
fn goes_on(setting: Setting, round: u64) -> Outcome {
    wait_until("nobody waits", || Ok(setting.region.info()?.waiters == 0))?;
    equal!(setting.region.info()?.mappings, 0);
    let mut wanted: Vec<usize> = setting
        .region
        .next_requests(8)?
        .iter()
        .map(|page| page.get() as usize)
        .collect();
    wanted.sort_unstable();
    equal!(wanted, [1, 2, 3]);
    setting.fill_all()?;
    setting.checker(0..8)?.join()?;
    after_region(setting, round)
}

fn a_program_can_exec_while_its_threads_wait() -> Outcome {
    for round in rounds(4)? {
        let setting = Setting::new(8)?;
        before(round)?;
        let program = with_waiting_threads(&setting, || Err(Command::new("/bin/true").exec().into()))?;
        equal!(program.end()?, vmem_functional_sys::End::Exited(0));
        goes_on(setting, round)?;
    }
    Ok(())
}

fn a_program_can_exit_while_its_threads_wait() -> Outcome {
    for round in rounds(4)? {
        let setting = Setting::new(8)?;
        before(round)?;
        let program = with_waiting_threads(&setting, || Ok(()))?;
        program.join()?;
        goes_on(setting, round)?;
    }
    Ok(())
}

fn a_program_that_runs_out_of_memory_dies_alone() -> Outcome {
    // A tenth of the rounds: there are thousands of pages to fill in each.
    (0..rounds(10)?.end.div_ceil(10)).try_for_each(runs_out_of_memory)
}

fn runs_out_of_memory(round: u64) -> Outcome {
    const PAGES: usize = 2560;
    let setting = Setting::new(PAGES)?;
    let group = Cgroup::new("mortal")?;
    group.set("memory.max", "8M")?;
    group.set("memory.swap.max", "0")?;
    let program = Program::start(|| {
        group.enter()?;
        let area = setting.area()?;
        (0..PAGES).try_for_each(|pgoff| check_page(&area, pgoff, pgoff))?;
        Ok(vec![])
    })?;
    wait_until(
        "the program has mapped the region",
        || Ok(setting.region.info()?.mappings > 0),
    )?;
    before(round)?;
    // Its pages are charged to its group, which kills it when they are too many.
    let mut refused = None;
    while setting.region.info()?.mappings > 0 {
        for wanted in setting.region.next_requests_timeout(8, Duration::from_millis(20))? {
            if !fills(&setting, wanted)? {
                refused = Some(wanted);
            }
        }
    }
    program.join_killed(Signal::KILL)?;
    // What its death has freed is soon used up, and there is nobody left to kill: a fill says ENOMEM then.
    for wanted in setting.region.pages().iter() {
        if refused.is_none() && !fills(&setting, wanted)? {
            refused = Some(wanted);
        }
    }
    let refused = refused.ok_or("more pages were filled than the group may have")?;
    // More memory for the group, and the region goes on.
    group.set("memory.max", "max")?;
    // A request that was taken does not come again: the daemon brings what was refused, and the rest.
    ensure!(fills(&setting, refused)?);
    for page in setting.region.pages().iter() {
        ensure!(fills(&setting, page)?, "{page} was refused");
    }
    equal!(setting.region.info()?.present, PAGES as u64);
    setting.checker(0..PAGES)?.join()?;
    after_region(setting, round)
}

/// Fills a page. Whether there was memory for it.
fn fills(setting: &Setting, page: PageIndex) -> Outcome<bool> {
    let filled = setting
        .region
        .fill(&[Fill::new(page, &bytes_of(&contents(page.get())))?])
        .complete();
    match filled {
        Ok(filled) => {
            if filled > 0 {
                still_moving();
            }
            Ok(true)
        }
        Err(Error::NoMemory { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn a_mapping_survives_forks_without_end() -> Outcome {
    const PAGES: usize = 512;
    let setting = Setting::new(PAGES)?;
    let forker = |seed| {
        let mut numbers = Numbers(seed);
        let setting = &setting;
        Program::start(move || {
            let area = setting.area()?;
            for _ in 0..60 {
                let pgoff = numbers.below(PAGES);
                let child = Program::start(|| {
                    check_page(&area, pgoff, pgoff)?;
                    // And one of its own, which is left alone.
                    let grandchild = Program::start(|| {
                        check_page(&area, PAGES - 1 - pgoff, PAGES - 1 - pgoff)?;
                        Ok(vec![])
                    })?;
                    grandchild.join()
                })?;
                if numbers.below(3) == 0 {
                    child.signal(Signal::KILL)?;
                    child.join_unless_killed(Signal::KILL)?;
                } else {
                    child.join()?;
                }
            }
            Ok(vec![])
        })
    };
    let forkers = [forker(1)?, forker(2)?];
    let server = Server::start(&setting.region);
    wait_until("they are under way", || Ok(setting.region.info()?.present > 20))?;
    for pgoff in 0..PAGES {
        still_moving();
        let bytes = bytes_of(&contents(pgoff as u64));
        setting.region.fill(&[Fill::new(page(pgoff), &bytes)?]).complete()?;
    }
    server.stop()?;
    setting.region.make_vma_anonymous()?;
    for forker in forkers {
        forker.join()?;
    }
    // What was forked just then is converted now.
    setting.region.make_vma_anonymous()?;
    equal!(setting.region.info()?.mappings, 0);
    Ok(())
}
