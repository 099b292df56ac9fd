// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's vmemd, which serves the guest's memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_control::{Change, Duty, Event as DaemonReport, Finished, Request, Round, Rounds, Settled, State};
use vmem_process::clean;
use vmem_process::printable;
use vmem_qemu::{BackendFile, MemoryBackend};
use vmem_wait::BackOff;

use crate::daemon::{Daemon, DaemonError, DaemonEvent, end_leftovers};
use crate::error::Cause;
use crate::name::session_mark;
use crate::network::Security;
use crate::options::Migrate;
use crate::record::StateDir;
use crate::supervisor::{Event, Initial, Restart, Supervised, Supervisor};

/// How long vmemd may take to listen.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The pauses between attempts to begin supervision.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The name of a backend's export. It is a valid name of a region, and no export of another move has it. A client that reaches another
/// guest's vmemd at this address finds no export of this name there.
pub(crate) fn export_name(memory: &MemoryBackend, number: usize, session: &str) -> String {
    let mark = session_mark(session).unwrap_or_default();
    // Region names have 31 bytes at most.
    format!("{}.{number}.{mark}", clean(&memory.id, 10))
}

/// A supervised `vmemd serve` of a guest's memory.
pub(crate) struct PageServer {
    supervisor: Option<Supervisor>,
    arguments: Vec<String>,
    /// Supervision that has not begun.
    awaited: Option<Awaited>,
    /// The source may free the pages that the destination has.
    released: bool,
}

/// Supervision that is tried to begin until it does: the guest at the destination may need its pages, whatever is short here.
struct Awaited {
    served: Vec<BackendFile>,
    session: String,
    state_dir: StateDir,
    pauses: BackOff,
    next: Instant,
}

/// What the source's vmemd has reported.
#[derive(Debug)]
pub(crate) enum News {
    /// A text for the user.
    Note(String),
    /// vmemd has ended, and what follows. Another vmemd does not continue the rounds.
    Ended(String),
    /// Where the rounds stand.
    Rounds(Rounds),
    /// A round is over.
    Round(Round),
    /// The guest should stop now.
    Settled(Settled),
    /// The last pages are taken.
    Finished(Finished),
    /// The rounds have failed.
    Failed(String),
    /// vmemd does not take the last pages.
    FinishRefused(String),
}

impl Awaited {
    /// Takes over the vmemd that an earlier vmemctl has left, or has another one started.
    fn begin(&self, arguments: &[String]) -> Result<Supervisor, Cause> {
        let first = match Daemon::take_over(&self.session, Duty::Serve, &self.state_dir)? {
            Some(daemon) => Initial::Running(daemon),
            None => {
                end_leftovers(&self.state_dir);
                Initial::Missing
            }
        };
        supervisor(arguments, self.served.clone(), &self.session, &self.state_dir, first)
    }
}

/// Supervises a vmemd that serves these files with these arguments.
fn supervisor(
    arguments: &[String],
    served: Vec<BackendFile>,
    session: &str,
    state_dir: &StateDir,
    first: Initial,
) -> Result<Supervisor, Cause> {
    let work = Serve {
        arguments: arguments.to_vec(),
        session: session.to_owned(),
        served,
        state_dir: state_dir.clone(),
    };
    Supervisor::new(work, first).map_err(Cause::call("cannot start a thread"))
}

/// How the supervisor starts a vmemd that serves.
struct Serve {
    arguments: Vec<String>,
    session: String,
    served: Vec<BackendFile>,
    state_dir: StateDir,
}

impl Supervised for Serve {
    fn start(&self) -> Result<Daemon, DaemonError> {
        Daemon::start(&self.arguments, &self.session, &self.state_dir)
    }

    fn check(&self) -> Result<(), String> {
        check(&self.served).map_err(|error| chain(&error))
    }

    fn is_ready(&self, said: &DaemonEvent) -> bool {
        listens(said).is_some()
    }

    fn patience(&self) -> Option<Duration> {
        Some(TIMEOUT)
    }

    fn after(&self, _: Option<i32>) -> Restart {
        // The guest may need its pages, so vmemd is restarted after every exit code.
        Restart::BackOff
    }
}

/// The address at which vmemd listens, if this event has it.
fn listens(said: &DaemonEvent) -> Option<SocketAddr> {
    match said {
        DaemonEvent::Event(DaemonReport::Listening { address }) => Some(*address),
        DaemonEvent::Status(status) if status.state == State::Ready => status.listening,
        _ => None,
    }
}

impl PageServer {
    fn new(supervisor: Option<Supervisor>, awaited: Option<Awaited>, arguments: Vec<String>) -> Self {
        Self {
            supervisor,
            arguments,
            awaited,
            released: false,
        }
    }

    /// Starts to serve `memory` on `address`. Returns the address at which vmemd listens. Only this vmemd gets the arguments `rounds`: one
    /// that is started after it has no log of the guest's writes.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn start(
        memory: &[MemoryBackend],
        served: Vec<BackendFile>,
        session: &str,
        address: SocketAddr,
        state_dir: &StateDir,
        args: &Migrate,
        security: &Security,
        rounds: &[String],
    ) -> Result<(Self, SocketAddr), Cause> {
        let mut options = security.vmemd_arguments();
        options.extend([BANDWIDTH.to_owned(), bandwidth_argument(args.bandwidth)]);
        if let Some(address) = args.metrics {
            options.extend(["--metrics".to_owned(), address.to_string()]);
        }
        if args.free_source {
            let records = state_dir.path("released");
            std::fs::create_dir_all(&records).map_err(Cause::call(records.display().to_string()))?;
            options.extend([
                "--free".to_owned(),
                records.display().to_string(),
                "--hold-release".to_owned(),
            ]);
        }
        let specs = memory
            .iter()
            .zip(&served)
            .enumerate()
            .map(|(number, (memory, file))| format!("{}={}", export_name(memory, number, session), file.path().display()));
        options.extend(specs);
        let arguments = |address: SocketAddr| {
            let mut all = vec!["serve".to_owned(), "--listen".to_owned(), address.to_string()];
            all.extend(options.iter().cloned());
            all
        };
        check(&served)?;
        let first = [&arguments(address), rounds].concat();
        let mut daemon = Daemon::start(&first, session, state_dir)?;
        // vmemd has opened the files when it listens, so they are checked again afterwards.
        let address = daemon.wait_for(TIMEOUT, listens).map_err(Cause::from);
        let address = match address.and_then(|address| check(&served).map_err(Cause::from).map(|()| address)) {
            Ok(address) => address,
            Err(cause) => {
                daemon.end();
                return Err(cause);
            }
        };
        Ok((
            Self::supervise(arguments(address), served, session, state_dir, Initial::Running(daemon))?,
            address,
        ))
    }

    /// Continues to serve what an earlier vmemctl served: takes over its vmemd, or starts another one at the same address as soon as that
    /// is possible. If supervision cannot begin, [`news`](Self::news) says why, and tries again.
    pub(crate) fn again(arguments: &[String], served: Vec<BackendFile>, session: &str, state_dir: &StateDir) -> Self {
        let awaited = Awaited {
            served,
            session: session.to_owned(),
            state_dir: state_dir.clone(),
            pauses: BackOff::new(FIRST_PAUSE, LONGEST_PAUSE),
            next: Instant::now(),
        };
        Self::new(None, Some(awaited), arguments.to_vec())
    }

    /// Begins the awaited supervision if it is time to try. The text says why it has not begun.
    fn begin(&mut self) -> Option<String> {
        let awaited = self.awaited.as_mut().filter(|awaited| Instant::now() >= awaited.next)?;
        match awaited.begin(&self.arguments) {
            Ok(supervisor) => {
                if self.released {
                    supervisor.order(Request::Release);
                }
                self.supervisor = Some(supervisor);
                self.awaited = None;
                None
            }
            Err(cause) => {
                let pause = awaited.pauses.next_pause();
                awaited.next = Instant::now() + pause;
                Some(format!("{}; tried again in {} s", chain(&cause), pause.as_secs()))
            }
        }
    }

    fn supervise(
        arguments: Vec<String>,
        served: Vec<BackendFile>,
        session: &str,
        state_dir: &StateDir,
        first: Initial,
    ) -> Result<Self, Cause> {
        let supervisor = supervisor(&arguments, served, session, state_dir, first)?;
        Ok(Self::new(Some(supervisor), None, arguments))
    }

    /// A page server without a vmemd.
    pub(crate) fn none() -> Self {
        Self::new(None, None, Vec::new())
    }

    /// A page server with this vmemd.
    #[cfg(test)]
    pub(crate) fn of_daemon(daemon: Daemon, state_dir: &StateDir) -> Self {
        Self::supervise(Vec::new(), Vec::new(), "", state_dir, Initial::Running(daemon)).expect("a thread")
    }

    /// Replaces the arguments.
    #[cfg(test)]
    pub(crate) fn set_arguments(&mut self, arguments: &[String]) {
        self.arguments = arguments.to_vec();
    }

    /// Whether the source may free pages.
    #[cfg(test)]
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    /// The arguments that start vmemd again at the same address.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The guest runs at the destination: vmemd may free the pages that the destination has.
    pub(crate) fn release(&mut self) {
        self.released = true;
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(Request::Release);
        }
    }

    /// The guest has stopped: vmemd takes the last pages of the rounds, and reports [`News::Finished`].
    pub(crate) fn finish(&mut self) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(Request::Finish);
        }
    }

    /// This vmemd, and each that is started after it, keeps to this limit of the bandwidth. 0 is none.
    pub(crate) fn limit_bandwidth(&mut self, bandwidth: u64) {
        if let Some(value) = limit_of(&mut self.arguments) {
            *value = bandwidth_argument(bandwidth);
        }
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(Request::Set(Change {
                bandwidth: Some(bandwidth),
                ..Change::default()
            }));
        }
    }

    /// The news of vmemd since the last call.
    pub(crate) fn news(&mut self) -> Vec<News> {
        let mut news: Vec<News> = self.begin().map(News::Note).into_iter().collect();
        let events = std::iter::from_fn(|| self.supervisor.as_ref()?.recv(Duration::ZERO));
        news.extend(events.flat_map(news_of));
        news
    }

    /// Ends vmemd: its pages are not needed any more.
    pub(crate) fn stop(&mut self) {
        self.awaited = None;
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
    }

    /// Ends supervision, and leaves vmemd running. Returns whether a vmemd is left.
    pub(crate) fn leave(&mut self) -> bool {
        self.awaited = None;
        self.supervisor.take().is_some_and(Supervisor::leave)
    }
}

fn news_of(event: Event) -> Vec<News> {
    let one = |news| vec![news];
    match event {
        Event::DaemonReport(report) => said(report).into_iter().collect(),
        // It answers so on each new connection. What it has said between two connections is in it.
        Event::Status(status) => [
            status.rounds.map(DaemonReport::Rounds),
            status.settled.map(DaemonReport::Settled),
            status.finished.map(DaemonReport::Finished),
            status.failed.map(|error| DaemonReport::Failed { error }),
        ]
        .into_iter()
        .flatten()
        .filter_map(said)
        .collect(),
        Event::Refuses(why) => one(News::Note(format!("vmemd does not take orders: {why}"))),
        Event::Refused(Request::Finish, why) => one(News::FinishRefused(printable(&why))),
        Event::Refused(_, why) => one(News::Note(format!("vmemd does not limit the bandwidth: {}", printable(&why)))),
        Event::Ready => one(News::Note("vmemd serves again".to_owned())),
        Event::Ended { why, again, .. } => one(News::Ended(match again.unwrap_or_default() {
            Duration::ZERO => format!("{why}; started again"),
            pause => format!("{why}; started again in {} s", pause.as_secs()),
        })),
    }
}

fn said(report: DaemonReport) -> Option<News> {
    match report {
        DaemonReport::Rounds(rounds) => Some(News::Rounds(rounds)),
        DaemonReport::Round(round) => Some(News::Round(round)),
        DaemonReport::Settled(settled) => Some(News::Settled(Settled {
            reason: printable(&settled.reason),
            ..settled
        })),
        DaemonReport::Finished(finished) => Some(News::Finished(finished)),
        DaemonReport::Failed { error } => Some(News::Failed(printable(&error))),
        _ => None,
    }
}

/// The option of vmemd with the limit of the bandwidth.
const BANDWIDTH: &str = "--bandwidth";

fn bandwidth_argument(bandwidth: u64) -> String {
    match bandwidth {
        0 => "unlimited".to_owned(),
        bandwidth => bandwidth.to_string(),
    }
}

/// The value of that option in the arguments of a vmemd.
fn limit_of(arguments: &mut [String]) -> Option<&mut String> {
    let at = arguments.iter().position(|argument| argument == BANDWIDTH)?;
    arguments.get_mut(at + 1)
}

fn check(served: &[BackendFile]) -> Result<(), vmem_qemu::Error> {
    served.iter().try_for_each(BackendFile::check)
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
