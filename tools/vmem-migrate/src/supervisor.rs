// SPDX-License-Identifier: GPL-2.0
//! Keeps one vmemd alive, in a thread of its own: when it ends, another one is started, sooner or later.
//!
//! The thread waits for nothing but vmemd: neither for QEMU, which may itself wait for a page, nor for the other host.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_control::{Event as DaemonReport, Request, Status};
use vmem_wait::BackOff;

use crate::daemon::{Daemon, DaemonError, DaemonEvent, Orders};
use crate::queue::{Message, Receiver, Sender, queue};

/// How often it is looked whether supervision is over.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long one that is started last, before supervision is over, is watched.
const SETTLING: Duration = Duration::from_secs(2);

/// The pauses before a vmemd that ends again and again is started again: none at first, then 1 s, 2 s, 4 s, up to one minute. A vmemd that
/// has run for longer than that starts the pauses anew.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What follows the end of a vmemd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restart {
    /// No other one: its work is done, or cannot be done.
    Over,
    /// Another one, after this time.
    In(Duration),
    /// Another one, at once at first, and after longer and longer pauses if it ends again and again.
    BackOff,
}

/// What a supervisor has to know of its vmemd.
pub(crate) trait Supervised: Send + 'static {
    /// Starts one.
    fn start(&self) -> Result<Daemon, DaemonError>;

    /// Whether one may be started, or go on now that it is ready; why not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether it is ready, by what it says.
    fn is_ready(&self, said: &DaemonEvent) -> bool;

    /// How long it may take until then.
    fn patience(&self) -> Option<Duration>;

    /// What follows its end with this exit code. `None`: it was killed, could not be started, or nobody knows how it has ended.
    fn after(&self, code: Option<i32>) -> Restart;
}

/// What becomes of vmemd.
#[derive(Debug)]
pub(crate) enum Event {
    /// It says something.
    DaemonReport(DaemonReport),
    /// Where it stands, when it is connected to.
    Status(Status),
    /// One that serves does not take orders.
    Refuses(String),
    /// One that was started again is ready.
    Ready,
    /// It has ended, or could not be started.
    Ended {
        why: String,
        /// Its exit code. `None`: it was killed, could not be started, or nobody knows how it has ended.
        code: Option<i32>,
        /// When the next one is started. `None`: none is, and this is the last event.
        again: Option<Duration>,
    },
}

impl Message for Event {
    fn is_event(&self) -> bool {
        matches!(self, Self::DaemonReport(_))
    }

    fn dropped(lines: u64) -> Self {
        Self::DaemonReport(DaemonReport::Dropped { lines })
    }
}

/// What is supervised first.
pub(crate) enum Initial {
    /// One that is ready, or was when an earlier vmemctl left it.
    Running(Daemon),
    /// None: it has to be started.
    Missing,
}

/// A vmemd, and whoever keeps it alive.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<bool>>,
}

#[derive(Default)]
struct Shared {
    /// Supervision is over, and vmemd serves on.
    leave: AtomicBool,
    /// Supervision is over, and vmemd ends.
    stop: AtomicBool,
    requests: Mutex<Requests>,
}

/// What is said to vmemd.
#[derive(Default)]
struct Requests {
    orders: Option<Orders>,
    /// What each new one is told.
    lasting: Vec<Request>,
}

impl Supervisor {
    /// Begins with `first`.
    pub(crate) fn new(work: impl Supervised, first: Initial) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, events) = queue();
        let keeper = SupervisorThread {
            work,
            shared: Arc::clone(&shared),
            events: sender,
            back_off: BackOff::immediate(FIRST_PAUSE, LONGEST_PAUSE),
        };
        if let Initial::Running(daemon) = &first {
            keeper.introduce(daemon);
        }
        let thread = thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || keeper.keep(first))?;
        Ok(Self {
            shared,
            events,
            thread: Some(thread),
        })
    }

    /// Gives an order to the vmemd that is there, and to each that comes after it.
    pub(crate) fn order(&self, request: Request) {
        let mut requests = self.shared.requests();
        requests.lasting.push(request.clone());
        if let Some(orders) = &requests.orders {
            orders.give(request);
        }
    }

    /// What happens next, if it does so within `limit`.
    pub(crate) fn recv(&self, limit: Duration) -> Option<Event> {
        self.events.recv(limit)
    }

    /// Ends vmemd. Returns when it has ended.
    pub(crate) fn stop(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join();
    }

    /// Leaves vmemd alone; whether there is one. If there is none at the moment, one more is started.
    pub(crate) fn leave(mut self) -> bool {
        self.shared.leave.store(true, Ordering::SeqCst);
        self.join()
    }

    fn join(&mut self) -> bool {
        self.thread.take().is_some_and(|thread| thread.join().unwrap_or(false))
    }
}

impl Drop for Supervisor {
    /// Leaves vmemd alone: a guest may need it.
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.leave.load(Ordering::SeqCst) || self.stops()
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inside of the thread.
struct SupervisorThread<W> {
    work: W,
    shared: Arc<Shared>,
    events: Sender<Event>,
    back_off: BackOff,
}

/// What watching one comes to.
enum Outcome {
    Ended(End),
    /// Supervision is over, and a vmemd is left, or not.
    Over {
        left: bool,
    },
}

/// How one has ended.
struct End {
    why: String,
    code: Option<i32>,
    lived: Duration,
}

impl<W: Supervised> SupervisorThread<W> {
    /// Until supervision is over; whether a vmemd is left.
    fn keep(mut self, first: Initial) -> bool {
        let mut outcome = match first {
            Initial::Running(daemon) => self.watch(daemon, true),
            Initial::Missing => self.start(),
        };
        loop {
            let End { why, code, lived } = match outcome {
                Outcome::Over { left } => return left,
                Outcome::Ended(end) => end,
            };
            let again = match self.work.after(code) {
                Restart::Over => None,
                Restart::In(pause) => Some(pause),
                Restart::BackOff => Some(self.back_off.next_pause_after(lived)),
            };
            self.tell(Event::Ended { why, code, again });
            let Some(pause) = again else { return false };
            self.rest(pause);
            if self.shared.stops() {
                return false;
            }
            let is_last = self.shared.is_over();
            outcome = self.start();
            if is_last && matches!(outcome, Outcome::Ended(_)) {
                return false;
            }
        }
    }

    /// Starts one, and watches it.
    fn start(&mut self) -> Outcome {
        let failed = |why| {
            Outcome::Ended(End {
                why,
                code: None,
                lived: Duration::ZERO,
            })
        };
        if let Err(why) = self.work.check() {
            return failed(why);
        }
        match self.work.start() {
            Ok(daemon) => {
                self.introduce(&daemon);
                self.watch(daemon, false)
            }
            Err(error) => failed(chain(&error)),
        }
    }

    /// From now on it gets the orders, and first those that last.
    fn introduce(&self, daemon: &Daemon) {
        let mut requests = self.shared.requests();
        let orders = daemon.orders();
        requests.lasting.iter().for_each(|request| orders.give(request.clone()));
        requests.orders = Some(orders);
    }

    /// Hears what it says until it ends.
    fn watch(&self, mut daemon: Daemon, mut is_ready: bool) -> Outcome {
        let began = Instant::now();
        // Why it was made to end.
        let mut fault = None;
        loop {
            if self.shared.stops() {
                daemon.end();
                return Outcome::Over { left: false };
            }
            // One that was just started may yet fail.
            if self.shared.is_over() && (is_ready || began.elapsed() > SETTLING) {
                return Outcome::Over { left: true };
            }
            match daemon.recv(POLL_INTERVAL) {
                Some(DaemonEvent::Ended(ended)) => {
                    return Outcome::Ended(End {
                        code: ended.code().filter(|_| fault.is_none()),
                        why: fault.unwrap_or_else(|| daemon.ended(&ended).to_string()),
                        lived: began.elapsed(),
                    });
                }
                // One that serves is not ended for that.
                Some(DaemonEvent::Refuses(why)) if is_ready => self.tell(Event::Refuses(why)),
                Some(DaemonEvent::Refuses(why)) => fault = fault.or(Some(DaemonError::Refuses(why).to_string())),
                Some(said) => {
                    let became_ready = !is_ready && self.work.is_ready(&said);
                    self.pass(said);
                    if became_ready {
                        is_ready = true;
                        // What it opens by name it has opened meanwhile.
                        match self.work.check() {
                            Ok(()) => self.tell(Event::Ready),
                            Err(why) => fault = fault.or(Some(why)),
                        }
                    }
                }
                None => {
                    let patience = self
                        .work
                        .patience()
                        .filter(|patience| !is_ready && began.elapsed() > *patience);
                    let late = patience.map(|patience| DaemonError::TimedOut(patience).to_string());
                    fault = fault.or(late);
                }
            }
            if fault.is_some() {
                daemon.end();
            }
        }
    }

    fn pass(&self, said: DaemonEvent) {
        match said {
            DaemonEvent::Event(event) => self.tell(Event::DaemonReport(event)),
            DaemonEvent::Status(status) => self.tell(Event::Status(status)),
            DaemonEvent::Refuses(_) | DaemonEvent::Ended(_) => {}
        }
    }

    /// Waits before another one is started.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.shared.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    fn tell(&self, event: Event) {
        self.events.send(event);
    }
}

#[cfg(test)]
mod tests;
