// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmemd that an earlier vmemctl has left. It is found by its socket in the guest's directory, over which it reports its process. The
//! kernel confirms that process. A vmemd that does not answer is found by the process that was recorded when it was started. No other
//! process is taken for it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmem_cli::chain;
use vmem_control::{Duty, Greeting, Hello, Request};
use vmem_process::Process;

use super::files::{PID, SOCKET};
use super::spawned::TIMEOUT;
use super::unrecorded::Unrecorded;
use crate::name::public_session;
use crate::record::StateDir;

/// How long vmemd may take to answer the greeting. Most take a millisecond.
const ANSWER: Duration = Duration::from_secs(5);

/// A vmemd that was left.
pub(super) struct Left {
    /// At least one.
    pub(super) processes: Vec<Process>,
    /// The connection to vmemd, if vmemd has accepted one.
    pub(super) greeting: Option<Greeting>,
    /// The answer of vmemd, if it answers.
    pub(super) hello: Option<Hello>,
}

impl Left {
    /// Whether vmemd was started for this session and duty. True if vmemd does not answer.
    pub(super) fn is_of(&self, session: &str, duty: Duty) -> bool {
        self.hello
            .as_ref()
            // An earlier vmemctl has told its vmemd the whole number.
            .is_none_or(|hello| [session, public_session(session)].contains(&hello.session.as_str()) && hello.duty == duty)
    }

    /// The vmemd of the guest of `state_dir`, if one is left.
    ///
    /// # Errors
    ///
    /// One may be left: the recorded process cannot be looked up.
    pub(super) fn find(state_dir: &StateDir) -> io::Result<Option<Self>> {
        Self::find_within(state_dir, ANSWER)
    }

    fn find_within(state_dir: &StateDir, limit: Duration) -> io::Result<Option<Self>> {
        let mut processes: Vec<_> = recorded(state_dir)?.into_iter().collect();
        let socket = state_dir.path(SOCKET);
        let (greeting, hello) = match Greeting::send(&socket) {
            Err(error) if error.is_nobody() => (None, None),
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                (None, None)
            }
            Ok(mut greeting) => match greeting.wait(Instant::now() + limit) {
                Ok(hello) => (Some(greeting), hello),
                Err(vmem_control::Error::Closed) => (None, None),
                Err(error) => {
                    tracing::warn!("vmemd at {}: {}", socket.display(), chain(&error));
                    (None, None)
                }
            },
        };
        let said = hello.as_ref().map(|hello| Process::look_up(&hello.process));
        let said = said.transpose()?.flatten();
        if let Some(said) = said.filter(|said| processes.iter().all(|other| other.number() != said.number())) {
            // A script instead of vmemd has been recorded, or no process.
            processes.insert(0, said);
        }
        if processes.is_empty() {
            if greeting.is_some() && hello.is_none() {
                tracing::warn!("{}", Unrecorded::find(state_dir));
            }
            return Ok(None);
        }
        Ok(Some(Self {
            processes,
            greeting,
            hello,
        }))
    }
}

/// The recorded process, if it lives.
fn recorded(state_dir: &StateDir) -> io::Result<Option<Process>> {
    let text = match std::fs::read(state_dir.path(PID)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    match serde_json::from_slice(&text) {
        Ok(identity) => Process::look_up(&identity),
        // The file is replaced as a whole, so vmemctl has not written this.
        Err(_) => Ok(None),
    }
}

/// Records the process. Nothing is recorded if it has ended already.
pub(super) fn record(process: &Process, path: &Path) -> io::Result<()> {
    match process.identity() {
        Ok(identity) => {
            // At any moment the old file is there, or the new one.
            let new = path.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(&identity)?)?;
            std::fs::rename(new, path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ends the vmemd that an earlier vmemctl has left. Returns when its processes have ended and hold no files any more.
pub(crate) fn end_leftovers(state_dir: &StateDir) {
    // A vmemd that does not answer within this time is made to end by signals.
    let left = Left::find_within(state_dir, TIMEOUT).unwrap_or_else(|error| {
        tracing::warn!("{}: cannot look for a vmemd: {error}", state_dir.directory().display());
        None
    });
    let Some(Left {
        mut processes,
        greeting,
        hello,
    }) = left
    else {
        return;
    };
    let mut wait = || {
        let until = Instant::now() + TIMEOUT;
        processes.retain(|process| !process.wait(until.saturating_duration_since(Instant::now())));
        processes.is_empty()
    };
    if let (Some(greeting), Some(_)) = (&greeting, &hello) {
        // If vmemd has ended, the wait below notices that.
        let _ = greeting.caller().send(Request::Stop);
        if wait() {
            return;
        }
    }
    for signal in [Signal::TERM, Signal::KILL] {
        processes.iter().for_each(|process| process.signal(signal));
        let until = Instant::now() + TIMEOUT;
        processes.retain(|process| !process.wait(until.saturating_duration_since(Instant::now())));
    }
}
