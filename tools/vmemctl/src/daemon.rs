// SPDX-License-Identifier: GPL-2.0
//! A vmemd that this program has started. It outlives this program, whatever that ends of.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;

use crate::log_file::tail;
use crate::name::session_mark;
use crate::process::{Process, with_arguments};
use crate::queue::{Message, Receiver, Sender, queue};
use crate::record::Place;
use crate::scope;

/// The file with the identity of the latest vmemd's process.
const PID: &str = "vmemd.pid";

/// How long a vmemd that was asked to end may take for it, before it is made to.
const PATIENCE: Duration = Duration::from_secs(2);

/// vmemd cannot be started, or ended at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The directory of the guest cannot be written to.
    #[error("vmemd is not started, because {} cannot be written", .0.display())]
    Note(PathBuf, #[source] io::Error),
    #[error("vmemd ended ({status}): {last}")]
    Ended { status: String, last: String },
    #[error("vmemd was not ready within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// What a vmemd says and how it ends.
#[derive(Debug)]
pub(crate) enum Says {
    /// A line of its standard output.
    Line(String),
    /// It has ended.
    Ended(ExitStatus),
}

impl Message for Says {
    fn is_line(&self) -> bool {
        matches!(self, Self::Line(_))
    }

    fn of_line(line: String) -> Self {
        Self::Line(line)
    }
}

/// A running vmemd.
pub(crate) struct Daemon {
    child: Arc<Spawned>,
    orders: Orders,
    says: Receiver<Says>,
    log: PathBuf,
}

/// The way to a vmemd's standard input, until there are no more orders.
pub(crate) type Orders = Arc<Mutex<Option<ChildStdin>>>;

/// A process that was started here, and the others of its group: those that a script in its place has started.
pub(crate) struct Spawned {
    process: Process,
    /// Its end was fetched: the kernel may give its number, which is also the group's, to another process.
    reaped: Mutex<bool>,
}

impl Daemon {
    /// Starts vmemd with these arguments. What it says on standard error is in `place`, and so is which process it is, for whoever comes
    /// after this program.
    pub(crate) fn start(arguments: &[String], place: &Place) -> Result<Self, DaemonError> {
        Self::spawn(&program(), arguments, place)
    }

    /// As [`start`](Self::start), with this program.
    pub(crate) fn spawn(program: &Path, arguments: &[String], place: &Place) -> Result<Self, DaemonError> {
        let failed = |error| DaemonError::Start(program.to_owned(), error);
        let log = place
            .log("vmemd.log")
            .map_err(|error| DaemonError::Note(place.directory().to_owned(), io::Error::other(error)))?;
        let errors = File::options().create(true).append(true).open(&log);
        let errors = errors.map_err(|error| DaemonError::Note(log.clone(), error))?;
        let mut child = scope::command(program, "vmemd", place.directory())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            // The terminal's signals are not for it.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let orders = child.stdin.take();
        let noted = |process| match note(&process, place) {
            Ok(()) => Ok(process),
            Err(error) => Err(DaemonError::Note(place.path(PID), error)),
        };
        let process = match Process::of_child(&child).map_err(failed).and_then(noted) {
            Ok(process) => process,
            Err(error) => {
                // Nobody could find it later.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let (sender, says) = queue();
        let spawned = Arc::new(Spawned {
            process,
            reaped: Mutex::new(false),
        });
        let daemon = Self {
            child: Arc::clone(&spawned),
            orders: Arc::new(Mutex::new(orders)),
            says,
            log,
        };
        let thread = thread::Builder::new().name("vmemd".to_owned());
        match thread.spawn(move || listen(child, &spawned, &sender)) {
            Ok(_) => Ok(daemon),
            Err(error) => {
                daemon.child.signal(Signal::KILL);
                Err(failed(error))
            }
        }
    }

    /// What it says next, if it does so within `limit`.
    pub(crate) fn hear(&mut self, limit: Duration) -> Option<Says> {
        self.says.recv(limit)
    }

    /// Waits for the line of its standard output that `wanted` makes something of.
    pub(crate) fn wait_for<T>(&mut self, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T, DaemonError> {
        loop {
            match self.hear(limit) {
                Some(Says::Line(line)) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Some(Says::Ended(status)) => return Err(self.ended(status)),
                None => return Err(DaemonError::TimedOut(limit)),
            }
        }
    }

    /// What gives it orders without having it.
    pub(crate) fn orders(&self) -> Orders {
        Arc::clone(&self.orders)
    }

    /// Its process.
    pub(crate) fn process(&self) -> &Spawned {
        &self.child
    }

    /// Why it ended, with the last line of its log.
    pub(crate) fn ended(&self, status: ExitStatus) -> DaemonError {
        let text = tail(&self.log, 0);
        let last = text.lines().last().unwrap_or_default();
        DaemonError::Ended {
            status: status.to_string(),
            last: last.strip_prefix("vmemd: ").unwrap_or(last).to_owned(),
        }
    }
}

/// Gives an order, if there is somebody to take it.
pub(crate) fn order(orders: &Orders, word: &str) {
    if let Some(orders) = &mut *lock(orders) {
        // If it has ended, that is heard.
        let _ = writeln!(orders, "{word}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spawned {
    /// Sends all of them a signal. They may have ended.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
        let reaped = lock(&self.reaped);
        if let Some(group) = Pid::from_raw(self.process.number()).filter(|_| !*reaped) {
            // As long as the first of them has not been reaped, the number is this group's.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Has them end, and waits until the first of them has.
    pub(crate) fn end(&self) {
        self.signal(Signal::TERM);
        if !self.process.wait(PATIENCE) {
            self.signal(Signal::KILL);
            self.process.wait(PATIENCE);
        }
    }

    /// Waits for the end of the first one, and forgets it.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        waitid(
            WaitId::PidFd(self.process.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )?;
        let mut reaped = lock(&self.reaped);
        *reaped = true;
        child.wait()
    }
}

/// Writes down which process it is. One that has ended already is not looked for.
fn note(process: &Process, place: &Place) -> io::Result<()> {
    match process.identity() {
        Ok(identity) => std::fs::write(place.path(PID), serde_json::to_vec(&identity)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn listen(mut child: Child, spawned: &Spawned, sender: &Sender<Says>) {
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            sender.send(Says::Line(line));
        }
    }
    if let Ok(status) = spawned.reap(&mut child) {
        sender.send(Says::Ended(status));
    }
}

/// The vmemd beside this program, or the one that `VMEMD` names.
fn program() -> PathBuf {
    let beside = || std::env::current_exe().ok().map(|path| path.with_file_name("vmemd"));
    std::env::var_os("VMEMD")
        .map(PathBuf::from)
        .or_else(|| beside().filter(|path| path.exists()))
        .unwrap_or_else(|| PathBuf::from("vmemd"))
}

/// A line of `vmemd --json`, if it is of this event.
pub(crate) fn event(line: &str, name: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value.get("event")?.as_str()? == name).then_some(value)
}

/// What a vmemd is for: both sides of a move can be on one machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duty {
    /// It serves the pages of a guest that leaves.
    Serve,
    /// It fetches the pages of a guest that comes.
    Fetch,
}

/// The processes that an earlier vmemctl has left behind: the one that it has noted in `place`, and those that were started for the same
/// `session` and duty, whatever their program is called. No others.
pub(crate) fn left_over(place: &Place, session: Option<&str>, duty: Duty) -> Vec<Process> {
    let noted = std::fs::read(place.path(PID)).ok();
    let noted = noted.and_then(|text| Process::find(&serde_json::from_slice(&text).ok()?));
    let mark = session.and_then(session_mark);
    let others = mark.map(|mark| with_arguments(|words| is_of_session(words, mark, duty)));
    noted.into_iter().chain(others.into_iter().flatten()).collect()
}

/// Whether these are the words of a vmemd, or of a script in its place, that has this duty and exports with this mark: `NAME=PATH`, or
/// `NAME=REGION`.
fn is_of_session(words: &[String], mark: &str, duty: Duty) -> bool {
    let word = match duty {
        Duty::Serve => "serve",
        Duty::Fetch => "--source",
    };
    let is_export = |word: &String| {
        let name = word.split_once('=').map(|(name, _)| name);
        name.and_then(|name| name.strip_suffix(mark))
            .is_some_and(|rest| rest.ends_with('.'))
    };
    words.iter().any(|one| one == word) && words.iter().any(is_export)
}

/// Ends what an earlier vmemctl has left behind (see [`left_over`]). Returns when it has let go of everything.
pub(crate) fn end_left_over(place: &Place, session: Option<&str>, duty: Duty) {
    let mut left = left_over(place, session, duty);
    for signal in [Signal::TERM, Signal::KILL] {
        left.iter().for_each(|process| process.signal(signal));
        left.retain(|process| !process.wait(PATIENCE));
    }
}

#[cfg(test)]
mod tests;
