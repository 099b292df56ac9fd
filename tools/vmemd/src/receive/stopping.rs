// SPDX-License-Identifier: GPL-2.0-or-later
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

/// The stage of a run, and who wants its end.
#[derive(Default)]
struct Progress {
    stage: Stage,
    /// A client does.
    is_requested: bool,
    /// A client or a signal does. Stays set: this can come after the order to start, when nothing reads orders any more, and before the engine runs.
    is_ending: bool,
}

/// What ends a run, whatever it is at.
#[derive(Clone)]
pub(super) struct Stopping {
    progress: Arc<Mutex<Progress>>,
    /// Ends the process.
    exit: fn(),
}

impl Default for Stopping {
    fn default() -> Self {
        Self {
            progress: Arc::default(),
            exit,
        }
    }
}

impl Stopping {
    /// The regions are open, and an order to start is waited for.
    pub(super) fn holds(&self, orders: Sender<Order>) {
        self.lock().stage = Stage::Holding(orders);
    }

    /// The order to start has come, and the engine is about to be started.
    ///
    /// # Errors
    ///
    /// A client has said `stop` meanwhile, or a signal has come.
    pub(super) fn starts(&self) -> Result<(), Failure> {
        match self.lock().is_ending {
            true => Err(Failure::Stopped),
            false => Ok(()),
        }
    }

    /// The engine runs. Ends it if a client or a signal has asked for the end while it was being started.
    pub(super) fn runs(&self, events: Sender<Event>) {
        let mut progress = self.lock();
        progress.stage = Stage::Running(events);
        if progress.is_ending {
            self.act(&progress.stage);
        }
    }

    /// Has signals end the run. Before the regions are open they end the process.
    pub(super) fn handle_signals(&self) -> Result<(), Failure> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Failure::local("cannot handle signals"))?;
        let this = self.clone();
        thread::spawn(move || {
            // A second one has nothing to add.
            signals.forever().next();
            this.signal();
        });
        Ok(())
    }

    /// Whether a client wants the end.
    pub(super) fn is_requested(&self) -> bool {
        self.lock().is_requested
    }

    /// A client wants the end. Waits for nothing.
    pub(super) fn request(&self) {
        let mut progress = self.lock();
        progress.is_requested = true;
        progress.is_ending = true;
        self.act(&progress.stage);
    }

    /// A signal has come. The process ends within [`GRACE`].
    fn signal(&self) {
        {
            let mut progress = self.lock();
            progress.is_ending = true;
            self.act(&progress.stage);
        }
        thread::sleep(GRACE);
        (self.exit)();
    }

    fn act(&self, stage: &Stage) {
        match stage {
            Stage::Preparing => (self.exit)(),
            // If the order to start has come, nobody reads this one: the next stage sees the request.
            Stage::Holding(orders) => drop(orders.send(Order::Stop)),
            Stage::Running(events) => {
                let (events, exit) = (events.clone(), self.exit);
                thread::spawn(move || {
                    end(&events);
                    exit();
                });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
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

    const LONG: Duration = Duration::from_secs(20);

    /// One that ends no process.
    fn stopping() -> Stopping {
        Stopping {
            exit: || (),
            ..Stopping::default()
        }
    }

    #[test]
    fn stop_between_start_and_the_start_of_the_engine_ends_the_run() {
        let (sender, orders) = channel();
        let stopping = stopping();
        stopping.holds(sender.clone());
        sender.send(Order::Start).expect("it is waited for");
        assert_eq!(orders.try_recv(), Ok(Order::Start));
        stopping.starts().expect("no client wants the end");
        stopping.request();
        // The engine was being started.
        let (sender, events) = channel();
        stopping.runs(sender);
        assert!(matches!(events.recv_timeout(LONG), Ok(Event::Signal)));
    }

    #[test]
    fn stop_that_comes_with_start_prevents_the_start_of_the_engine() {
        let (sender, orders) = channel();
        let stopping = stopping();
        stopping.holds(sender.clone());
        sender.send(Order::Start).expect("it is waited for");
        stopping.request();
        assert_eq!(orders.try_recv(), Ok(Order::Start));
        assert!(matches!(stopping.starts(), Err(Failure::Stopped)));
    }

    #[test]
    fn signal_ends_a_run_that_holds_or_is_being_started() {
        let (sender, orders) = channel();
        let stopping = stopping();
        stopping.holds(sender);
        let signalled = stopping.clone();
        thread::spawn(move || signalled.signal());
        assert_eq!(orders.recv_timeout(LONG), Ok(Order::Stop));
        assert!(!stopping.is_requested(), "another vmemd may go on");
        // As if it had come after the order to start.
        assert!(matches!(stopping.starts(), Err(Failure::Stopped)));
        let (sender, events) = channel();
        stopping.runs(sender);
        assert!(matches!(events.recv_timeout(LONG), Ok(Event::Signal)));
    }

    #[test]
    fn run_that_no_client_stops_goes_on() {
        let stopping = stopping();
        stopping.starts().expect("no client wants the end");
        let (sender, events) = channel();
        stopping.runs(sender);
        assert!(events.recv_timeout(Duration::from_millis(50)).is_err());
    }

    #[test]
    fn client_ends_a_run_that_holds() {
        let (sender, orders) = channel();
        let stopping = stopping();
        stopping.holds(sender);
        stopping.request();
        assert_eq!(orders.try_recv(), Ok(Order::Stop));
    }
}
