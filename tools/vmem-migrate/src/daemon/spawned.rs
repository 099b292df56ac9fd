// SPDX-License-Identifier: GPL-2.0
//! The processes of a vmemd, which are held.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::process::Process;

/// How long one that was asked to end may take for it, before it is made to.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// A process that was started here, and the others of its group: those that a script in its place has started.
pub(crate) struct Spawned {
    pub(super) process: Process,
    /// Its end was fetched: the kernel may give its number, which is also the group's, to another process.
    pub(super) reaped: Mutex<bool>,
}

impl Spawned {
    pub(super) fn new(process: Process) -> Self {
        Self {
            process,
            reaped: Mutex::new(false),
        }
    }

    /// Sends all of them a signal. They may have ended.
    pub(super) fn signal(&self, signal: Signal) {
        // Whoever waits for the end of the first must not fetch it before the others have their signal.
        let reaped = lock(&self.reaped);
        self.process.signal(signal);
        if let Some(group) = Pid::from_raw(self.process.number()).filter(|_| !*reaped) {
            // As long as the first of them has not been reaped, the number is this group's.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits for the end of the first one, and forgets it.
    pub(super) fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        waitid(
            WaitId::PidFd(self.process.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )?;
        let mut reaped = lock(&self.reaped);
        *reaped = true;
        child.wait()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The processes of one vmemd.
pub(crate) enum Held {
    /// Started here.
    Spawned(Spawned),
    /// Left by an earlier vmemctl: vmemd, and a script in its place. At least one.
    Left(Vec<Process>),
}

impl Held {
    /// Sends them a signal. They may have ended.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Spawned(spawned) => spawned.signal(signal),
            Self::Left(processes) => processes.iter().for_each(|process| process.signal(signal)),
        }
    }

    /// Waits until they have ended, for `limit` at most; whether they have.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        match self {
            Self::Spawned(spawned) => spawned.process.wait(limit),
            Self::Left(processes) => processes
                .iter()
                .all(|process| process.wait(until.saturating_duration_since(Instant::now()))),
        }
    }

    /// Makes them end, whatever they are at, and waits until they have.
    pub(super) fn end(&self) {
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal);
            if self.wait(TIMEOUT) {
                return;
            }
        }
    }

    /// The first of them, for tests.
    #[cfg(test)]
    pub(crate) fn first(&self) -> &Process {
        match self {
            Self::Spawned(spawned) => &spawned.process,
            Self::Left(processes) => &processes[0],
        }
    }

    /// The number of the first, for people.
    pub(super) fn number(&self) -> i32 {
        match self {
            Self::Spawned(spawned) => spawned.process.number(),
            Self::Left(processes) => processes.first().map_or(0, Process::number),
        }
    }
}
