// SPDX-License-Identifier: GPL-2.0
//! A process that is held. Its number alone would not do: the kernel gives it to another process once its owner is gone.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How long a process that was asked to end may take for it, before it is made to.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a process from all others of this machine, for programs that come later.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pid: i32,
    /// When it was started, in the kernel's clock ticks since the boot.
    start: u64,
    /// Which boot.
    boot: String,
}

impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start)
    }
}

/// A process that cannot be taken for another one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// A child that has not been waited for.
    pub(crate) fn of_child(child: &Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// The process with this number.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// The process of which this is known. `None` if it has ended.
    pub(crate) fn find(identity: &Identity) -> Option<Self> {
        let process = Self::open(identity.pid).ok()?;
        let is_it = process.identity().is_ok_and(|found| found == *identity);
        is_it.then_some(process)
    }

    /// As it is when the kernel has given the number of one that has ended to `other`.
    #[cfg(test)]
    pub(crate) fn with_number_of(self, other: &Self) -> Self {
        Self { pid: other.pid, ..self }
    }

    /// Its number, for people.
    pub(crate) fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What finds it again.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        let pid = self.number();
        let stat = self.read("stat")?;
        let start = start_time(&String::from_utf8_lossy(&stat)).ok_or(io::ErrorKind::InvalidData)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Identity { pid, start, boot })
    }

    /// The words it was started with.
    pub(crate) fn arguments(&self) -> io::Result<Vec<String>> {
        Ok(words(&self.read("cmdline")?))
    }

    /// A file of its directory in /proc.
    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        let content = fs::read(format!("/proc/{}/{file}", self.number()))?;
        // As long as it lives, its number is not another's: then the file was its own.
        if self.wait(Duration::ZERO) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(content)
    }

    /// Sends it a signal. It may have ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Has it end, and waits for that.
    pub(crate) fn end(&self) {
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal);
            if self.wait(PATIENCE) {
                return;
            }
        }
    }

    /// Waits until it has ended, for `limit` at most; whether it has. A zombie has: it has let go of everything.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
            match poll(&mut fds, left.as_ref()) {
                // A signal to this program is not its end.
                Err(Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// The 22nd field of a line of /proc/PID/stat. The second one, the program's name in parentheses, may have any character in it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What /proc/PID/cmdline has: words, each with a zero byte at its end.
fn words(cmdline: &[u8]) -> Vec<String> {
    let words = cmdline.split(|byte| *byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// All processes with arguments for which this holds.
pub(crate) fn with_arguments(is: impl Fn(&[String]) -> bool) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| is(&words(&cmdline))))
        // The number may be another's meanwhile: what counts is what the process that is held was started with.
        .filter_map(|pid| Process::open(pid).ok())
        .filter(|process| process.arguments().is_ok_and(|words| is(&words)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(&format!("812 (a) b) (c) {rest}")), Some(4711));
        assert_eq!(start_time("812 (vmemd"), None);
        assert_eq!(start_time("812 (vmemd) S 1 2"), None);
    }

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
        assert!(!process.wait(Duration::ZERO));
        process.signal(Signal::TERM);
        assert!(process.wait(Duration::from_secs(10)));
        assert!(Process::find(&identity).is_none(), "a zombie has ended");
        child.wait().expect("a child");
        assert!(process.wait(Duration::ZERO), "and one that is forgotten");
    }
}
