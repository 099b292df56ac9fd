// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest's file systems, frozen around the instant by the guest agent, and thawed on every path.
//!
//! This process thaws them as soon as the guest runs again, after an error, a signal and a panic. If it is killed, a deputy does: a second
//! process that waits at a pipe for the death of this one.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vmem_qemu::agent::PRESENCE;
use vmem_qemu::{Agent, agent};

use crate::deputy::{Deputy, is_needed};
use crate::error::Error;

/// The label with the number of file systems that were frozen at the instant. A guest that is restored from it has to thaw them.
pub const FROZEN: &str = "frozen-file-systems";

/// How long a deputy tries to thaw.
const DEPUTY: Duration = Duration::from_secs(300);

/// The time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Whether file systems are frozen around the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// If an agent answers.
    Auto,
    /// If they cannot be, there is no checkpoint.
    Always,
    /// Not.
    Never,
}

/// The guest agent, and what it is used for.
#[derive(Debug, Clone)]
pub struct Options {
    /// QEMU's socket for the agent.
    pub socket: PathBuf,
    /// Whether file systems are frozen.
    pub freeze: Freeze,
    /// How long the agent may take for an answer.
    pub limit: Duration,
    /// A command that calls [`deputize`] with this socket, and its arguments. Without it, file systems stay frozen if this process is killed.
    pub deputy: Vec<OsString>,
}

impl Options {
    /// How long the agent may take to say that it is there: a checkpoint that fails without it waits as long as for any answer.
    fn presence(&self) -> Duration {
        match self.freeze {
            Freeze::Always => self.limit,
            Freeze::Auto | Freeze::Never => PRESENCE,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Freezing {
    /// How many file systems were frozen at the instant.
    pub(crate) frozen: u64,
    /// How long they were.
    pub(crate) time: Option<Duration>,
    /// Why they were not frozen.
    pub(crate) why_not: Option<String>,
}

/// File systems that are frozen, or may be.
#[derive(Debug)]
pub(crate) struct Frozen {
    agent: Agent,
    deputy: Option<Deputy>,
    since: Instant,
    count: u64,
    is_over: bool,
}

impl Frozen {
    /// Freezes, as the options say. `runs`: a guest that is paused does not answer.
    ///
    /// # Errors
    ///
    /// They must be frozen, and are not; or it is not known whether they are.
    pub(crate) fn begin(options: &Options, runs: bool) -> Result<Result<Self, String>, Error> {
        if options.freeze == Freeze::Never {
            return Ok(Err("--freeze never".to_owned()));
        }
        let failed = match Self::try_begin(options, runs) {
            Ok(frozen) => return Ok(Ok(frozen)),
            // The agent has taken the command, and may execute it after this checkpoint was made.
            Err(error @ Error::NotThawed(_)) => return Err(error),
            Err(error) => error,
        };
        match options.freeze {
            Freeze::Always => Err(failed),
            _ => Ok(Err(vmem_cli::chain(&failed))),
        }
    }

    fn try_begin(options: &Options, runs: bool) -> Result<Self, Error> {
        if !runs {
            return Err(Error::other("the guest is paused, and its agent does not answer"));
        }
        let agent = Agent::connect(&options.socket, options.presence(), options.limit)?;
        let mut frozen = Self {
            agent,
            deputy: Deputy::start(&options.deputy)?,
            since: Instant::now(),
            count: 0,
            is_over: false,
        };
        match frozen.agent.freeze() {
            Ok(count) => frozen.count = count,
            Err(error @ agent::Error::Refused { .. }) => {
                // Another client has frozen them, or the agent has thawed them itself.
                frozen.end();
                return Err(error.into());
            }
            Err(error) => {
                frozen.thaw()?;
                return Err(error.into());
            }
        }
        Ok(frozen)
    }

    /// How many file systems are frozen.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Thaws. If the agent does not answer, the deputy goes on.
    ///
    /// # Errors
    ///
    /// [`Error::NotThawed`].
    pub(crate) fn thaw(&mut self) -> Result<Duration, Error> {
        self.is_over = true;
        self.agent.thaw().map_err(Error::NotThawed)?;
        let time = self.since.elapsed();
        self.end();
        Ok(time)
    }

    fn end(&mut self) {
        self.is_over = true;
        if let Some(deputy) = self.deputy.take() {
            deputy.dismiss();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Err(error) = self.thaw() {
            tracing::error!("{}", vmem_cli::chain(&error));
        }
    }
}

/// Waits until the process at the other end of `pipe` has ended, and thaws the guest's file systems if it has not done so: tries for five
/// minutes.
///
/// # Errors
///
/// They may be frozen still.
pub fn deputize(pipe: &mut dyn Read, socket: &Path, limit: Duration) -> Result<(), Error> {
    if !is_needed(pipe) {
        return Ok(());
    }
    thaw_patiently(socket, limit, DEPUTY, || true).map(drop)
}

/// Thaws, and tries again until `patience` has passed or it is not wanted any more. Returns the agent.
pub(crate) fn thaw_patiently(
    socket: &Path,
    limit: Duration,
    patience: Duration,
    is_wanted: impl Fn() -> bool,
) -> Result<Agent, Error> {
    let thaw = || Agent::connect(socket, PRESENCE, limit).and_then(|mut agent| agent.thaw().map(|_| agent));
    patiently(patience, RETRY_INTERVAL, is_wanted, thaw).map_err(Error::NotThawed)
}

/// Tries again at this interval until `patience` has passed or it is not wanted any more.
pub(crate) fn patiently<T>(
    patience: Duration,
    interval: Duration,
    is_wanted: impl Fn() -> bool,
    attempt: impl Fn() -> Result<T, agent::Error>,
) -> Result<T, agent::Error> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(_) if Instant::now() < until && is_wanted() => thread::sleep(interval),
            result => return result,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
