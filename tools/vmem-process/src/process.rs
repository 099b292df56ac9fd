// SPDX-License-Identifier: GPL-2.0-or-later
//! A process, held by a pidfd. Its number alone would not suffice: the kernel gives the number to another process once the first has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::identity::{Identity, boot_id};

/// A process that cannot be confused with another one.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// A child that has not been reaped.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn of_child(child: &Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// The process that has the number `pid` now.
    ///
    /// # Errors
    ///
    /// There is no such process, or no descriptor is left.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// The process with this identity. `None` if it has ended, or cannot be looked up.
    pub fn find(identity: &Identity) -> Option<Self> {
        Self::look_up(identity).ok().flatten()
    }

    /// The process with this identity. `None` if it has ended.
    ///
    /// # Errors
    ///
    /// The process may live: this one has no descriptor left, for example.
    pub fn look_up(identity: &Identity) -> io::Result<Option<Self>> {
        let has_ended = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound
                || [Errno::SRCH, Errno::INVAL].map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error())
                // No process has such a number.
                || error.kind() == io::ErrorKind::InvalidInput
        };
        let found = Self::open(identity.pid).and_then(|process| Ok((process.identity()?, process)));
        match found {
            Ok((found, process)) => Ok((found == *identity).then_some(process)),
            Err(error) if has_ended(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it is certain that the process with this identity, of the namespaces of this process, has ended: also where `/proc` hides the
    /// processes of others. False if it lives, is of another boot, or cannot be looked up.
    #[must_use]
    pub fn has_ended(identity: &Identity) -> bool {
        if !boot_id().is_ok_and(|boot| boot == identity.boot) {
            return false;
        }
        match Self::open(identity.pid) {
            // Nobody has its number.
            Err(error) => error.raw_os_error() == Some(Errno::SRCH.raw_os_error()),
            // Whoever has its number now was started at another time, or has ended.
            Ok(process) => match process.identity() {
                Ok(found) => found != *identity,
                Err(_) => process.wait(Duration::ZERO),
            },
        }
    }

    /// This process with the number of `other`, as after the kernel has reused the number.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_number_of(self, other: &Self) -> Self {
        Self { pid: other.pid, ..self }
    }

    /// The process number, for messages.
    pub fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What [`find`](Self::find) finds the process by.
    ///
    /// # Errors
    ///
    /// The process has ended, or `/proc` cannot be read.
    pub fn identity(&self) -> io::Result<Identity> {
        let identity = Identity::of(self.number())?;
        // The number is not reused while the process lives. If it still lives, the identity that was read is its own.
        if self.wait(Duration::ZERO) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(identity)
    }

    /// Sends a signal. The process may have ended.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until the process has ended, for `limit` at most. Returns whether it has. A zombie counts as ended, because it holds no files
    /// any more.
    pub fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
            match poll(&mut fds, left.as_ref()) {
                // A signal to this program does not end the wait.
                Err(Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn identity_finds_the_process_until_it_ends_and_no_other() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a process");
        let process = Process::of_child(&child).expect("a pidfd");
        let identity = process.identity().expect("it lives");
        assert!(Process::find(&identity).is_some());
        for other in [
            Identity {
                start: identity.start + 1,
                ..identity.clone()
            },
            Identity {
                boot: String::new(),
                ..identity.clone()
            },
        ] {
            assert!(Process::find(&other).is_none(), "another one had this number: {other:?}");
        }
        assert!(!Process::has_ended(&identity) && !process.wait(Duration::ZERO));
        let of = |start, boot: &str, pid| Identity {
            start,
            boot: boot.to_owned(),
            pid,
        };
        assert!(Process::has_ended(&of(identity.start - 1, &identity.boot, identity.pid)));
        // Of these, nothing is known.
        assert!(!Process::has_ended(&of(identity.start, "", identity.pid)));
        assert!(!Process::has_ended(&of(identity.start, &identity.boot, 0)));
        process.signal(Signal::TERM);
        assert!(process.wait(Duration::from_secs(10)));
        assert!(
            Process::find(&identity).is_none() && Process::has_ended(&identity),
            "a zombie has ended"
        );
        child.wait().expect("a child");
        assert!(
            process.wait(Duration::ZERO) && Process::has_ended(&identity),
            "and one that is forgotten"
        );
    }
}
