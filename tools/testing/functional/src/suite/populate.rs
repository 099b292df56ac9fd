// SPDX-License-Identifier: GPL-2.0-or-later
//! MAKE_PAGES_PRESENT: present pages go into the page tables of all who map the region.

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use vmem::{Control, PAGE_SIZE, RegionBuilder};
use vmem_functional_sys::{AreaBuilder, End, fork};

use crate::failure::{Outcome, ensure, equal};
use crate::kernel::{self, checks_itself};
use crate::program::Program;
use crate::setting::{Board, Setting, check_page, mapped_pages, minor_faults, pages};
use crate::watchdog::still_moving;
use crate::world::wait_until;

crate::tests![
    make_pages_present_maps_pages_in_every_process,
    populated_pages_do_not_fault,
    absent_pages_are_passed_over,
    several_ranges_are_done_in_one_call,
    pages_are_counted_once_per_mapping,
    parts_and_offsets_get_the_right_pages,
    private_mappings_are_populated_and_still_copy,
    read_only_mappings_are_populated,
    a_region_that_nobody_maps_has_nothing_to_populate,
    an_unreadable_page_is_passed_over,
    populating_does_not_disturb_what_the_program_wrote,
    processes_that_end_meanwhile_are_left_alone,
    mappings_without_number_hold_up_neither_populate_nor_conversion,
    populate_and_conversion_reach_processes_without_number,
];

/// How many processes one call reaches.
const REACHED: usize = 32_768;

fn make_pages_present_maps_pages_in_every_process() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill(10..40)?;
    let board = Board::new()?;
    let programs: Vec<_> = (0..3)
        .map(|slot| {
            Program::start(|| {
                let area = setting.area()?;
                ensure!(mapped_pages(&area)?.iter().all(|mapped| !mapped));
                board.set(slot, 1)?;
                board.wait(10, 1)?;
                // Before any touch.
                Ok(mapped_pages(&area)?.into_iter().map(u64::from).collect())
            })
        })
        .collect::<Outcome<_>>()?;
    for slot in 0..3 {
        board.wait(slot, 1)?;
    }
    equal!(setting.region.make_pages_present(&[pages(0, 64)]).complete()?, 3 * 30);
    board.set(10, 1)?;
    for program in programs {
        let expected: Vec<u64> = (0..64).map(|pgoff| u64::from((10..40).contains(&pgoff))).collect();
        equal!(program.join()?, expected);
    }
    Ok(())
}

fn populated_pages_do_not_fault() -> Outcome {
    const PAGES: usize = 1024;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let area = setting.area()?;
    setting.region.make_pages_present(&[pages(0, PAGES)]).complete()?;
    let before = minor_faults()?;
    let mut sum = 0;
    for pgoff in 0..PAGES {
        sum += u64::from(area.peek(pgoff * PAGE_SIZE));
    }
    let faults = minor_faults()? - before;
    ensure!(faults < 16, "{faults} faults in {PAGES} populated pages (sum {sum})");
    Ok(())
}

fn absent_pages_are_passed_over() -> Outcome {
    let setting = Setting::new(16)?;
    setting.fill([1, 2, 9])?;
    let area = setting.area()?;
    let progress = setting.region.make_pages_present(&[pages(0, 16)]);
    equal!(progress.ranges, 1);
    equal!(progress.complete()?, 3);
    for (pgoff, mapped) in mapped_pages(&area)?.into_iter().enumerate() {
        equal!(mapped, [1, 2, 9].contains(&pgoff));
    }
    // Nothing was asked for.
    setting.no_request()?;
    equal!(setting.region.info()?.faults, 0);
    Ok(())
}

fn several_ranges_are_done_in_one_call() -> Outcome {
    let setting = Setting::new(1200)?;
    setting.fill_all()?;
    let area = setting.area()?;
    let ranges = [pages(0, 1), pages(100, 10), pages(505, 20), pages(1199, 1), pages(100, 2)];
    let progress = setting.region.make_pages_present(&ranges);
    equal!(progress.ranges, 5);
    equal!(progress.complete()?, 1 + 10 + 20 + 1 + 2);
    let mapped = mapped_pages(&area)?;
    for range in ranges {
        for page in range.iter() {
            ensure!(mapped[page.get() as usize], "{page} is not mapped");
        }
    }
    Ok(())
}

fn pages_are_counted_once_per_mapping() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill(0..4)?;
    let populate = || setting.region.make_pages_present(&[pages(0, 8)]).complete();
    let one = setting.area()?;
    equal!(populate()?, 4);
    let other = AreaBuilder::default().map(&setting.map, 2, 4)?;
    equal!(populate()?, 4 + 2);
    // Those that are mapped already count as well.
    equal!(populate()?, 4 + 2);
    drop(one);
    equal!(populate()?, 2);
    drop(other);
    equal!(populate()?, 0);
    Ok(())
}

fn parts_and_offsets_get_the_right_pages() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill_all()?;
    let area = AreaBuilder::default().map(&setting.map, 20, 10)?;
    equal!(
        setting.region.make_pages_present(&[pages(15, 8), pages(28, 20)]).complete()?,
        3 + 2
    );
    // Present neighbours may have come with them.
    let mapped = mapped_pages(&area)?;
    ensure!((0..10).all(|at| mapped[at] || (3..8).contains(&at)), "{mapped:?}");
    for at in 0..10 {
        check_page(&area, at, 20 + at)?;
    }
    // A mapping with a hole.
    let area = setting.area()?;
    area.unmap(10..20)?;
    setting.region.make_pages_present(&[pages(0, 64)]).complete()?;
    let mapped = mapped_pages(&area)?;
    ensure!(
        mapped
            .iter()
            .enumerate()
            .all(|(pgoff, mapped)| *mapped != (10..20).contains(&pgoff))
    );
    for pgoff in (0..10).chain(20..64) {
        check_page(&area, pgoff, pgoff)?;
    }
    Ok(())
}

fn private_mappings_are_populated_and_still_copy() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let private = setting.area_as(AreaBuilder::default().private())?;
    setting.region.make_pages_present(&[pages(0, 8)]).complete()?;
    ensure!(mapped_pages(&private)?.iter().all(|mapped| *mapped));
    private.write_page(3, &crate::setting::contents(30));
    check_page(&private, 3, 30)?;
    check_page(&setting.area()?, 3, 3)?;
    // And what was copied stays the copy.
    setting.region.make_pages_present(&[pages(0, 8)]).complete()?;
    check_page(&private, 3, 30)?;
    check_page(&private, 4, 4)
}

fn read_only_mappings_are_populated() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let area = setting.area_as(AreaBuilder::default().read_only())?;
    equal!(setting.region.make_pages_present(&[pages(0, 8)]).complete()?, 8);
    ensure!(mapped_pages(&area)?.iter().all(|mapped| *mapped));
    for pgoff in 0..8 {
        check_page(&area, pgoff, pgoff)?;
    }
    Ok(())
}

fn a_region_that_nobody_maps_has_nothing_to_populate() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    let progress = setting.region.make_pages_present(&[pages(0, 4), pages(4, 4)]);
    equal!(progress.ranges, 2);
    equal!(progress.complete()?, 0);
    Ok(())
}

fn an_unreadable_page_is_passed_over() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill([0, 2])?;
    setting.region.mark_unreadable(&[pages(1, 1)]).complete()?;
    let area = setting.area()?;
    equal!(setting.region.make_pages_present(&[pages(0, 8)]).complete()?, 2);
    ensure!(!mapped_pages(&area)?[1]);
    equal!(setting.region.info()?.sigbus, 0);
    Ok(())
}

fn populating_does_not_disturb_what_the_program_wrote() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).name("busy"))?;
    setting.fill_all()?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        let mut round = 0u64;
        while board.get(0)? == 0 {
            round += 1;
            for pgoff in 0..8 {
                area.write_page(pgoff, &[round; 512]);
                ensure!(
                    area.page(pgoff).iter().all(|word| *word == round),
                    "page {pgoff} lost round {round}"
                );
            }
            board.set(1, round)?;
        }
        Ok(vec![round])
    })?;
    board.wait(1, 1)?;
    for _ in 0..200 {
        setting.region.make_pages_present(&[pages(0, 8)]).complete()?;
    }
    wait_until("the program has gone on", || Ok(board.get(1)? > 2))?;
    board.set(0, 1)?;
    program.join()?;
    drop(setting);
    wait_until("the name is gone", || {
        Ok(matches!(Control::open()?.attach("busy"), Err(vmem::Error::NoSuchRegion)))
    })
}

/// A process that is being torn down gets no pages: they would stay mapped, and the kernel would complain of its counters.
fn processes_that_end_meanwhile_are_left_alone() -> Outcome {
    const CHILDREN: u64 = 100;
    const PAGES: usize = 512;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let board = Board::new()?;
    let parents: Vec<_> = (0..2)
        .map(|slot| {
            Program::start(|| {
                let _area = setting.area()?;
                for nr in 1..=CHILDREN {
                    Program::start(|| Ok(vec![]))?.join()?;
                    board.set(slot, nr)?;
                }
                Ok(vec![])
            })
        })
        .collect::<Outcome<_>>()?;
    let (mut before, mut ended) = (0, 0);
    while ended < 2 * CHILDREN {
        if ended > before {
            before = ended;
            still_moving();
        }
        ended = board.get(0)? + board.get(1)?;
        setting.region.make_pages_present(&[pages(0, PAGES)]).complete()?;
    }
    for parent in parents {
        parent.join()?;
    }
    Ok(())
}

/// Eight programs with a mapping each, and behind them, in the kernel's order of a file's mappings, some with as many as a process can have.
fn mappings_without_number_hold_up_neither_populate_nor_conversion() -> Outcome {
    const FEW: usize = 8;
    const MANY: usize = 5;
    // Kernels that check themselves take minutes for so many, and the programs do not wait for so long.
    let each = if checks_itself() { 1_000 } else { 60_000 };
    let setting = Setting::new(2)?;
    setting.fill_all()?;
    let board = Board::new()?;
    let mut programs = Vec::new();
    for slot in 0..FEW {
        programs.push(Program::start(|| {
            let area = AreaBuilder::default().map(&setting.map, 0, 1)?;
            board.set(slot, 1)?;
            board.wait(63, 1)?;
            check_page(&area, 0, 0)?;
            Ok(vec![])
        })?);
        board.wait(slot, 1)?;
    }
    let areas = (0..each)
        .map(|_| Ok(AreaBuilder::default().map(&setting.map, 1, 1)?))
        .collect::<Outcome<Vec<_>>>()?;
    // This one has them, too.
    for slot in FEW..FEW + MANY - 1 {
        programs.push(Program::start(|| {
            board.set(slot, 1)?;
            board.wait(63, 1)?;
            check_page(&areas[each - 1], 0, 1)?;
            Ok(vec![])
        })?);
        board.wait(slot, 1)?;
        still_moving();
    }
    // One page in few places, and not one in many, which takes its time. A process that has just been made may hold its lock for longer than
    // the call waits, on a kernel that checks itself.
    wait_until("the page is in all places", || {
        Ok(setting.region.make_pages_present(&[pages(0, 1)]).complete()? == FEW as u64)
    })?;
    still_moving();
    equal!(setting.region.info()?.mappings, 4096);
    setting.region.make_vma_anonymous()?;
    still_moving();
    equal!(setting.region.info()?.mappings, 0);
    check_page(&areas[0], 0, 1)?;
    board.set(63, 1)?;
    for program in programs {
        program.join()?;
    }
    Ok(())
}

/// `VMEM_PROCESSES` says how many processes map the region besides the test (`make death`: more than [`REACHED`]); a thousand, if it does not. A call of
/// populate reaches [`REACHED`] of them, and conversion all.
fn populate_and_conversion_reach_processes_without_number() -> Outcome {
    let processes = std::env::var("VMEM_PROCESSES").map_or(Ok(1_000), |number| number.parse::<usize>())?;
    // Of itself a machine with few processors has numbers for 32,768 processes.
    let _numbers = kernel::Setting::new("/proc/sys/kernel/pid_max", "4194304")?;
    let setting = Setting::new(2)?;
    setting.fill_all()?;
    let area = setting.area()?;
    let (wait, end) = pipe_with(PipeFlags::CLOEXEC)?;
    // Processes with little of their own, so that the machine has memory for all. Each has the mapping when the call returns.
    let mut programs = Vec::new();
    for number in 0..processes {
        if number % 256 == 0 {
            still_moving();
        }
        programs.push(fork(|| {
            let lives = set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
            let told = rustix::io::read(&wait, &mut [0; 1]) == Ok(1);
            i32::from(!(lives && told && check_page(&area, 1, 1).is_ok()))
        })?);
    }
    let reached = (processes + 1).min(REACHED) as u64;
    wait_until("the page is in the tables of all that a call reaches", || {
        still_moving();
        Ok(setting.region.make_pages_present(&[pages(0, 1)]).complete()? == reached)
    })?;
    setting.region.make_vma_anonymous()?;
    still_moving();
    equal!(setting.region.info()?.mappings, 0);
    equal!(rustix::io::write(&end, &vec![0; processes])?, processes);
    for (number, mut program) in programs.into_iter().enumerate() {
        if number % 256 == 0 {
            still_moving();
        }
        equal!(program.wait()?, End::Exited(0));
    }
    Ok(())
}
