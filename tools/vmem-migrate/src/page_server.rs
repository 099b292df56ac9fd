// SPDX-License-Identifier: GPL-2.0
//! The source's end of the pages: a vmemd that serves the guest's memory.

use std::net::SocketAddr;
use std::time::Duration;

use vmem_cli::chain;
use vmem_control::{Duty, Event as DaemonReport, Request, State};

use crate::daemon::{Daemon, DaemonError, DaemonEvent, end_leftovers};
use crate::error::Cause;
use crate::guest::Memory;
use crate::name::{clean, session_mark};
use crate::network::Security;
use crate::options::Migrate;
use crate::record::StateDir;
use crate::served::{ServedError, ServedFile};
use crate::supervisor::{Event, Initial, Restart, Supervised, Supervisor};

/// How long vmemd may take to listen.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the export of a backend is called: a name that a region can have, and that no export of another move has. Whoever reaches
/// another guest's vmemd at this address finds no export of this name there.
pub(crate) fn export_name(memory: &Memory, number: usize, session: &str) -> String {
    let mark = session_mark(session).unwrap_or_default();
    // Region names have 31 bytes at most.
    format!("{}.{number}.{mark}", clean(&memory.id, 10))
}

/// A `vmemd serve` of a guest's memory, which is kept alive.
pub(crate) struct PageServer {
    supervisor: Option<Supervisor>,
    arguments: Vec<String>,
    /// What the destination gives back may be given back.
    #[cfg(test)]
    released: bool,
}

/// What starts a vmemd that serves.
struct Serve {
    arguments: Vec<String>,
    session: String,
    served: Vec<ServedFile>,
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
        // The guest may need its pages, whatever has ended it.
        Restart::BackOff
    }
}

/// Where a vmemd listens that says so.
fn listens(said: &DaemonEvent) -> Option<SocketAddr> {
    match said {
        DaemonEvent::Event(DaemonReport::Listening { address }) => Some(*address),
        DaemonEvent::Status(status) if status.state == State::Ready => status.listening,
        _ => None,
    }
}

impl PageServer {
    /// Starts to serve `memory` on `address`.
    pub(crate) fn start(
        memory: &[Memory],
        served: Vec<ServedFile>,
        session: &str,
        address: SocketAddr,
        state_dir: &StateDir,
        args: &Migrate,
        security: &Security,
    ) -> Result<(Self, SocketAddr), Cause> {
        let mut options = security.vmemd_arguments();
        if let Some(address) = args.metrics {
            options.extend(["--metrics".to_owned(), address.to_string()]);
        }
        if args.free_source {
            let records = state_dir.path("released");
            std::fs::create_dir_all(&records).map_err(Cause::io(records.display().to_string()))?;
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
            .map(|(number, (memory, file))| format!("{}={}", export_name(memory, number, session), file.path.display()));
        options.extend(specs);
        let arguments = |address: SocketAddr| {
            let mut all = vec!["serve".to_owned(), "--listen".to_owned(), address.to_string()];
            all.extend(options.iter().cloned());
            all
        };
        check(&served)?;
        let mut daemon = Daemon::start(&arguments(address), session, state_dir)?;
        // It has opened them when it listens.
        let address = daemon.wait_for(TIMEOUT, listens).map_err(Cause::from);
        let address = match address.and_then(|address| check(&served).map_err(Cause::from).map(|()| address)) {
            Ok(address) => address,
            Err(trouble) => {
                daemon.end();
                return Err(trouble);
            }
        };
        Ok((
            Self::supervise(arguments(address), served, session, state_dir, Initial::Running(daemon))?,
            address,
        ))
    }

    /// Has what an earlier vmemctl served be served on, by the vmemd that is there, or at the same place by another one: as soon as that
    /// can be.
    pub(crate) fn again(
        arguments: &[String],
        served: Vec<ServedFile>,
        session: &str,
        state_dir: &StateDir,
    ) -> Result<Self, Cause> {
        let first = match Daemon::take_over(session, Duty::Serve, state_dir) {
            Some(daemon) => Initial::Running(daemon),
            None => {
                end_leftovers(state_dir);
                Initial::Missing
            }
        };
        Self::supervise(arguments.to_vec(), served, session, state_dir, first)
    }

    fn supervise(
        arguments: Vec<String>,
        served: Vec<ServedFile>,
        session: &str,
        state_dir: &StateDir,
        first: Initial,
    ) -> Result<Self, Cause> {
        let work = Serve {
            arguments: arguments.clone(),
            session: session.to_owned(),
            served,
            state_dir: state_dir.clone(),
        };
        let supervisor = Supervisor::new(work, first).map_err(Cause::io("cannot start a thread"))?;
        Ok(Self {
            supervisor: Some(supervisor),
            arguments,
            #[cfg(test)]
            released: false,
        })
    }

    /// No vmemd.
    pub(crate) fn none() -> Self {
        Self {
            supervisor: None,
            arguments: Vec::new(),
            #[cfg(test)]
            released: false,
        }
    }

    /// Whether what is given back there may be given back here.
    #[cfg(test)]
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    /// Whether there is a vmemd that is kept alive.
    pub(crate) fn is_supervised(&self) -> bool {
        self.supervisor.is_some()
    }

    /// What starts it again at the same place.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The guest runs at the destination: what that one has may be given back here.
    pub(crate) fn release(&mut self) {
        #[cfg(test)]
        {
            self.released = true;
        }
        if let Some(supervisor) = &self.supervisor {
            supervisor.order(Request::Release);
        }
    }

    /// What has become of vmemd meanwhile, for people.
    pub(crate) fn news(&mut self) -> Vec<String> {
        let events = std::iter::from_fn(|| self.supervisor.as_ref()?.recv(Duration::ZERO));
        events.filter_map(told).collect()
    }

    /// Ends it: nobody needs its pages any more.
    pub(crate) fn stop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
    }

    /// It shall serve on without anybody who looks after it; whether it does.
    pub(crate) fn leave(&mut self) -> bool {
        self.supervisor.take().is_some_and(Supervisor::leave)
    }
}

fn told(event: Event) -> Option<String> {
    match event {
        Event::DaemonReport(_) | Event::Status(_) => None,
        Event::Refuses(why) => Some(format!("vmemd does not take orders: {why}")),
        Event::Ready => Some("vmemd serves again".to_owned()),
        Event::Ended { why, again, .. } => Some(match again.unwrap_or_default() {
            Duration::ZERO => format!("{why}; started again"),
            pause => format!("{why}; started again in {} s", pause.as_secs()),
        }),
    }
}

fn check(served: &[ServedFile]) -> Result<(), ServedError> {
    served.iter().try_for_each(ServedFile::check)
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.stop();
    }
}
