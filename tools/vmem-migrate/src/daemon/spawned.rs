// SPDX-License-Identifier: GPL-2.0-or-later
//! Handles of the processes of a vmemd.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use vmem_process::Process;

/// How long a process that was asked to end may take, before it is made to end.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// A process that vmemctl started, and its process group: a script instead of vmemd starts further processes.
pub(crate) struct Spawned {
    pub(super) process: Process,
    /// The process has been reaped. The kernel may give its number, which is also the number of the group, to another process.
    pub(super) reaped: Mutex<bool>,
}

impl Spawned {
    pub(super) fn new(process: Process) -> Self {
        Self {
            process,
            reaped: Mutex::new(false),
        }
    }

    /// Sends a signal to the whole group. The processes may have ended.
    pub(super) fn signal(&self, signal: Signal) {
        // The lock keeps another thread from reaping the first process before the group has its signal.
        let reaped = lock(&self.reaped);
        self.process.signal(signal);
        if let Some(group) = Pid::from_raw(self.process.number()).filter(|_| !*reaped) {
            // The number belongs to this group until the first process has been reaped.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits for the end of the first process, and reaps it.
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
    /// vmemctl started them.
    Spawned(Spawned),
    /// An earlier vmemctl left them: vmemd, and a script that started it. At least one.
    Left(Vec<Process>),
}

impl Held {
    /// Sends the processes a signal. They may have ended.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Spawned(spawned) => spawned.signal(signal),
            Self::Left(processes) => processes.iter().for_each(|process| process.signal(signal)),
        }
    }

    /// Waits until the processes have ended, for `limit` at most. Returns whether they have.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        match self {
            Self::Spawned(spawned) => spawned.process.wait(limit),
            Self::Left(processes) => processes
                .iter()
                .all(|process| process.wait(until.saturating_duration_since(Instant::now()))),
        }
    }

    /// Ends the processes by signals, and waits until they have ended.
    pub(super) fn end(&self) {
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal);
            if self.wait(TIMEOUT) {
                return;
            }
        }
    }

    /// The first process, for tests.
    #[cfg(test)]
    pub(crate) fn first(&self) -> &Process {
        match self {
            Self::Spawned(spawned) => &spawned.process,
            Self::Left(processes) => &processes[0],
        }
    }

    /// The number of the first process, for messages.
    pub(super) fn number(&self) -> i32 {
        match self {
            Self::Spawned(spawned) => spawned.process.number(),
            Self::Left(processes) => processes.first().map_or(0, Process::number),
        }
    }
}
