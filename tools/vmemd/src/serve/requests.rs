// SPDX-License-Identifier: GPL-2.0
//! What obeys the requests of a control socket.

use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use vmem_control::{Publisher, Refusal, Service};
use vmem_precopy::PreCopy;
use vmem_source::serve::Server;
use vmem_wait::StopEvent;

use super::tracked;
use crate::cli::Serve;

/// Pages are given back, or may be some day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Free {
    Never,
    AtOnce,
    /// After the request.
    Held,
}

pub(super) struct Requests {
    pub(super) free: Free,
    /// It does not keep the memory when that is let go of.
    pub(super) server: Weak<Server>,
    pub(super) stop: Arc<StopEvent>,
    pub(super) rounds: Option<Weak<PreCopy>>,
    pub(super) clients: Arc<OnceLock<Publisher>>,
}

impl Requests {
    pub(super) fn new(args: &Serve, server: &Arc<Server>, stop: &Arc<StopEvent>, rounds: Option<&Arc<PreCopy>>) -> Self {
        let free = match (&args.free, args.hold_release) {
            (None, _) => Free::Never,
            (Some(_), false) => Free::AtOnce,
            (Some(_), true) => Free::Held,
        };
        Self {
            free,
            server: Arc::downgrade(server),
            stop: Arc::clone(stop),
            rounds: rounds.map(Arc::downgrade),
            clients: Arc::default(),
        }
    }

    /// Where to put what tells the clients, once there is a server.
    pub(super) fn clients(&self) -> Arc<OnceLock<Publisher>> {
        Arc::clone(&self.clients)
    }
}

impl Service for Requests {
    fn start(&mut self) -> Result<(), Refusal> {
        Err(Refusal::new("it serves, and holds nothing"))
    }

    fn finish(&mut self) -> Result<(), Refusal> {
        let rounds = self
            .rounds
            .as_ref()
            .ok_or_else(|| Refusal::new("it was not started with --rounds"))?;
        let (Some(rounds), Some(clients)) = (rounds.upgrade(), self.clients.get()) else {
            return Err(Refusal::new("it begins or ends just now"));
        };
        tracked::finish(&rounds, self.server.clone(), clients.clone())
            .map_err(|error| Refusal::new(format!("no thread ends the rounds: {error}")))
    }

    fn release(&mut self) -> Result<(), Refusal> {
        match self.free {
            Free::Never => return Err(Refusal::new("it was not started with --free")),
            Free::AtOnce => {}
            Free::Held => {
                let server = self.server.clone();
                // Making holes takes time.
                let thread = thread::Builder::new().name("release".to_owned());
                let started = thread.spawn(move || server.upgrade().iter().for_each(|server| server.allow_release()));
                started.map_err(|error| Refusal::new(format!("no thread gives memory back: {error}")))?;
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.stop.set();
    }
}
