// SPDX-License-Identifier: GPL-2.0-or-later
//! A touch of an absent page becomes a request, and waits for its answer.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use vmem_functional_sys::{
    MemoryAt, SYS_ioctl, SYS_mmap, catch_signal, caught, interrupt_thread, this_thread, wake_op, write_from,
};
use vmem_sys::calls;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::{Program, asleep_in};
use crate::setting::{Board, Setting, check_page, check_words, page, pages};
use crate::world::wait_until;

crate::tests![
    a_touch_of_an_absent_page_is_a_request_and_waits_for_its_mark,
    a_write_to_an_absent_page_goes_onto_its_contents,
    get_page_request_waits_until_a_page_is_wanted,
    get_page_request_without_waiting_is_eagain,
    get_page_request_is_interrupted_by_a_signal,
    get_page_request_is_restarted_where_the_handler_asks_for_it,
    poll_says_that_a_page_is_wanted,
    requests_come_in_batches_no_larger_than_asked_for,
    there_is_one_request_per_page_however_many_threads_wait,
    there_is_one_request_per_page_however_many_processes_wait,
    a_request_that_was_taken_does_not_come_again,
    several_takers_never_get_the_same_page,
    mark_wakes_only_waiters_of_the_page,
    a_present_page_needs_no_request,
    a_page_that_is_filled_before_it_is_touched_is_never_requested,
    a_filled_page_is_no_request_any_more,
    a_killed_waiter_dies_at_once,
    all_threads_of_a_killed_program_die_at_once,
    a_signal_interrupts_a_waiting_fault_which_then_goes_on_waiting,
    pending_signal_of_a_waiter_in_a_system_call_takes_no_processor_time,
    other_threads_of_a_waiting_program_go_on,
    a_lock_that_a_waiter_holds_does_not_stop_the_daemon,
];

fn a_touch_of_an_absent_page_is_a_request_and_waits_for_its_mark() -> Outcome {
    let setting = Setting::new(8)?;
    let reader = setting.reader(5)?;
    equal!(setting.take_request()?, 5);
    // The staging file alone wakes nobody: the page is not whole before it is marked.
    use std::os::unix::fs::FileExt;
    let bytes = crate::setting::bytes_of(&crate::setting::contents(5));
    setting.region.staging().write_all_at(&bytes, page(5).offset())?;
    setting.wait_waiters(1)?;
    reader.wait_asleep()?;
    equal!(setting.region.mark_cached(&[pages(5, 1)]).complete()?, 1);
    check_words(&reader.join()?, 5)
}

fn a_write_to_an_absent_page_goes_onto_its_contents() -> Outcome {
    let setting = Setting::new(8)?;
    let writer = Program::start(|| {
        let area = setting.area()?;
        area.poke(2 * 4096 + 8, 0x77);
        Ok(area.page(2))
    })?;
    equal!(setting.take_request()?, 2);
    setting.fill([2])?;
    let mut words = writer.join()?;
    equal!(words[1] & 0xff, 0x77);
    words[1] = crate::setting::contents(2)[1];
    check_words(&words, 2)
}

/// A thread that waits in GET_PAGE_REQUEST, until a page is wanted or a signal comes.
pub(super) fn take_in_a_thread(setting: &Setting) -> Outcome<(i32, thread::JoinHandle<rustix::io::Result<usize>>)> {
    let flags = fcntl_getfl(&*setting.region)?;
    fcntl_setfl(&*setting.region, flags - OFlags::NONBLOCK)?;
    let number = Arc::new(AtomicI32::new(0));
    let taker = thread::spawn({
        let (region, number) = (setting.region.clone(), number.clone());
        move || {
            number.store(this_thread(), Ordering::SeqCst);
            calls::get_page_request(region.as_fd(), &mut [0; 8])
        }
    });
    wait_until("the thread waits", || {
        let thread = number.load(Ordering::SeqCst);
        Ok(thread != 0 && asleep_in(std::process::id() as i32, thread, SYS_ioctl)?)
    })?;
    Ok((number.load(Ordering::SeqCst), taker))
}

pub(super) fn joined(taker: thread::JoinHandle<rustix::io::Result<usize>>) -> Outcome<rustix::io::Result<usize>> {
    taker.join().map_err(|_| "the thread panicked".into())
}

fn get_page_request_waits_until_a_page_is_wanted() -> Outcome {
    let setting = Setting::new(8)?;
    let (_, taker) = take_in_a_thread(&setting)?;
    let reader = setting.reader(1)?;
    equal!(joined(taker)??, 1);
    setting.fill([1])?;
    check_words(&reader.join()?, 1)
}

fn get_page_request_without_waiting_is_eagain() -> Outcome {
    let setting = Setting::new(8)?;
    refused!(calls::get_page_request(setting.region.as_fd(), &mut [0; 8]), AGAIN);
    Ok(())
}

fn get_page_request_is_interrupted_by_a_signal() -> Outcome {
    let setting = Setting::new(8)?;
    catch_signal(Signal::USR1.as_raw(), false)?;
    let (thread, taker) = take_in_a_thread(&setting)?;
    interrupt_thread(std::process::id() as i32, thread, Signal::USR1.as_raw())?;
    refused!(joined(taker)?, INTR);
    Ok(())
}

fn get_page_request_is_restarted_where_the_handler_asks_for_it() -> Outcome {
    let setting = Setting::new(8)?;
    catch_signal(Signal::USR1.as_raw(), true)?;
    let (thread, taker) = take_in_a_thread(&setting)?;
    let before = caught();
    interrupt_thread(std::process::id() as i32, thread, Signal::USR1.as_raw())?;
    wait_until("the signal is caught", || Ok(caught() > before))?;
    let reader = setting.reader(1)?;
    equal!(joined(taker)??, 1);
    setting.fill([1])?;
    check_words(&reader.join()?, 1)
}

fn poll_says_that_a_page_is_wanted() -> Outcome {
    let setting = Setting::new(8)?;
    let ready = |wait: bool| -> Outcome<bool> {
        let mut fds = [PollFd::new(&*setting.region, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, (!wait).then_some(&at_once))?;
        Ok(fds[0].revents().contains(PollFlags::IN))
    };
    ensure!(!ready(false)?);
    let reader = setting.reader(4)?;
    ensure!(ready(true)?);
    ensure!(ready(false)?);
    equal!(setting.take_request()?, 4);
    ensure!(!ready(false)?);
    setting.fill([4])?;
    check_words(&reader.join()?, 4)
}

/// A program with a thread for each of these pages; each reads its page.
fn readers(setting: &Setting, wanted: Vec<usize>) -> Outcome<Program> {
    Program::start(|| {
        let area = Arc::new(setting.area()?);
        let threads: Vec<_> = wanted
            .into_iter()
            .map(|pgoff| {
                let area = area.clone();
                thread::spawn(move || check_page(&area, pgoff, pgoff))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(vec![])
    })
}

fn requests_come_in_batches_no_larger_than_asked_for() -> Outcome {
    let setting = Setting::new(64)?;
    let program = readers(&setting, (0..16).map(|at| at * 4).collect())?;
    setting.wait_waiters(16)?;
    equal!(setting.region.info()?.queued, 16);
    let mut taken = Vec::new();
    for (max, left) in [(1, 15), (5, 10), (3, 7), (64, 0)] {
        let batch = setting.region.try_next_requests(max)?;
        ensure!(!batch.is_empty() && batch.len() <= max, "{} of {max}", batch.len());
        taken.extend(batch.iter().map(|page| page.get() as usize));
        equal!(setting.region.info()?.queued, left);
    }
    equal!(setting.region.info()?.requested, 16);
    taken.sort_unstable();
    equal!(taken, (0..16).map(|at| at * 4).collect::<Vec<_>>());
    setting.fill(taken)?;
    program.join()?;
    Ok(())
}

fn there_is_one_request_per_page_however_many_threads_wait() -> Outcome {
    let setting = Setting::new(8)?;
    let program = readers(&setting, vec![3; 24])?;
    setting.wait_waiters(24)?;
    equal!(setting.take_request()?, 3);
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.requests, info.requested), (1, 1));
    ensure!(info.faults >= 24, "{} faults", info.faults);
    setting.fill([3])?;
    program.join()?;
    setting.no_request()?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

fn there_is_one_request_per_page_however_many_processes_wait() -> Outcome {
    let setting = Setting::new(8)?;
    let readers: Vec<_> = (0..6).map(|_| setting.reader(3)).collect::<Outcome<_>>()?;
    setting.wait_waiters(6)?;
    equal!(setting.take_request()?, 3);
    setting.no_request()?;
    setting.fill([3])?;
    for reader in readers {
        check_words(&reader.join()?, 3)?;
    }
    equal!(setting.region.info()?.requests, 1);
    Ok(())
}

fn a_request_that_was_taken_does_not_come_again() -> Outcome {
    let setting = Setting::new(8)?;
    let first = setting.reader(3)?;
    equal!(setting.take_request()?, 3);
    let second = setting.reader(3)?;
    setting.wait_waiters(2)?;
    setting.no_request()?;
    setting.fill([3])?;
    check_words(&first.join()?, 3)?;
    check_words(&second.join()?, 3)
}

fn several_takers_never_get_the_same_page() -> Outcome {
    const PAGES: usize = 512;
    let setting = Setting::new(PAGES)?;
    let takers: Vec<_> = (0..4)
        .map(|_| {
            let region = setting.region.clone();
            thread::spawn(move || -> Outcome<usize> {
                let mut count = 0;
                // The end of the test is a page that nobody touches, filled by the test.
                while region.info()?.present < PAGES as u64 {
                    for wanted in region.next_requests_timeout(7, Duration::from_millis(20))? {
                        let bytes = crate::setting::bytes_of(&crate::setting::contents(wanted.get()));
                        let filled = region.fill(&[vmem::Fill::new(wanted, &bytes)?]).complete()?;
                        ensure!(filled == 1, "{wanted} was given to two");
                        count += 1;
                    }
                }
                Ok(count)
            })
        })
        .collect();
    let programs: Vec<_> = (0..2)
        .map(|program| {
            Program::start(|| {
                let area = setting.area()?;
                for step in 0..PAGES {
                    // The two meet again and again.
                    let pgoff = if program == 0 { step } else { (step * 7) % PAGES };
                    check_page(&area, pgoff, pgoff)?;
                }
                Ok(vec![])
            })
        })
        .collect::<Outcome<_>>()?;
    for program in programs {
        program.join()?;
    }
    let mut count = 0;
    for taker in takers {
        count += taker.join().map_err(|_| "a taker panicked")??;
    }
    equal!(count, PAGES);
    Ok(())
}

fn mark_wakes_only_waiters_of_the_page() -> Outcome {
    let setting = Setting::new(300)?;
    let [one, other] = [setting.reader(10)?, setting.reader(11)?];
    setting.wait_waiters(2)?;
    other.wait_asleep()?;
    // Whoever is woken in vain sleeps again, and can be told by how often it has slept.
    let sleeps = other.sleeps()?;
    setting.fill([9, 12, 200, 10])?;
    check_words(&one.join()?, 10)?;
    setting.wait_waiters(1)?;
    other.wait_asleep()?;
    equal!(other.sleeps()?, sleeps);
    setting.fill([11])?;
    check_words(&other.join()?, 11)
}

fn a_present_page_needs_no_request() -> Outcome {
    let setting = Setting::new(8)?;
    setting.fill_all()?;
    setting.checker(0..8)?.join()?;
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.requests, info.faults), (0, 0));
    Ok(())
}

fn a_page_that_is_filled_before_it_is_touched_is_never_requested() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill((0..64).filter(|pgoff| pgoff % 2 == 0))?;
    setting.checker((0..64).filter(|pgoff| pgoff % 2 == 0))?.join()?;
    // No neighbour was wanted on the way.
    setting.no_request()?;
    equal!(setting.region.info()?.faults, 0);
    Ok(())
}

fn a_filled_page_is_no_request_any_more() -> Outcome {
    let setting = Setting::new(8)?;
    let reader = setting.reader(2)?;
    setting.wait_waiters(1)?;
    setting.fill([2])?;
    setting.no_request()?;
    let info = setting.region.info()?;
    equal!((info.requested, info.queued), (0, 0));
    check_words(&reader.join()?, 2)
}

fn a_killed_waiter_dies_at_once() -> Outcome {
    let setting = Setting::new(8)?;
    let reader = setting.reader(2)?;
    setting.wait_waiters(1)?;
    reader.signal(Signal::KILL)?;
    reader.join_killed(Signal::KILL)?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

fn all_threads_of_a_killed_program_die_at_once() -> Outcome {
    let setting = Setting::new(64)?;
    let program = readers(&setting, (0..32).collect())?;
    setting.wait_waiters(32)?;
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)?;
    equal!(setting.region.info()?.waiters, 0);
    // What they wanted is still wanted: who comes next does not ask again.
    equal!(setting.region.info()?.requested, 32);
    Ok(())
}

fn a_signal_interrupts_a_waiting_fault_which_then_goes_on_waiting() -> Outcome {
    let setting = Setting::new(8)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        catch_signal(Signal::USR1.as_raw(), true)?;
        let before = caught();
        let area = Arc::new(setting.area()?);
        let reader = thread::spawn({
            let area = area.clone();
            move || check_page(&area, 6, 6)
        });
        // The main thread has no fault to wait in: it says what the other one has caught.
        while !reader.is_finished() {
            board.set(0, (caught() - before) as u64)?;
            thread::sleep(Duration::from_millis(1));
        }
        reader.join().map_err(|_| "the reader panicked")??;
        Ok(vec![])
    })?;
    setting.wait_waiters(1)?;
    let waiter = crate::world::threads(program.pid())?
        .into_iter()
        .find(|thread| *thread != program.pid())
        .ok_or("no second thread")?;
    for round in 1..=3 {
        interrupt_thread(program.pid(), waiter, Signal::USR1.as_raw())?;
        board.wait(0, round)?;
        setting.wait_waiters(1)?;
    }
    equal!(setting.take_request()?, 6);
    setting.fill([6])?;
    program.join()?;
    equal!(setting.region.info()?.requests, 1);
    Ok(())
}

/// A system call cannot be left for a handler in the middle of a copy: it waits for the page, asleep.
fn pending_signal_of_a_waiter_in_a_system_call_takes_no_processor_time() -> Outcome {
    let setting = Setting::new(8)?;
    let program = Program::start(|| {
        catch_signal(Signal::USR1.as_raw(), true)?;
        let before = caught();
        let area = setting.area()?;
        let (_reader, writer) = rustix::pipe::pipe()?;
        let memory = MemoryAt {
            area: &area,
            offset: 3 * 4096,
            len: 100,
        };
        equal!(write_from(&writer, memory)?, 100);
        Ok(vec![caught() as u64 - before as u64])
    })?;
    setting.wait_waiters(1)?;
    program.signal(Signal::USR1)?;
    // It may look around; a thread that runs on and on is never found asleep with few faults.
    thread::sleep(Duration::from_millis(300));
    setting.wait_waiters(1)?;
    program.wait_asleep()?;
    let faults = setting.region.info()?.faults;
    ensure!(faults < 100, "{faults} faults: it does not sleep");
    setting.fill([3])?;
    equal!(program.join()?, vec![1]);
    Ok(())
}

fn other_threads_of_a_waiting_program_go_on() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill((0..64).filter(|pgoff| *pgoff != 33))?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = Arc::new(setting.area()?);
        let waiter = thread::spawn({
            let area = area.clone();
            move || check_page(&area, 33, 33)
        });
        board.wait(0, 1)?;
        // Everything that wants the lock of the address space for itself.
        for pgoff in (0..64).filter(|pgoff| *pgoff != 33) {
            check_page(&area, pgoff, pgoff)?;
            let other = setting.area()?;
            check_page(&other, pgoff, pgoff)?;
            area.protect(pgoff..pgoff + 1, 1)?;
            area.protect(pgoff..pgoff + 1, 3)?;
        }
        let child = Program::start(|| {
            check_page(&area, 5, 5)?;
            Ok(vec![])
        })?;
        child.join()?;
        board.set(1, 1)?;
        waiter.join().map_err(|_| "the waiter panicked")??;
        Ok(vec![])
    })?;
    setting.wait_waiters(1)?;
    board.set(0, 1)?;
    board.wait(1, 1)?;
    equal!(setting.region.info()?.waiters, 1);
    setting.fill([33])?;
    program.join()?;
    Ok(())
}

/// A futex operation waits with its own process's lock held, and other calls of the process queue up behind.
fn a_lock_that_a_waiter_holds_does_not_stop_the_daemon() -> Outcome {
    let setting = Setting::new(64)?;
    setting.fill(0..32)?;
    let board = Board::new()?;
    let program = Program::start(|| {
        let area = setting.area()?;
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wake_op(&area, 40 * 4096));
            board.wait(1, 1)?;
            // Wants the lock for itself, which the other one holds.
            let other = setting.area()?;
            waiter.join().map_err(|_| "the thread panicked")??;
            check_page(&other, 40, 40)
        })?;
        Ok(vec![])
    })?;
    let pid = program.pid();
    setting.wait_waiters(1)?;
    board.set(1, 1)?;
    wait_until("the program waits for the lock", || asleep_in(pid, pid, SYS_mmap))?;
    // Both return; what cannot be had is passed over.
    let mapped = setting.region.make_pages_present(&[pages(0, 64)]).complete()?;
    ensure!(mapped <= 32, "{mapped} pages");
    setting.fill([40])?;
    program.join()?;
    Ok(())
}
