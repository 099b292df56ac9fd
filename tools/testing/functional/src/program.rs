// SPDX-License-Identifier: GPL-2.0-or-later
//! Programs that use a region: child processes of a test, so that what kills or stops one does it to nobody else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use vmem_functional_sys::{Child, End, close_descriptors, fork, reset_signal};

use crate::failure::{Outcome, ensure};
use crate::world::{field, wait_until};

/// The exit status of a program whose code failed.
const FAILED: i32 = 99;

/// A running program.
pub(crate) struct Program {
    child: Child,
    /// What it returns comes here, at its end.
    reply: File,
}

impl Program {
    /// Starts a program that runs `code`, in a child process. It has the mappings and descriptors of the test, but for region
    /// descriptors: it is no daemon.
    pub(crate) fn start(code: impl FnOnce() -> Outcome<Vec<u64>>) -> Outcome<Self> {
        let (begun, begins) = pipe_with(PipeFlags::CLOEXEC)?;
        let program = Self::start_with(|| {
            close_descriptors(|target| target.contains("[vmem]"))?;
            drop(begins);
            code()
        })?;
        // It is no daemon from here on: the test may drop its own descriptors and be sure that none is left.
        File::from(begun).read_to_end(&mut Vec::new())?;
        Ok(program)
    }

    /// As [`Program::start`], but with the test's region descriptors: the region has its daemon as long as this program runs.
    pub(crate) fn start_with(code: impl FnOnce() -> Outcome<Vec<u64>>) -> Outcome<Self> {
        let (reply, answer) = pipe_with(PipeFlags::CLOEXEC)?;
        let child = fork(|| run(code, answer.into()))?;
        Ok(Self {
            child,
            reply: OwnedFd::into(reply),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        Ok(self.child.kill(signal.as_raw())?)
    }

    /// Waits for its end, whatever that is.
    pub(crate) fn end(mut self) -> Outcome<End> {
        Ok(self.child.wait()?)
    }

    /// Waits for what it returns.
    pub(crate) fn join(self) -> Outcome<Vec<u64>> {
        match self.told()? {
            (End::Exited(0), words) => Ok(words),
            (end, _) => Err(format!("the program ended with {end:?}").into()),
        }
    }

    /// Waits for what it returns; [`None`] if `signal` has killed it.
    pub(crate) fn join_unless_killed(self, signal: Signal) -> Outcome<Option<Vec<u64>>> {
        match self.told()? {
            (End::Exited(0), words) => Ok(Some(words)),
            (End::Killed(by), _) if by == signal.as_raw() => Ok(None),
            (end, _) => Err(format!("the program ended with {end:?}").into()),
        }
    }

    /// Waits for its end, and gives what it has told.
    fn told(mut self) -> Outcome<(End, Vec<u64>)> {
        let mut reply = Vec::new();
        self.reply.read_to_end(&mut reply)?;
        match self.child.wait()? {
            End::Exited(FAILED) => Err(format!("program: {}", String::from_utf8_lossy(&reply)).into()),
            end => Ok((end, reply.chunks_exact(8).map(word).collect())),
        }
    }

    /// Waits until `signal` has killed it.
    pub(crate) fn join_killed(self, signal: Signal) -> Outcome {
        let end = self.end()?;
        ensure!(
            end == End::Killed(signal.as_raw()),
            "the program ended with {end:?} and not of {signal:?}"
        );
        Ok(())
    }

    /// How often its first thread has gone to sleep.
    pub(crate) fn sleeps(&self) -> Outcome<u64> {
        field(
            &fs::read_to_string(format!("/proc/{}/status", self.pid()))?,
            "voluntary_ctxt_switches",
        )
    }

    /// Waits until its first thread sleeps.
    pub(crate) fn wait_asleep(&self) -> Outcome {
        wait_until("the program sleeps", || asleep(self.pid(), self.pid()))
    }
}

/// Whether a thread sleeps in the system call of this number, and not on its way there.
pub(crate) fn asleep_in(pid: i32, thread: i32, call: i64) -> Outcome<bool> {
    // The number of the call and its arguments, or "running".
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall"))?;
    Ok(text.split_whitespace().next() == Some(&call.to_string()) && asleep(pid, thread)?)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

/// Whether a thread sleeps.
pub(crate) fn asleep(pid: i32, thread: i32) -> Outcome<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"))?;
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    Ok(matches!(state, Some('S' | 'D')))
}

/// What sets a program apart from the test that started it.
fn become_program() -> Outcome {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Rust's runtime catches these, and touches a second time before it lets the process die.
    for signal in [Signal::BUS, Signal::SEGV] {
        reset_signal(signal.as_raw())?;
    }
    Ok(())
}

fn run(code: impl FnOnce() -> Outcome<Vec<u64>>, mut answer: File) -> i32 {
    let outcome =
        become_program().and_then(|()| catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|_| Err("it panicked".into())));
    let (status, bytes) = match outcome {
        Ok(words) => (0, words.into_iter().flat_map(u64::to_le_bytes).collect()),
        Err(failure) => (FAILED, failure.text().as_bytes().to_vec()),
    };
    match answer.write_all(&bytes) {
        Ok(()) => status,
        Err(_) => FAILED,
    }
}
