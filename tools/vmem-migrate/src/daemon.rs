// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmemd, over its control socket. vmemd outlives the vmemctl that has started it, however vmemctl ends, and another vmemctl takes it
//! over.

mod conversation;
#[cfg(test)]
pub(crate) mod fake;
mod files;
mod left;
mod spawned;
#[cfg(test)]
mod tests;
mod unrecorded;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmem_control::{Duty, Greeting, Hello, socket};
use vmem_process::{Process, log_tail, scope};

use crate::name::public_session;
use crate::queue::{Receiver, queue};
use crate::record::StateDir;
use conversation::Conversation;
pub(crate) use conversation::{DaemonEvent, Ended, Orders};
use files::PID;
pub(crate) use files::SOCKET;
use left::Left;
pub(crate) use left::end_leftovers;
use spawned::{Held, Spawned, TIMEOUT};
use unrecorded::Unrecorded;

/// vmemd cannot be started, or ended at once.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The guest's directory cannot be written to.
    #[error("vmemd is not started, because {} cannot be written", .0.display())]
    Note(PathBuf, #[source] io::Error),
    #[error("vmemd is not started")]
    Socket(#[source] vmem_control::Error),
    /// An earlier vmemd has the socket, and vmemctl cannot end it.
    #[error("vmemd is not started: {0}")]
    InUse(String),
    /// A vmemd of an earlier vmemctl may serve. It goes on without vmemctl.
    #[error("cannot find out whether a vmemd is left in {}; none is started or ended", .0.display())]
    Unknown(PathBuf, #[source] io::Error),
    /// A vmemd of an earlier vmemctl goes on without vmemctl.
    #[error("cannot supervise vmemd (process {0}), which goes on")]
    TakeOver(i32, #[source] io::Error),
    #[error("vmemd ended ({status}): {last}")]
    Ended { status: String, last: String },
    #[error("vmemd (process {0}) has ended{1}")]
    LeftEnded(i32, String),
    #[error("vmemd was not ready within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("vmemd does not take orders: {0}")]
    Refuses(String),
}

/// A running vmemd.
pub(crate) struct Daemon {
    held: Arc<Held>,
    orders: Orders,
    says: Receiver<DaemonEvent>,
    /// The log of a vmemd that this program has started.
    log: Option<PathBuf>,
}

impl Daemon {
    /// Starts vmemd with these arguments, for this session. `state_dir` has its log of standard error and its socket, so that a later
    /// vmemctl can take it over.
    pub(crate) fn start(arguments: &[String], session: &str, state_dir: &StateDir) -> Result<Self, DaemonError> {
        Self::spawn(&vmem_process::vmemd(), arguments, session, state_dir)
    }

    /// As [`start`](Self::start), with `program` instead of vmemd.
    pub(crate) fn spawn(program: &Path, arguments: &[String], session: &str, state_dir: &StateDir) -> Result<Self, DaemonError> {
        let failed = |error| DaemonError::Start(program.to_owned(), error);
        let log = log(state_dir)?;
        let errors = File::options().create(true).append(true).open(&log);
        let errors = errors.map_err(|error| DaemonError::Note(log.clone(), error))?;
        let listener = listen(state_dir)?;
        let child = scope::command(program, "vmemd", &state_dir.name())
            .args(arguments)
            // Everybody on this host can read the arguments, and who knows the whole number could say what becomes of the guest.
            .args(["--control", "-", "--session", public_session(session)])
            .stdin(OwnedFd::from(listener))
            // vmemd reports everything over the socket.
            .stdout(Stdio::null())
            .stderr(errors)
            // A process group of its own keeps signals of the terminal from vmemd.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Self::of_child(child, program, log, state_dir)
    }

    fn of_child(mut child: Child, program: &Path, log: PathBuf, state_dir: &StateDir) -> Result<Self, DaemonError> {
        let failed = |error| DaemonError::Start(program.to_owned(), error);
        let recorded = |process| match left::record(&process, &state_dir.path(PID)) {
            Ok(()) => Ok(process),
            Err(error) => Err(DaemonError::Note(state_dir.path(PID), error)),
        };
        let socket = state_dir.path(SOCKET);
        // The greeting waits in the socket's queue until vmemd accepts it. If vmemd has ended, the conversation notices that.
        let greeting = Greeting::send(&socket).ok();
        let process = match Process::of_child(&child).map_err(failed).and_then(recorded) {
            Ok(process) => process,
            Err(error) => {
                // Without a record, no later vmemctl could end this process.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let held = Arc::new(Held::Spawned(Spawned::new(process)));
        let first = greeting.map(|greeting| (greeting, None));
        let daemon = Self::converse(conversation_thread(), &held, first, &socket, Some((child, log)));
        daemon.map_err(|error| {
            held.signal(Signal::KILL);
            failed(error)
        })
    }

    /// The vmemd that an earlier vmemctl has started for the same session and duty, if it still runs. A vmemd that does not answer is taken
    /// over as well: the state of the regions shows what it does.
    ///
    /// # Errors
    ///
    /// It may run, and cannot be taken over. The caller must not end it for that: it may serve a guest.
    pub(crate) fn take_over(session: &str, duty: Duty, state_dir: &StateDir) -> Result<Option<Self>, DaemonError> {
        Self::take_over_in(conversation_thread(), session, duty, state_dir)
    }

    /// As [`take_over`](Self::take_over), with this thread for the conversation.
    fn take_over_in(
        thread: thread::Builder,
        session: &str,
        duty: Duty,
        state_dir: &StateDir,
    ) -> Result<Option<Self>, DaemonError> {
        let unknown = |error| DaemonError::Unknown(state_dir.directory().to_owned(), error);
        let left = Left::find(state_dir).map_err(unknown)?;
        let Some(left) = left.filter(|left| left.is_of(session, duty)) else {
            return Ok(None);
        };
        let held = Arc::new(Held::Left(left.processes));
        let first = left.greeting.map(|greeting| (greeting, left.hello));
        Self::converse(thread, &held, first, &state_dir.path(SOCKET), None)
            .map(Some)
            .map_err(|error| DaemonError::TakeOver(held.number(), error))
    }

    /// Starts the thread that holds the conversation.
    fn converse(
        thread: thread::Builder,
        held: &Arc<Held>,
        first: Option<(Greeting, Option<Hello>)>,
        socket: &Path,
        child: Option<(Child, PathBuf)>,
    ) -> io::Result<Self> {
        let (sender, says) = queue();
        let orders = Orders::default();
        let conversation = Conversation::new(socket, &orders, sender);
        if let Some((greeting, _)) = &first {
            conversation.connected(greeting);
        }
        let process = Arc::clone(held);
        let (child, log) = child.unzip();
        thread.spawn(move || {
            let (says, said) = conversation.hold(first, &process);
            let status = match (&*process, child) {
                (Held::Spawned(spawned), Some(mut child)) => spawned.reap(&mut child).ok(),
                _ => None,
            };
            says.send(DaemonEvent::Ended(Ended { status, said }));
        })?;
        Ok(Self {
            held: Arc::clone(held),
            orders,
            says,
            log,
        })
    }

    /// The next event, if there is one within `limit`.
    pub(crate) fn recv(&mut self, limit: Duration) -> Option<DaemonEvent> {
        self.says.recv(limit)
    }

    /// Waits for an event for which `wanted` returns a value.
    pub(crate) fn wait_for<T>(&mut self, limit: Duration, wanted: impl Fn(&DaemonEvent) -> Option<T>) -> Result<T, DaemonError> {
        let until = Instant::now() + limit;
        loop {
            match self.recv(until.saturating_duration_since(Instant::now())) {
                Some(DaemonEvent::Ended(ended)) => return Err(self.ended(&ended)),
                Some(DaemonEvent::Refuses(why)) => return Err(DaemonError::Refuses(why)),
                Some(said) => {
                    if let Some(found) = wanted(&said) {
                        return Ok(found);
                    }
                }
                None => return Err(DaemonError::TimedOut(limit)),
            }
        }
    }

    /// A handle that gives orders to vmemd, without owning it.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// A vmemd whose events a test sends.
    #[cfg(test)]
    pub(crate) fn of_process(process: Process) -> (Self, crate::queue::Sender<DaemonEvent>) {
        let (sender, says) = queue();
        let daemon = Self {
            held: Arc::new(Held::Left(vec![process])),
            orders: Orders::default(),
            says,
            log: None,
        };
        (daemon, sender)
    }

    /// Its processes.
    #[cfg(test)]
    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    /// Whether its processes have ended. Of a script instead of vmemd, a vmemd may be left.
    pub(crate) fn has_ended(&self) -> bool {
        self.held.wait(Duration::ZERO)
    }

    /// Ends vmemd, and waits until it has ended. Uses an order if vmemd responds, and signals if that does not suffice.
    pub(crate) fn end(&self) {
        if !(self.orders.stop() && self.held.wait(TIMEOUT)) {
            self.held.end();
        }
    }

    /// Why vmemd has ended. For a child, this has the last line of its log.
    pub(crate) fn ended(&self, ended: &Ended) -> DaemonError {
        let Some(status) = ended.status else {
            let why = ended.said.as_ref().and_then(|(_, why)| why.as_ref());
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            return DaemonError::LeftEnded(self.held.number(), why);
        };
        let text = self.log.as_ref().map_or(String::new(), |log| log_tail(log, 0));
        let last = text.lines().last().unwrap_or_default();
        DaemonError::Ended {
            status: status.to_string(),
            last: vmem_cli::log::message(last).to_owned(),
        }
    }
}

/// The thread of a conversation.
fn conversation_thread() -> thread::Builder {
    thread::Builder::new().name("vmemd".to_owned())
}

fn log(state_dir: &StateDir) -> Result<PathBuf, DaemonError> {
    state_dir
        .log("vmemd.log")
        .map_err(|error| DaemonError::Note(state_dir.directory().to_owned(), io::Error::other(error)))
}

/// Binds the socket of the vmemd that is about to be started. Ends a vmemd that still has the socket: a guest has one vmemd at a time.
fn listen(state_dir: &StateDir) -> Result<UnixListener, DaemonError> {
    let path = state_dir.path(SOCKET);
    let bound = match socket::bind(&path) {
        Err(vmem_control::Error::InUse(_)) => {
            end_leftovers(state_dir);
            socket::bind(&path)
        }
        bound => bound,
    };
    bound.map_err(|error| match error {
        vmem_control::Error::InUse(_) => DaemonError::InUse(Unrecorded::find(state_dir).to_string()),
        error => DaemonError::Socket(error),
    })
}
