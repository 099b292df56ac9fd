// SPDX-License-Identifier: GPL-2.0-or-later
//! What the agent of a restored guest does first: it thaws file systems that were frozen at the instant, and sets the clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmem_qemu::Agent;
use vmem_qemu::agent::PRESENCE;

use crate::error::Error;
use crate::freeze::{patiently, thaw_patiently};

/// How long an agent may take to appear. Its memory is still in the store, and it may wait for pages.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The same patience if file systems are frozen: without it, the guest hangs.
const PATIENCE_FROZEN: Duration = Duration::from_secs(600);

/// What is said if the guest is to stay paused.
pub(crate) const NOT_ASKED: &str =
    "the guest is paused: its agent is not asked, file systems that were frozen stay so, and its clock is not set";

/// Says what came of it. The clock is set if that can be done; a guest that stays frozen is a failure.
pub(crate) fn told(result: Result<String, Error>, note: &mut dyn FnMut(&str)) -> Result<(), Error> {
    match result {
        Ok(said) => note(&said),
        Err(error @ Error::NotThawed(_)) => return Err(error),
        Err(error) => note(&vmem_cli::chain(&error)),
    }
    Ok(())
}

/// Asks the agent in a thread: pages must come meanwhile.
pub(crate) struct Wakeup {
    results: Receiver<Result<String, Error>>,
    /// The thread ends when this is gone.
    _wanted: Arc<()>,
}

impl Wakeup {
    pub(crate) fn start(socket: &Path, limit: Duration, is_frozen: bool) -> Result<Self, Error> {
        let (sender, results) = channel();
        let wanted = Arc::new(());
        let (socket, still_wanted): (PathBuf, _) = (socket.to_owned(), Arc::downgrade(&wanted));
        let work = move || drop(sender.send(wake_up(&socket, limit, is_frozen, &|| still_wanted.strong_count() > 0)));
        let thread = thread::Builder::new().name("agent".to_owned());
        thread.spawn(work).map_err(Error::Thread)?;
        Ok(Self {
            results,
            _wanted: wanted,
        })
    }

    /// What came of it, once.
    pub(crate) fn result(&self) -> Option<Result<String, Error>> {
        match self.results.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Error::other("the thread that asks the guest agent has panicked"))),
        }
    }
}

fn wake_up(socket: &Path, limit: Duration, is_frozen: bool, is_wanted: &dyn Fn() -> bool) -> Result<String, Error> {
    let mut agent = match is_frozen {
        true => thaw_patiently(socket, limit, PATIENCE_FROZEN, is_wanted)?,
        false => patiently(PATIENCE, POLL_INTERVAL, is_wanted, || Agent::connect(socket, PRESENCE, limit))?,
    };
    let thawed = if is_frozen { "its file systems are thawed, and " } else { "" };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(match agent.set_time(now) {
        Ok(()) => format!("the guest: {thawed}its clock is set"),
        Err(error) => format!("the guest: {thawed}its clock is NOT set: {}", vmem_cli::chain(&error)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::freeze::tests::FakeAgent;

    const LIMIT: Duration = Duration::from_millis(300);

    fn wait(wakeup: &Wakeup) -> Result<String, Error> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(result) = wakeup.result() {
                return result;
            }
            assert!(Instant::now() < until, "no result");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn restored_guest_is_thawed_before_its_clock_is_set() {
        let agent = FakeAgent::start("", "");
        let said = wait(&Wakeup::start(&agent.socket, LIMIT, true).expect("a thread")).expect("an agent");
        assert_eq!(said, "the guest: its file systems are thawed, and its clock is set");
        assert_eq!(agent.commands(), ["guest-fsfreeze-thaw", "guest-set-time"]);
    }

    #[test]
    fn clock_that_cannot_be_set_is_said() {
        let agent = FakeAgent::start("guest-set-time", "");
        let said = wait(&Wakeup::start(&agent.socket, LIMIT, false).expect("a thread")).expect("an agent");
        assert!(
            said.contains("NOT set: the guest agent refuses guest-set-time: disabled"),
            "{said}"
        );
        assert_eq!(agent.commands(), ["guest-set-time"], "nothing was frozen");
    }

    #[test]
    fn agent_that_is_not_wanted_any_more_is_not_waited_for() {
        let began = Instant::now();
        let failed = wake_up(Path::new("/nowhere/agent"), LIMIT, true, &|| false);
        assert!(matches!(failed, Err(Error::NotThawed(_))), "{failed:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
