// SPDX-License-Identifier: GPL-2.0-or-later
//! Keeps one vmemd alive, in a thread of its own: when vmemd ends, the thread starts another one, at once or after a pause.
//!
//! The thread waits for vmemd alone. It does not wait for QEMU, which may itself wait for a page, nor for the other host.

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

/// How often the thread checks whether supervision has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the thread watches a vmemd that it starts last, after supervision has been told to end.
const SETTLING: Duration = Duration::from_secs(2);

/// The pauses before a vmemd that ends again and again is started again: none at first, then 1 s, 2 s, 4 s, up to one minute. After a vmemd
/// that has run for longer than that, the pauses begin anew.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the supervisor does after the end of a vmemd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restart {
    /// Start no other vmemd: its work is done, or cannot be done.
    Over,
    /// Start another vmemd after this time.
    In(Duration),
    /// Start another vmemd, at once at first, and after growing pauses if it ends again and again.
    BackOff,
}

/// How a supervisor starts its vmemd, and how it judges that vmemd.
pub(crate) trait Supervised: Send + 'static {
    /// Starts a vmemd.
    fn start(&self) -> Result<Daemon, DaemonError>;

    /// Checks whether a vmemd may be started, or may continue now that it is ready. The error says why not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether vmemd is ready, by this event.
    fn is_ready(&self, said: &DaemonEvent) -> bool;

    /// How long vmemd may take to become ready.
    fn patience(&self) -> Option<Duration>;

    /// What follows the end of vmemd. `code` is `None` if vmemd was killed, could not be started, or its exit code is unknown.
    fn after(&self, code: Option<i32>) -> Restart;
}

/// An event about vmemd.
#[derive(Debug)]
pub(crate) enum Event {
    /// An event that vmemd has sent.
    DaemonReport(DaemonReport),
    /// The status of vmemd, after a connection to it.
    Status(Box<Status>),
    /// A vmemd that is ready does not accept orders.
    Refuses(String),
    /// vmemd does not finish, or does not change how it sends, for this reason.
    Refused(Request, String),
    /// A vmemd that the supervisor has started is ready.
    Ready,
    /// vmemd has ended, or could not be started.
    Ended {
        why: String,
        /// Its exit code. `None`: vmemd was killed, could not be started, or its exit code is unknown.
        code: Option<i32>,
        /// When the next vmemd is started. `None`: none is, and this is the last event.
        again: Option<Duration>,
    },
}

impl Message for Event {
    fn is_event(&self) -> bool {
        matches!(self, Self::DaemonReport(_) | Self::Status(_))
    }

    fn size(&self) -> usize {
        match self {
            Self::DaemonReport(event) => event.size(),
            Self::Status(status) => status.size(),
            Self::Refuses(_) | Self::Refused(..) | Self::Ready | Self::Ended { .. } => 0,
        }
    }

    fn dropped(lines: u64) -> Self {
        Self::DaemonReport(DaemonReport::Dropped { lines })
    }
}

/// The vmemd that supervision begins with.
pub(crate) enum Initial {
    /// A vmemd that is ready, or was ready when an earlier vmemctl left it.
    Running(Daemon),
    /// None: the supervisor starts one.
    Missing,
}

/// The handle of a supervisor thread and its vmemd.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<bool>>,
}

#[derive(Default)]
struct Shared {
    /// Supervision is to end, and vmemd is to continue.
    leave: AtomicBool,
    /// Supervision is to end, and vmemd is to end.
    stop: AtomicBool,
    requests: Mutex<Requests>,
}

/// The orders to vmemd.
#[derive(Default)]
struct Requests {
    orders: Option<Orders>,
    /// The orders that each new vmemd gets.
    lasting: Vec<Request>,
}

impl Supervisor {
    /// Starts supervision with `first`.
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

    /// Gives an order to the present vmemd, and to each that follows. The latest change of how it sends counts.
    pub(crate) fn order(&self, request: Request) {
        let mut requests = self.shared.requests();
        if let Request::Set(_) = request {
            requests.lasting.retain(|earlier| !matches!(earlier, Request::Set(_)));
        }
        requests.lasting.push(request.clone());
        if let Some(orders) = &requests.orders {
            orders.give(request);
        }
    }

    /// The next event, if there is one within `limit`.
    pub(crate) fn recv(&self, limit: Duration) -> Option<Event> {
        self.events.recv(limit)
    }

    /// Ends vmemd. Returns when it has ended.
    pub(crate) fn stop(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join();
    }

    /// Ends supervision, and leaves vmemd running. If there is none at the moment, one more is started. Returns whether a vmemd is left.
    pub(crate) fn leave(mut self) -> bool {
        self.shared.leave.store(true, Ordering::SeqCst);
        self.join()
    }

    fn join(&mut self) -> bool {
        self.thread.take().is_some_and(|thread| thread.join().unwrap_or(false))
    }
}

impl Drop for Supervisor {
    /// Leaves vmemd running, because a guest may need it.
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

/// The state of the thread.
struct SupervisorThread<W> {
    work: W,
    shared: Arc<Shared>,
    events: Sender<Event>,
    back_off: BackOff,
}

/// How watching a vmemd has ended.
enum Outcome {
    Ended(End),
    /// Supervision has ended. `left`: a vmemd still runs.
    Over {
        left: bool,
    },
}

/// How a vmemd has ended.
struct End {
    why: String,
    code: Option<i32>,
    lived: Duration,
}

impl<W: Supervised> SupervisorThread<W> {
    /// Runs until supervision ends. Returns whether a vmemd is left.
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
            self.report(Event::Ended { why, code, again });
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

    /// Starts a vmemd, and watches it.
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

    /// Directs orders to this vmemd from now on, and gives it the lasting ones first.
    fn introduce(&self, daemon: &Daemon) {
        let mut requests = self.shared.requests();
        let orders = daemon.orders();
        requests.lasting.iter().for_each(|request| orders.give(request.clone()));
        requests.orders = Some(orders);
    }

    /// Receives the events of a vmemd until it or supervision ends.
    fn watch(&self, mut daemon: Daemon, mut is_ready: bool) -> Outcome {
        let began = Instant::now();
        // Why this thread makes vmemd end.
        let mut fault = None;
        // When the thread has seen that the process has ended while supervision ends.
        let mut ended = None;
        loop {
            if self.shared.stops() {
                daemon.end();
                return Outcome::Over { left: false };
            }
            // A vmemd that was just started may still fail.
            if self.shared.is_over() && (is_ready || began.elapsed() > SETTLING) {
                // A vmemd that has just died is not left: its end is about to be reported. If it is not, the process was a script, and the
                // vmemd behind the script still has the connection.
                let is_left = !daemon.has_ended() || ended.get_or_insert_with(Instant::now).elapsed() > SETTLING;
                if is_left {
                    return Outcome::Over { left: true };
                }
            }
            match daemon.recv(POLL_INTERVAL) {
                Some(DaemonEvent::Ended(ended)) => {
                    return Outcome::Ended(End {
                        code: ended.code().filter(|_| fault.is_none()),
                        why: fault.unwrap_or_else(|| daemon.ended(&ended).to_string()),
                        lived: began.elapsed(),
                    });
                }
                // A vmemd that is ready may serve a guest, so a refused order does not end it.
                Some(DaemonEvent::Refuses(why)) if is_ready => self.report(Event::Refuses(why)),
                Some(DaemonEvent::Refuses(why)) => fault = fault.or(Some(DaemonError::Refuses(why).to_string())),
                Some(said) => {
                    // It answers so on each new connection, and orders that were given between two are lost.
                    if matches!(said, DaemonEvent::Status(_)) {
                        self.introduce(&daemon);
                    }
                    let became_ready = !is_ready && self.work.is_ready(&said);
                    self.pass(said);
                    if became_ready {
                        is_ready = true;
                        // vmemd has opened its files by name meanwhile. This checks that they are the right ones.
                        match self.work.check() {
                            Ok(()) => self.report(Event::Ready),
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
            DaemonEvent::Event(event) => self.report(Event::DaemonReport(event)),
            DaemonEvent::Status(status) => self.report(Event::Status(status)),
            DaemonEvent::Refused(order, why) => self.report(Event::Refused(order, why)),
            DaemonEvent::Refuses(_) | DaemonEvent::Ended(_) => {}
        }
    }

    /// Waits before the next start. The end of supervision ends the wait.
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

    fn report(&self, event: Event) {
        self.events.send(event);
    }
}

#[cfg(test)]
mod tests;
