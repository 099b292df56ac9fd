// SPDX-License-Identifier: GPL-2.0-or-later
//! The conversation with a vmemd, in a thread of its own: the thread queues what vmemd sends. Orders go the other way without waiting.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_control::{Answer, Caller, Error, Event, Greeting, Hello, Message as FromDaemon, Reply, Request, Status};
use vmem_wait::BackOff;

use super::spawned::{Held, lock};
use crate::queue::{Message, Sender};
use vmem_process::Process;

/// How often the thread checks whether a silent vmemd has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The pause before the thread reconnects to a vmemd that has closed the connection and lives.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause before the thread reconnects to a vmemd that breaks the protocol again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the thread reads what is left of a vmemd that has ended. It is there already.
const REST: Duration = Duration::from_secs(1);

/// An event of a vmemd, or its end.
#[derive(Debug)]
pub(crate) enum DaemonEvent {
    /// The status of vmemd, after a connection to it.
    Status(Box<Status>),
    Event(Event),
    /// vmemd does not accept orders from this program.
    Refuses(String),
    /// vmemd does not finish, or does not change how it sends, for this reason.
    Refused(Request, String),
    /// The process of vmemd has ended.
    Ended(Ended),
}

/// How a vmemd has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ended {
    /// The exit status, if vmemd was a child of this process.
    pub(crate) status: Option<ExitStatus>,
    /// What vmemd has reported before its end: its exit code, and why.
    pub(crate) said: Option<(u8, Option<String>)>,
}

impl Ended {
    /// The exit code, if vmemd has not been killed and the code is known.
    pub(crate) fn code(&self) -> Option<i32> {
        match self.status {
            Some(status) => status.code(),
            None => self.said.as_ref().map(|(code, _)| i32::from(*code)),
        }
    }
}

impl Message for DaemonEvent {
    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_) | Self::Status(_))
    }

    fn size(&self) -> usize {
        match self {
            Self::Event(event) => event.size(),
            Self::Status(status) => status.size(),
            Self::Refuses(_) | Self::Refused(..) | Self::Ended(_) => 0,
        }
    }

    fn dropped(lines: u64) -> Self {
        Self::Event(Event::Dropped { lines })
    }
}

/// The most orders whose answers are waited for. A vmemd that answers does so at once.
const PENDING: usize = 64;

/// A handle that gives orders to a vmemd while there is a connection.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    caller: Arc<Mutex<Option<Caller>>>,
    /// The orders that were given on this connection and are not answered, with the numbers of their answers.
    pending: Arc<Mutex<Vec<(u64, Request)>>>,
    /// vmemd has answered the greeting.
    greeted: Arc<AtomicBool>,
}

impl Orders {
    /// Gives an order, if there is a connection. Does not wait. If vmemd has ended, the conversation notices that.
    pub(crate) fn give(&self, request: Request) {
        if let Some(caller) = &*lock(&self.caller) {
            // The answer is not looked at before the order is noted.
            let mut pending = lock(&self.pending);
            if let Ok(id) = caller.send(request.clone()) {
                if pending.len() >= PENDING {
                    pending.remove(0);
                }
                pending.push((id, request));
            }
        }
    }

    /// The order that is answered by this.
    fn answered(&self, id: u64) -> Option<Request> {
        let mut pending = lock(&self.pending);
        let at = pending.iter().position(|(order, _)| *order == id)?;
        Some(pending.remove(at).1)
    }

    /// Asks vmemd to end, if it has answered the greeting. Returns whether it has.
    pub(super) fn stop(&self) -> bool {
        let hears = self.greeted.load(Ordering::SeqCst);
        if hears {
            self.give(Request::Stop);
        }
        hears
    }
}

/// One conversation.
pub(super) struct Conversation {
    pub(super) socket: PathBuf,
    pub(super) orders: Orders,
    pub(super) says: Sender<DaemonEvent>,
    /// The exit code and reason that vmemd has reported.
    end: Option<(u8, Option<String>)>,
    has_refused: bool,
}

impl Conversation {
    pub(super) fn new(socket: &Path, orders: &Orders, says: Sender<DaemonEvent>) -> Self {
        Self {
            socket: socket.to_owned(),
            orders: orders.clone(),
            says,
            end: None,
            has_refused: false,
        }
    }

    /// Directs orders to this connection from now on. vmemd also gets those that are given before it answers.
    pub(super) fn connected(&self, greeting: &Greeting) {
        let caller = greeting.caller();
        // If vmemd has ended, the thread notices that.
        let _ = caller.send(Request::Subscribe);
        let _ = caller.send(Request::Status);
        let mut current = lock(&self.orders.caller);
        lock(&self.orders.pending).clear();
        *current = Some(caller);
    }

    /// Receives until the process has ended: on this connection, whose HELLO has been answered or not, and on new ones if it is lost.
    /// Returns the exit code and reason that vmemd has reported.
    pub(super) fn hold(
        mut self,
        first: Option<(Greeting, Option<Hello>)>,
        held: &Held,
    ) -> (Sender<DaemonEvent>, Option<(u8, Option<String>)>) {
        let mut next = first;
        let mut pauses = BackOff::new(PAUSE, LONGEST_PAUSE);
        loop {
            let mut pause = PAUSE;
            if let Some((greeting, hello)) = next.take() {
                match self.recv(greeting, hello, held) {
                    Ok(()) | Err(Error::Closed) => pauses.reset(),
                    // The peer breaks the protocol, and most likely will again.
                    Err(error) => {
                        self.lost(&error);
                        pause = pauses.next_pause();
                    }
                }
                self.orders.greeted.store(false, Ordering::SeqCst);
                lock(&self.orders.caller).take();
            }
            if held.wait(pause) {
                return (self.says, self.end);
            }
            if let Ok(greeting) = Greeting::send(&self.socket) {
                self.connected(&greeting);
                next = Some((greeting, None));
            }
        }
    }

    /// Receives until the connection is lost, or the process has ended.
    fn recv(&mut self, mut greeting: Greeting, hello: Option<Hello>, held: &Held) -> Result<(), Error> {
        let mut answer = hello;
        let hello = loop {
            if let Some(hello) = answer {
                break hello;
            }
            answer = greeting.wait(Instant::now() + POLL_INTERVAL)?;
            if answer.is_none() && held.wait(Duration::ZERO) {
                return Ok(());
            }
        };
        self.orders.greeted.store(true, Ordering::SeqCst);
        // A script instead of vmemd may end before the vmemd that it has started, so the conversation is with the process that has answered.
        let process = Process::look_up(&hello.process).map_err(Error::Io)?;
        let (_caller, mut incoming) = greeting.into_parts();
        // Most connections close when vmemd ends. One that vmemd has passed on to another process does not.
        let mut rest = None;
        loop {
            if rest.is_none() && process.as_ref().is_none_or(|process| process.wait(Duration::ZERO)) {
                rest = Some(Instant::now() + REST);
            }
            let until = rest.map_or_else(|| Instant::now() + POLL_INTERVAL, |_| Instant::now());
            match incoming.next(until)? {
                Some(message) => self.handle(message),
                None if rest.is_some() => return Ok(()),
                None => {}
            }
            if rest.is_some_and(|rest| Instant::now() > rest) {
                return Ok(());
            }
        }
    }

    /// Reports once why the conversation failed.
    fn lost(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.has_refused, true) {
            self.says.send(DaemonEvent::Refuses(chain(error)));
        }
    }

    fn handle(&mut self, message: FromDaemon) {
        match message {
            FromDaemon::Event(event) => {
                if let Event::End { exit_code, error, .. } = &event {
                    self.end = Some((*exit_code, error.clone()));
                }
                self.says.send(DaemonEvent::Event(event));
            }
            FromDaemon::Reply(Reply {
                answer: Answer::Status(status),
                ..
            }) => self.says.send(DaemonEvent::Status(status)),
            FromDaemon::Reply(Reply { id, answer }) => {
                let order = self.orders.answered(id);
                // The events show what comes of an order that is obeyed. All vmemds are told to release, also those that free nothing.
                if let (Some(order @ (Request::Finish | Request::Set(_))), Answer::Error { text, .. }) = (order, answer) {
                    self.says.send(DaemonEvent::Refused(order, text));
                }
            }
        }
    }
}
