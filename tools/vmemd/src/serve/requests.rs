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
    /// A client has said `finish`.
    pub(super) is_finishing: bool,
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
            is_finishing: false,
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
            .map_err(|error| Refusal::new(format!("no thread ends the rounds: {error}")))?;
        self.is_finishing = true;
        Ok(())
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

    /// Nobody is left who could end the rounds. The log of writes, which slows the programs down, must not outlive its use. After `finish`
    /// there is none, and the destination may need the pages.
    fn abandoned(&mut self) {
        if self.rounds.is_some() && !self.is_finishing {
            tracing::warn!("the last client has gone before the request finish: ending");
            self.stop.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(rounds: Option<Weak<PreCopy>>, is_finishing: bool) -> Requests {
        Requests {
            free: Free::Never,
            server: Weak::new(),
            stop: Arc::new(StopEvent::new().expect("an eventfd")),
            rounds,
            is_finishing,
            clients: Arc::default(),
        }
    }

    #[test]
    fn rounds_that_no_client_can_finish_end_and_all_else_goes_on() {
        let ends = |mut requests: Requests| {
            requests.abandoned();
            requests.stop.is_set()
        };
        assert!(ends(requests(Some(Weak::new()), false)));
        assert!(!ends(requests(Some(Weak::new()), true)), "the destination may need pages");
        assert!(!ends(requests(None, false)));
    }

    #[test]
    fn refused_finish_finishes_nothing() {
        let mut requests = requests(Some(Weak::new()), false);
        requests.finish().expect_err("nothing is tracked");
        assert!(!requests.is_finishing);
    }
}
