// SPDX-License-Identifier: GPL-2.0
//! The end of a run that a signal or a client asks for.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmem_engine::Event;

use crate::failure::Failure;

/// How long the end may take: the engine's threads have a second.
const GRACE: Duration = Duration::from_secs(3);

/// What ends a hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Start,
    Stop,
}

/// How far the run has come.
#[derive(Clone, Default)]
enum Stage {
    /// Nothing has been begun.
    #[default]
    Preparing,
    Holding(Sender<Order>),
    Running(Sender<Event>),
}

/// What ends a run, whatever it is at.
#[derive(Clone, Default)]
pub(super) struct Stopping(Arc<Mutex<Stage>>);

impl Stopping {
    /// The regions are open, and an order to start is waited for.
    pub(super) fn holds(&self, orders: Sender<Order>) {
        *self.stage() = Stage::Holding(orders);
    }

    /// The engine runs.
    pub(super) fn runs(&self, events: Sender<Event>) {
        *self.stage() = Stage::Running(events);
    }

    /// Has signals end the run. Before the engine runs they end the process.
    pub(super) fn handle_signals(&self) -> Result<(), Failure> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Failure::local("cannot handle signals"))?;
        let this = self.clone();
        thread::spawn(move || {
            // A second one has nothing to add.
            signals.forever().next();
            let stage = this.stage().clone();
            if let Stage::Running(events) = stage {
                end(&events);
            }
            exit();
        });
        Ok(())
    }

    /// A client wants the end. Waits for nothing.
    pub(super) fn request(&self) {
        let stage = self.stage().clone();
        match stage {
            Stage::Preparing => exit(),
            // If there is nobody who is told, the run is about to end.
            Stage::Holding(orders) => drop(orders.send(Order::Stop)),
            Stage::Running(events) => drop(thread::spawn(move || {
                end(&events);
                exit();
            })),
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the run, and waits as long as it may take. It may be at something that takes long, or at words that nobody reads. Nothing is half
/// done whenever it ends.
fn end(events: &Sender<Event>) {
    // Who does not listen any more is about to end.
    let _ = events.send(Event::Signal);
    thread::sleep(GRACE);
}

fn exit() {
    std::process::exit(Failure::Stopped.code().into());
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn client_ends_a_run_that_holds() {
        let (sender, orders) = channel();
        let stopping = Stopping::default();
        stopping.holds(sender);
        stopping.request();
        assert_eq!(orders.try_recv(), Ok(Order::Stop));
    }
}
