// SPDX-License-Identifier: GPL-2.0-or-later
//! The control socket of a vmemctl that migrates a guest: others ask it for the status, change how it sends, or have it give up.

mod gate;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmem_cli::{Signals, chain};
use vmem_control::{About, Change, Duty, Event, Later, Migration, MigrationPhase, Publisher, Refusal, Server, Service, socket};

use crate::daemon::SOCKET as VMEMD;
use crate::error::{Cause, Error};
use crate::name::public_session;
use crate::record::StateDir;
pub(super) use gate::Gate;

/// The socket, in the guest's directory.
pub(crate) const SOCKET: &str = "vmemctl.sock";

/// How often the status is published.
const PERIOD: Duration = Duration::from_secs(1);

/// How long clients may take to receive the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What obeys the requests.
struct Requests {
    gate: Arc<Gate>,
    /// A change is being made.
    is_changing: Arc<AtomicBool>,
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
        if self.is_changing.swap(true, Ordering::SeqCst) {
            return answer.answer(Err(Refusal::new("another change is being made: try again")));
        }
        let (gate, is_changing, vmemd) = (Arc::clone(&self.gate), Arc::clone(&self.is_changing), self.vmemd.clone());
        let thread = thread::Builder::new().name("set".to_owned()).spawn(move || {
            let made = gate.change(&vmemd, &change);
            is_changing.store(false, Ordering::SeqCst);
            answer.answer(made);
        });
        if thread.is_err() {
            // The client is told that it could not be done.
            self.is_changing.store(false, Ordering::SeqCst);
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
    pub(super) fn listen(state_dir: &StateDir, session: &str, gate: Arc<Gate>) -> Result<Self, Cause> {
        let failed = |error: vmem_control::Error| {
            Cause::other(format!(
                "'vmemctl status', 'set' and 'abort' do not reach this migration: {}",
                chain(&error)
            ))
        };
        let requests = Requests {
            gate: Arc::clone(&gate),
            is_changing: Arc::default(),
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
        self.gate.take_bandwidth()
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
        self.gate.started();
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
        self.gate.started();
        if let Some(server) = self.server.take() {
            server.finish(false, Duration::ZERO);
        }
    }
}
