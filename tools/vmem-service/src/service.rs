// SPDX-License-Identifier: GPL-2.0-or-later
//! The service that this process is.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{self, Command};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use sd_notify::NotifyState;

use crate::watchdog;
use vmem_wait::Liveness;

/// Where systemd waits for what the service says.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";
/// The process that systemd has started (systemd.exec(5), since version 248).
const MAIN_PROCESS: &str = "SYSTEMD_EXEC_PID";
/// How many descriptors systemd keeps for the service (since version 254).
const ROOM: &str = "FDSTORE";
/// systemd keeps a descriptor that has hung up, or has an error: it does not look.
const NO_POLL: &str = "FDPOLL=0";
/// How long systemd may take to do what it was told: less than the second or two in which a daemon is to end.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);

/// The service that this process is, as systemd has described it in the environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// This is the process that systemd has started, as far as can be known.
    is_main: bool,
    /// How many descriptors systemd keeps.
    room: usize,
    /// How long the process may show no sign of life.
    watchdog: Option<Duration>,
}

impl Service {
    /// What the environment says of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let main = env::var(MAIN_PROCESS).ok();
        let is_main = main.as_deref().map(|main| main == process::id().to_string());
        let room = env::var(ROOM).ok().and_then(|room| room.parse().ok());
        Self {
            is_main: is_main.unwrap_or(true),
            // A systemd that says how many there are says which process it has started.
            room: room.filter(|_| is_main == Some(true)).unwrap_or(0),
            watchdog: sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()),
        }
    }

    /// How many descriptors systemd keeps for this service (`FileDescriptorStoreMax=`).
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// The service does what it is there for from now on.
    pub fn ready(&self) {
        self.notify(&[NotifyState::Ready]);
    }

    /// The service begins to end.
    pub fn stopping(&self) {
        self.notify(&[NotifyState::Stopping]);
    }

    /// What becomes of threads that show no sign of life: see [`watch`](Self::watch).
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.watchdog.map_or_else(Liveness::default, Liveness::new)
    }

    /// Tells systemd that the process is alive, as often as systemd wants it (`WatchdogSec=`), as long as no thread of `liveness` owes a sign.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn watch(&self, liveness: &Liveness) -> io::Result<()> {
        match self.watchdog {
            Some(interval) => {
                let service = *self;
                let say_alive = move || service.notify(&[NotifyState::Watchdog]);
                watchdog::start(interval, liveness.clone(), say_alive)
            }
            None => Ok(()),
        }
    }

    /// Has systemd keep a duplicate of the descriptor under this name: a process of this service that is started again gets it
    /// ([`Kept::take`](crate::Kept::take)). When the service is stopped and not started again, systemd closes it.
    ///
    /// # Errors
    ///
    /// systemd cannot be told.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom(NO_POLL)];
        sd_notify::notify_with_fds(&states, &[fd])
    }

    /// Has systemd close what it keeps under these names. On return it has, unless it takes long, which is warned of.
    pub fn forget<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            self.notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
        if let Err(error) = barrier() {
            tracing::warn!("cannot see whether systemd has closed the descriptors that it kept: {error}");
        }
    }

    fn notify(&self, states: &[NotifyState<'_>]) {
        if !self.is_main {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!("cannot notify systemd: {error}");
        }
    }
}

/// Lets a child process know of no systemd: it is no service.
pub fn hide_from(command: &mut Command) {
    command.env_remove(SOCKET);
}

/// Waits until systemd has done what it was told: then it closes a descriptor.
fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // It comes alone in its message.
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let limit = Timespec::try_from(BARRIER_LIMIT).ok();
    match poll(&mut [PollFd::new(&ours, PollFlags::empty())], limit.as_ref())? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::thread;

    use crate::socket::{as_service, in_service};

    use super::*;

    #[test]
    fn service_says_what_it_is_told_to() {
        if in_service() {
            let service = Service::of_this_process();
            assert_eq!((service.room(), service.watchdog), (3, None));
            service.ready();
            service
                .keep("a@1", File::open("/dev/zero").expect("a device").as_fd())
                .expect("a socket");
            service.forget(["a@1", "b@2"]);
            return service.stopping();
        }
        let own = "own process";
        let said = as_service(
            "service::tests::service_says_what_it_is_told_to",
            &[(MAIN_PROCESS, own), (ROOM, "3")],
        );
        let texts: Vec<_> = said.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "READY=1\n",
                "FDSTORE=1\nFDNAME=a@1\nFDPOLL=0\n",
                "FDSTOREREMOVE=1\nFDNAME=a@1\n",
                "FDSTOREREMOVE=1\nFDNAME=b@2\n",
                "BARRIER=1\n",
                "STOPPING=1\n"
            ]
        );
        let fd = said[1].1.as_ref().expect("a descriptor").try_clone().expect("a duplicate");
        let mut byte = [1];
        File::from(fd).read_exact(&mut byte).expect("it is that device");
        assert_eq!(byte, [0]);
    }

    #[test]
    fn process_that_a_service_has_started_says_nothing_and_has_nothing_kept() {
        if in_service() {
            let service = Service::of_this_process();
            assert_eq!(service.room(), 0);
            return service.ready();
        }
        let name = "service::tests::process_that_a_service_has_started_says_nothing_and_has_nothing_kept";
        for main in ["1", "x"] {
            assert_eq!(as_service(name, &[(MAIN_PROCESS, main), (ROOM, "3")]).len(), 0, "{main}");
        }
        // A systemd that is too old to say what it keeps.
        let said = as_service(name, &[(ROOM, "3")]);
        assert_eq!(said.len(), 1);
    }

    const INTERVAL: Duration = Duration::from_millis(100);

    #[test]
    fn systemd_hears_nothing_while_a_thread_is_stuck() {
        if in_service() {
            let service = Service::of_this_process();
            let liveness = service.liveness();
            let (stuck, idle) = (liveness.watch("stuck"), liveness.watch("idle"));
            idle.rests();
            stuck.rests();
            service.watch(&liveness).expect("a thread");
            thread::sleep(INTERVAL * 5);
            // From here on it shows no sign: it is overdue after another interval.
            stuck.works();
            thread::sleep(INTERVAL * 20);
            stuck.works();
            return thread::sleep(INTERVAL / 2);
        }
        let microseconds = INTERVAL.as_micros().to_string();
        let name = "service::tests::systemd_hears_nothing_while_a_thread_is_stuck";
        let said = as_service(name, &[("WATCHDOG_USEC", &microseconds)]);
        // 10 before, 2 or 3 until it is overdue, 1 or 2 after it; 50 if it were not noticed. A busy machine sleeps longer.
        assert!(said.iter().all(|(text, _)| text == "WATCHDOG=1\n"));
        assert!((2..=20).contains(&said.len()), "{} signs", said.len());
        // That of another process is none of this one's.
        let others = as_service(name, &[("WATCHDOG_USEC", &microseconds), ("WATCHDOG_PID", "1")]);
        assert_eq!(others.len(), 0);
    }
}
