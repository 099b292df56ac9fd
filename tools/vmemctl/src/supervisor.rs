// SPDX-License-Identifier: GPL-2.0
//! Keeps one vmemd alive, in a thread of its own: when it ends, another one is started, sooner or later.
//!
//! The thread waits for nothing but vmemd: neither for QEMU, which may itself wait for a page, nor for the other host.

use std::io;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmem_cli::chain;

use crate::back_off::BackOff;
use crate::daemon::{Daemon, DaemonError, Orders, Says, order};
use crate::process::Process;
use crate::queue::{Message, Receiver, Sender, queue};

/// How often it is looked whether supervision is over.
const GLANCE: Duration = Duration::from_millis(50);

/// How long one that is started last, before supervision is over, is watched.
const SETTLING: Duration = Duration::from_secs(2);

/// What follows the end of a vmemd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// No other one: its work is done, or cannot be done.
    Over,
    /// Another one, after this time.
    In(Duration),
    /// Another one, at once at first, and after longer and longer pauses if it ends again and again.
    BackOff,
}

/// What a supervisor has to know of its vmemd.
pub(crate) trait Work: Send + 'static {
    /// Starts one.
    fn start(&self) -> Result<Daemon, DaemonError>;

    /// Whether one may be started, or go on now that it is ready; why not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether a line of its standard output says that it is ready.
    fn is_ready(&self, line: &str) -> bool;

    /// How long it may take until then.
    fn patience(&self) -> Option<Duration>;

    /// What follows its end. `None`: it could not be started, or nobody knows how it has ended.
    fn after(&self, status: Option<ExitStatus>) -> Next;
}

/// What becomes of vmemd.
#[derive(Debug)]
pub(crate) enum Event {
    /// A line of its standard output.
    Line(String),
    /// One that was started again is ready.
    Ready,
    /// It has ended, or could not be started.
    Ended {
        why: String,
        /// `None`: it could not be started, or nobody knows how it has ended.
        status: Option<ExitStatus>,
        /// When the next one is started. `None`: none is, and this is the last event.
        again: Option<Duration>,
    },
}

impl Message for Event {
    fn is_line(&self) -> bool {
        matches!(self, Self::Line(_))
    }

    fn of_line(line: String) -> Self {
        Self::Line(line)
    }
}

/// What is supervised first.
pub(crate) enum First {
    /// One that is ready.
    Running(Daemon),
    /// One that an earlier vmemctl has left, whose output nobody hears.
    Left(Process),
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
    mouth: Mutex<Mouth>,
}

/// What is said to vmemd.
#[derive(Default)]
struct Mouth {
    orders: Option<Orders>,
    /// What each new one is told.
    lasting: Vec<String>,
}

impl Supervisor {
    /// Begins with `first`.
    pub(crate) fn new(work: impl Work, first: First) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, events) = queue();
        let keeper = Keeper {
            work,
            shared: Arc::clone(&shared),
            events: sender,
            back_off: BackOff::default(),
        };
        if let First::Running(daemon) = &first {
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
    pub(crate) fn order(&self, word: &str) {
        let mut mouth = self.shared.mouth();
        mouth.lasting.push(word.to_owned());
        if let Some(orders) = &mouth.orders {
            order(orders, word);
        }
    }

    /// What happens next, if it does so within `limit`.
    pub(crate) fn hear(&self, limit: Duration) -> Option<Event> {
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

    fn mouth(&self) -> MutexGuard<'_, Mouth> {
        self.mouth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inside of the thread.
struct Keeper<W> {
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
    status: Option<ExitStatus>,
    lived: Duration,
}

impl<W: Work> Keeper<W> {
    /// Until supervision is over; whether a vmemd is left.
    fn keep(mut self, first: First) -> bool {
        let mut outcome = match first {
            First::Running(daemon) => self.watch(daemon, true),
            First::Left(process) => self.watch_left(&process),
            First::Missing => self.start(),
        };
        loop {
            let End { why, status, lived } = match outcome {
                Outcome::Over { left } => return left,
                Outcome::Ended(end) => end,
            };
            let again = match self.work.after(status) {
                Next::Over => None,
                Next::In(pause) => Some(pause),
                Next::BackOff => Some(self.back_off.pause(lived)),
            };
            self.tell(Event::Ended { why, status, again });
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
                status: None,
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
        let mut mouth = self.shared.mouth();
        let orders = daemon.orders();
        mouth.lasting.iter().for_each(|word| order(&orders, word));
        mouth.orders = Some(orders);
    }

    /// Hears what it says until it ends.
    fn watch(&self, mut daemon: Daemon, mut is_ready: bool) -> Outcome {
        let began = Instant::now();
        // Why it was made to end.
        let mut fault = None;
        loop {
            if self.shared.stops() {
                daemon.process().end();
                return Outcome::Over { left: false };
            }
            // One that was just started may yet fail.
            if self.shared.is_over() && (is_ready || began.elapsed() > SETTLING) {
                return Outcome::Over { left: true };
            }
            match daemon.hear(GLANCE) {
                Some(Says::Line(line)) => {
                    let became_ready = !is_ready && self.work.is_ready(&line);
                    self.tell(Event::Line(line));
                    if became_ready {
                        is_ready = true;
                        // What it opens by name it has opened meanwhile.
                        match self.work.check() {
                            Ok(()) => self.tell(Event::Ready),
                            Err(why) => fault = fault.or(Some(why)),
                        }
                    }
                }
                Some(Says::Ended(status)) => {
                    return Outcome::Ended(End {
                        status: fault.is_none().then_some(status),
                        why: fault.unwrap_or_else(|| daemon.ended(status).to_string()),
                        lived: began.elapsed(),
                    });
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
                daemon.process().end();
            }
        }
    }

    /// Waits for the end of one that says nothing here.
    fn watch_left(&self, process: &Process) -> Outcome {
        let began = Instant::now();
        loop {
            if self.shared.stops() {
                process.end();
                return Outcome::Over { left: false };
            }
            if self.shared.is_over() {
                return Outcome::Over { left: true };
            }
            if process.wait(GLANCE) {
                return Outcome::Ended(End {
                    why: format!("vmemd (process {}) has ended", process.number()),
                    status: None,
                    lived: began.elapsed(),
                });
            }
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
            thread::sleep(left.min(GLANCE));
        }
    }

    fn tell(&self, event: Event) {
        self.events.send(event);
    }
}

#[cfg(test)]
mod tests;
