// SPDX-License-Identifier: GPL-2.0-or-later
//! WAIT_READY and READY.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::Signal;
use vmem::Control;
use vmem_functional_sys::catch_signal;
use vmem_sys::calls;

use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::Setting;

crate::tests![
    wait_ready_waits_until_the_daemon_says_ready,
    wait_ready_without_waiting_is_eagain,
    wait_ready_is_interrupted_by_a_signal,
    waiter_for_ready_can_be_killed,
    wait_ready_waits_for_the_next_daemon_when_one_has_gone,
    ready_can_be_polled_for_on_a_map_descriptor,
    a_program_can_map_and_touch_before_ready,
];

fn waiting(setting: &Setting) -> Outcome<Program> {
    let program = Program::start(|| {
        setting.map.wait_ready()?;
        Ok(vec![u64::from(setting.map.info()?.ready)])
    })?;
    program.wait_asleep()?;
    Ok(program)
}

fn wait_ready_waits_until_the_daemon_says_ready() -> Outcome {
    let setting = Setting::new(1)?;
    let programs = [waiting(&setting)?, waiting(&setting)?];
    ensure!(!setting.region.info()?.ready);
    setting.region.ready()?;
    for program in programs {
        equal!(program.join()?, vec![1]);
    }
    // Once said, nobody waits; and it can be said again.
    setting.map.wait_ready()?;
    setting.region.ready()?;
    Ok(())
}

fn wait_ready_without_waiting_is_eagain() -> Outcome {
    let setting = Setting::new(1)?;
    fcntl_setfl(&setting.map, OFlags::RDWR | OFlags::NONBLOCK)?;
    refused!(calls::wait_ready(setting.map.as_fd()), AGAIN);
    refused!(calls::wait_ready(setting.region.as_fd()), AGAIN);
    setting.region.ready()?;
    calls::wait_ready(setting.map.as_fd())?;
    calls::wait_ready(setting.region.as_fd())?;
    Ok(())
}

fn wait_ready_is_interrupted_by_a_signal() -> Outcome {
    let setting = Setting::new(1)?;
    let program = Program::start(|| {
        catch_signal(Signal::USR1.as_raw(), false)?;
        refused!(calls::wait_ready(setting.map.as_fd()), INTR);
        Ok(vec![])
    })?;
    program.wait_asleep()?;
    program.signal(Signal::USR1)?;
    program.join()?;
    Ok(())
}

fn waiter_for_ready_can_be_killed() -> Outcome {
    let setting = Setting::new(1)?;
    let program = waiting(&setting)?;
    program.signal(Signal::KILL)?;
    program.join_killed(Signal::KILL)
}

fn wait_ready_waits_for_the_next_daemon_when_one_has_gone() -> Outcome {
    let setting = Setting::new(1)?;
    setting.region.ready()?;
    let id = setting.region.id();
    let map = setting.region.map_handle()?;
    drop(setting);
    ensure!(!map.info()?.ready);
    let program = Program::start(|| {
        map.wait_ready()?;
        Ok(vec![])
    })?;
    program.wait_asleep()?;
    let next = Control::open()?.attach_id(id)?;
    program.wait_asleep()?;
    ensure!(!map.info()?.ready);
    next.ready()?;
    program.join()?;
    Ok(())
}

fn ready_can_be_polled_for_on_a_map_descriptor() -> Outcome {
    let setting = Setting::new(1)?;
    let ready = || -> Outcome<bool> {
        let mut fds = [PollFd::new(&setting.map, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(fds[0].revents().contains(PollFlags::IN))
    };
    ensure!(!ready()?);
    setting.region.ready()?;
    ensure!(ready()?);
    Ok(())
}

fn a_program_can_map_and_touch_before_ready() -> Outcome {
    let setting = Setting::new(1)?;
    let reader = setting.reader(0)?;
    equal!(setting.take_request()?, 0);
    setting.fill([0])?;
    crate::setting::check_words(&reader.join()?, 0)
}
