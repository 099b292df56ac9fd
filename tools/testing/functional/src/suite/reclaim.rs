// SPDX-License-Identifier: GPL-2.0-or-later
//! Swap and the memory cgroup: a region's memory is the program's, and goes out and comes back like any other.

use vmem::{Fill, PAGE_SIZE};
use vmem_functional_sys::Area;

use crate::failure::{Outcome, ensure, equal};
use crate::injector;
use crate::kernel::{Cgroup, Swap};
use crate::program::Program;
use crate::setting::{Board, Setting, bytes_of, check_page, check_zero, contents, page, smaps};
use crate::world::field;

const MADV_COLD: i32 = 20;
const MADV_PAGEOUT: i32 = 21;

crate::tests![
    present_pages_can_be_swapped_out_and_come_back_without_a_request,
    absent_pages_are_not_swapped_and_stay_absent,
    swapped_pages_can_be_marked_populated_and_converted,
    under_memory_pressure_pages_go_to_swap_and_come_back,
    pages_are_charged_to_the_program_and_not_to_the_daemon,
    before_the_region_is_mapped_pages_are_charged_to_the_filler,
    zeros_that_the_daemon_populates_take_no_memory_until_the_program_touches_them,
    a_cgroup_that_has_been_removed_does_not_pay,
];

/// KiB of this area in swap.
fn swapped(area: &Area) -> Outcome<u64> {
    field(&smaps(std::process::id(), area.address())?, "Swap")
}

const PAGES: usize = 1024;

fn present_pages_can_be_swapped_out_and_come_back_without_a_request() -> Outcome {
    let _swap = Swap::new()?;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let area = setting.area()?;
    for pgoff in 0..PAGES {
        check_page(&area, pgoff, pgoff)?;
    }
    for pgoff in (0..PAGES).step_by(2) {
        area.write_page(pgoff, &contents(pgoff as u64 + 5000));
    }
    area.advise(0..PAGES, MADV_COLD)?;
    area.advise(0..PAGES, MADV_PAGEOUT)?;
    let out = swapped(&area)?;
    ensure!(out > 1024, "only {out} KiB went to swap");
    for pgoff in 0..PAGES {
        check_page(&area, pgoff, if pgoff % 2 == 0 { pgoff + 5000 } else { pgoff })?;
    }
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.faults, info.present), (0, PAGES as u64));
    Ok(())
}

fn absent_pages_are_not_swapped_and_stay_absent() -> Outcome {
    let _swap = Swap::new()?;
    let setting = Setting::new(PAGES)?;
    setting.fill((0..PAGES).step_by(2))?;
    let area = setting.area()?;
    for pgoff in (0..PAGES).step_by(2) {
        check_page(&area, pgoff, pgoff)?;
    }
    area.advise(0..PAGES, MADV_PAGEOUT)?;
    equal!(setting.region.info()?.present, PAGES as u64 / 2);
    let reader = setting.reader(101)?;
    equal!(setting.take_request()?, 101);
    setting.fill([101])?;
    crate::setting::check_words(&reader.join()?, 101)?;
    for pgoff in (0..PAGES).step_by(2) {
        check_page(&area, pgoff, pgoff)?;
    }
    setting.no_request()
}

fn swapped_pages_can_be_marked_populated_and_converted() -> Outcome {
    let _swap = Swap::new()?;
    let setting = Setting::new(PAGES)?;
    setting.fill_all()?;
    let area = setting.area()?;
    for pgoff in 0..PAGES {
        area.peek(pgoff * PAGE_SIZE);
    }
    area.advise(0..PAGES, MADV_PAGEOUT)?;
    let out = swapped(&area)?;
    ensure!(out > 1024, "only {out} KiB went to swap");
    // Present is present, wherever the page is.
    let other = vec![0x5a; PAGE_SIZE];
    equal!(setting.region.fill(&[Fill::new(page(7), &other)?]).complete()?, 0);
    equal!(setting.region.mark_zero(&[crate::setting::pages(0, PAGES)]).complete()?, 0);
    equal!(
        setting
            .region
            .make_pages_present(&[crate::setting::pages(0, 64)])
            .complete()?,
        64
    );
    ensure!(crate::setting::mapped_pages(&area)?[..64].iter().all(|mapped| *mapped));
    setting.region.make_vma_anonymous()?;
    for pgoff in 0..PAGES {
        check_page(&area, pgoff, pgoff)?;
    }
    // And out again, as plain memory.
    area.advise(0..PAGES, MADV_PAGEOUT)?;
    let out = swapped(&area)?;
    ensure!(out > 1024, "only {out} KiB went to swap as plain memory");
    for pgoff in 0..PAGES {
        check_page(&area, pgoff, pgoff)?;
    }
    Ok(())
}

fn under_memory_pressure_pages_go_to_swap_and_come_back() -> Outcome {
    // Three times as much as may be in memory. On the kernels that check themselves a fault takes a hundred times as long.
    let (pages, most) = if injector::available() {
        (3 << 10, "4M")
    } else {
        (6 << 10, "8M")
    };
    let _swap = Swap::new()?;
    let small = Cgroup::new("vmem-small")?;
    small.set("memory.max", most)?;
    let setting = Setting::new(pages)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        small.enter()?;
        let area = setting.area()?;
        board.set(0, 1)?;
        // All of it, twice, while the first round is still being filled.
        for round in 0..2 {
            for step in 0..pages {
                let pgoff = step * 1021 % pages;
                check_page(&area, pgoff, pgoff)?;
            }
            board.set(1, round + 1)?;
        }
        Ok(vec![swapped(&area)?])
    })?;
    board.wait(0, 1)?;
    let server = crate::server::Server::start(&setting.region);
    setting.region.ready()?;
    for pgoff in (0..pages).step_by(64) {
        let bytes: Vec<u8> = (pgoff..pgoff + 64)
            .flat_map(|pgoff| bytes_of(&contents(pgoff as u64)))
            .collect();
        setting.region.fill(&[Fill::new(page(pgoff), &bytes)?]).complete()?;
    }
    let swapped = program.join()?[0];
    server.stop()?;
    ensure!(swapped > 4096, "only {swapped} KiB went to swap");
    equal!(setting.region.info()?.present, pages as u64);
    Ok(())
}

/// Fills a region of 8 MiB from a process in `daemon`, which a process in `program` maps first. Returns KiB of shmem in each.
fn charges(mapped_first: bool) -> Outcome<(u64, u64)> {
    const PAGES: usize = 2048;
    let (program, daemon) = (Cgroup::new("vmem-program")?, Cgroup::new("vmem-daemon")?);
    let setting = Setting::new(PAGES)?;
    let board = Board::new()?;
    let user = Program::start(|| {
        program.enter()?;
        if !mapped_first {
            board.wait(1, 1)?;
        }
        let area = setting.area()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        for pgoff in 0..PAGES {
            check_page(&area, pgoff, pgoff)?;
        }
        board.set(0, 2)?;
        board.wait(1, 2)?;
        Ok(vec![])
    })?;
    if mapped_first {
        board.wait(0, 1)?;
    }
    let filler = Program::start_with(|| {
        daemon.enter()?;
        setting.fill_all()?;
        board.set(1, 1)?;
        board.wait(1, 2)?;
        Ok(vec![])
    })?;
    board.wait(0, 2)?;
    let charged = (program.stat("shmem")? / 1024, daemon.stat("shmem")? / 1024);
    board.set(1, 2)?;
    user.join()?;
    filler.join()?;
    Ok(charged)
}

fn pages_are_charged_to_the_program_and_not_to_the_daemon() -> Outcome {
    let (program, daemon) = charges(true)?;
    ensure!(program >= 8192, "the program's cgroup has {program} KiB");
    ensure!(daemon < 1024, "the daemon's cgroup has {daemon} KiB");
    Ok(())
}

fn before_the_region_is_mapped_pages_are_charged_to_the_filler() -> Outcome {
    let (program, daemon) = charges(false)?;
    ensure!(daemon >= 8192, "the filler's cgroup has {daemon} KiB");
    ensure!(program < 1024, "the program's cgroup has {program} KiB");
    Ok(())
}

fn zeros_that_the_daemon_populates_take_no_memory_until_the_program_touches_them() -> Outcome {
    const PAGES: usize = 2048;
    let (program, daemon) = (Cgroup::new("vmem-program")?, Cgroup::new("vmem-daemon")?);
    let setting = Setting::new(PAGES)?;
    let board = Board::new()?;
    let user = Program::start(|| {
        program.enter()?;
        let area = setting.area()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        (0..PAGES).try_for_each(|pgoff| check_zero(&area, pgoff))?;
        board.set(2, 1)?;
        board.wait(3, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    let populated = Program::start_with(|| {
        daemon.enter()?;
        let all = [crate::setting::pages(0, PAGES)];
        setting.region.mark_zero(&all).complete()?;
        let populated = setting.region.make_pages_present(&all).complete()?;
        Ok(vec![populated])
    })?;
    equal!(populated.join()?, [0]);
    let charged = |to: &Cgroup| -> Outcome<u64> { Ok(to.stat("shmem")? / 1024) };
    let (in_program, in_daemon) = (charged(&program)?, charged(&daemon)?);
    ensure!(
        in_program < 1024 && in_daemon < 1024,
        "{in_program} and {in_daemon} KiB before a touch"
    );
    board.set(1, 1)?;
    board.wait(2, 1)?;
    let (in_program, in_daemon) = (charged(&program)?, charged(&daemon)?);
    ensure!(in_program >= 8192, "the program's cgroup has {in_program} KiB");
    ensure!(in_daemon < 1024, "the daemon's cgroup has {in_daemon} KiB");
    board.set(3, 1)?;
    user.join().map(drop)
}

fn a_cgroup_that_has_been_removed_does_not_pay() -> Outcome {
    const PAGES: usize = 2048;
    let setting = Setting::new(PAGES)?;
    let first = Cgroup::new("vmem-first")?;
    let user = Program::start(|| {
        first.enter()?;
        setting.area()?;
        Ok(vec![])
    })?;
    user.join()?;
    drop(first);
    let second = Cgroup::new("vmem-second")?;
    let board = Board::new()?;
    let user = Program::start(|| {
        second.enter()?;
        let _area = setting.area()?;
        board.set(0, 1)?;
        board.wait(1, 1)?;
        Ok(vec![])
    })?;
    board.wait(0, 1)?;
    setting.fill_all()?;
    let charged = second.stat("shmem")? / 1024;
    ensure!(charged >= 8192, "the second program's cgroup has {charged} KiB");
    board.set(1, 1)?;
    user.join().map(drop)
}
