// SPDX-License-Identifier: GPL-2.0
//! The control socket of a vmemctl that migrates a guest: others ask it for the status, change how it sends, or have it give up.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmem_cli::{Signals, chain};
use vmem_control::{
    About, Change, Client, Duty, Event, Later, Migration, MigrationPhase, Publisher, Refusal, Server, Service, socket,
};

use crate::daemon::SOCKET as VMEMD;
use crate::error::{Cause, Error};
use crate::name::public_session;
use crate::record::StateDir;

/// The socket, in the guest's directory.
pub(crate) const SOCKET: &str = "vmemctl.sock";

/// How often the status is published.
const PERIOD: Duration = Duration::from_secs(1);

/// How long vmemd may take to obey.
const VMEMD_LIMIT: Duration = Duration::from_secs(5);

/// How long clients may take to receive the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the thread of the socket and the migration share.
#[derive(Debug)]
pub(super) struct Gate {
    signals: Signals,
    state: Mutex<Shared>,
    /// A change is being made.
    is_changing: AtomicBool,
}

#[derive(Debug, Default)]
struct Shared {
    /// The destination owns the guest.
    is_committed: bool,
    /// The latest limit of the bandwidth that vmemd has accepted, for those that are started after it.
    bandwidth: Option<u64>,
}

impl Gate {
    pub(super) fn new(signals: &Signals) -> Arc<Self> {
        Arc::new(Self {
            signals: signals.clone(),
            state: Mutex::default(),
            is_changing: AtomicBool::new(false),
        })
    }

    /// Gives the migration up, as SIGINT does.
    fn abort(&self) -> Result<(), Refusal> {
        let state = self.lock();
        if state.is_committed {
            return Err(Refusal::new(
                "the destination owns the guest already: the migration cannot be given up any more",
            ));
        }
        self.signals.raise();
        Ok(())
    }

    /// Runs `record`, which records whose the guest is, and returns whether it is the destination's. A request to give up comes before it or
    /// after it.
    pub(super) fn commit<T>(&self, record: impl FnOnce() -> (T, bool)) -> T {
        let mut state = self.lock();
        let (result, is_committed) = record();
        state.is_committed = is_committed;
        result
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What obeys the requests.
struct Requests {
    gate: Arc<Gate>,
    /// vmemd's control socket.
    vmemd: PathBuf,
}

impl Requests {
    fn no_vmemd() -> Refusal {
        Refusal::new("this is a vmemctl, which migrates a guest, and no vmemd")
    }
}

impl Service for Requests {
    fn start(&mut self) -> Result<(), Refusal> {
        Err(Self::no_vmemd())
    }

    fn release(&mut self) -> Result<(), Refusal> {
        Err(Self::no_vmemd())
    }

    /// The server refuses it: it would be answered only at the end.
    fn stop(&mut self) {}

    fn abort(&mut self) -> Result<(), Refusal> {
        self.gate.abort()
    }

    /// Passes the change on to vmemd, in a thread of its own: vmemd may not answer.
    fn set(&mut self, change: Change, answer: Later) {
        if self.gate.is_changing.swap(true, Ordering::SeqCst) {
            return answer.answer(Err(Refusal::new("another change is being made: try again")));
        }
        let (gate, vmemd) = (Arc::clone(&self.gate), self.vmemd.clone());
        let thread = thread::Builder::new().name("set".to_owned()).spawn(move || {
            let bandwidth = change.bandwidth;
            let made = Client::connect(&vmemd, VMEMD_LIMIT).and_then(|mut client| client.set(change, VMEMD_LIMIT));
            if let (Ok(()), Some(_)) = (&made, bandwidth) {
                gate.lock().bandwidth = bandwidth;
            }
            gate.is_changing.store(false, Ordering::SeqCst);
            answer.answer(made.map_err(|error| match error {
                vmem_control::Error::Refused { text, .. } => Refusal::new(text),
                error => Refusal::new(format!("the source's vmemd does not obey: {}", chain(&error))),
            }));
        });
        if thread.is_err() {
            // The client is told that it could not be done.
            self.gate.is_changing.store(false, Ordering::SeqCst);
        }
    }
}

/// The socket, and what is published there.
#[derive(Debug)]
pub(crate) struct Control {
    server: Option<Server>,
    gate: Arc<Gate>,
    began: Instant,
    /// When the status is published next.
    due: Instant,
    /// When anything has last moved, and what there was then.
    moved: Instant,
    seen: (MigrationPhase, u64),
}

impl Control {
    /// Listens in the guest's directory.
    ///
    /// # Errors
    ///
    /// The socket cannot be bound. The migration can run without it.
    pub(super) fn listen(state_dir: &StateDir, session: &str, signals: &Signals) -> Result<Self, Cause> {
        let failed = |error: vmem_control::Error| {
            Cause::other(format!(
                "'vmemctl status', 'set' and 'abort' do not reach this migration: {}",
                chain(&error)
            ))
        };
        let gate = Gate::new(signals);
        let requests = Requests {
            gate: Arc::clone(&gate),
            vmemd: state_dir.path(VMEMD),
        };
        let listener = socket::bind(&state_dir.path(SOCKET)).map_err(failed)?;
        let about = About::new(public_session(session), Duty::Migrate).map_err(failed)?;
        let server = Server::start(listener, about, requests).map_err(failed)?;
        Ok(Self::with(Some(server), gate))
    }

    /// Without a socket.
    pub(super) fn none(signals: &Signals) -> Self {
        Self::with(None, Gate::new(signals))
    }

    fn with(server: Option<Server>, gate: Arc<Gate>) -> Self {
        let now = Instant::now();
        Self {
            server,
            gate,
            began: now,
            due: now,
            moved: now,
            seen: (MigrationPhase::Preparing, 0),
        }
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// The limit of the bandwidth, if it was changed since the last call.
    pub(super) fn take_bandwidth(&self) -> Option<u64> {
        self.gate.lock().bandwidth.take()
    }

    /// Whether the status is to be published now that this is the phase.
    pub(super) fn is_due(&self, phase: MigrationPhase) -> bool {
        self.server.is_some() && (phase != self.seen.0 || Instant::now() >= self.due)
    }

    /// Publishes the status, whose times this adds. `bytes` grows whenever anything moves.
    pub(super) fn publish(&mut self, migration: Migration, bytes: u64) {
        let now = Instant::now();
        self.due = now + PERIOD;
        if self.seen != (migration.phase, bytes) {
            self.seen = (migration.phase, bytes);
            self.moved = now;
        }
        let event = Event::Migration(Box::new(Migration {
            seconds: self.began.elapsed().as_secs_f64(),
            idle_seconds: (now - self.moved).as_secs_f64(),
            ..migration
        }));
        self.publisher().iter().for_each(|publisher| publisher.publish(event.clone()));
    }

    fn publisher(&self) -> Option<Publisher> {
        self.server.as_ref().map(Server::publisher)
    }

    /// The command ends so. Clients hear it.
    pub(super) fn end(&mut self, result: &Result<(), Error>) {
        let error = result.as_ref().err();
        self.end_with(error.map_or(0, Error::code), error.map(|error| chain(error)));
    }

    /// The command ends with this exit code, for this reason.
    pub(super) fn end_with(&mut self, exit_code: u8, error: Option<String>) {
        let Some(server) = self.server.take() else { return };
        server.publisher().publish(Event::End {
            exit_code,
            error,
            figures: None,
        });
        server.finish(true, LAST_WORDS);
    }
}

impl Drop for Control {
    /// Ends the thread of the socket.
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.finish(false, Duration::ZERO);
        }
    }
}
