// SPDX-License-Identifier: GPL-2.0
//! The conversation with a vmemd, in a thread of its own: what vmemd says goes into a queue, and orders go the other way without waiting.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_control::{Answer, Caller, Error, Event, Greeting, Message as FromDaemon, Reply, Request, Status};

use super::spawned::{Held, lock};
use crate::queue::{Message, Sender};

/// How often it is looked whether a vmemd that says nothing has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Before a vmemd that has closed the connection, and lives, is connected to again.
const PAUSE: Duration = Duration::from_secs(1);

/// What a vmemd says, and how it ends.
#[derive(Debug)]
pub(crate) enum DaemonEvent {
    /// Where it stands, once it is connected to.
    Status(Status),
    Event(Event),
    /// It does not take orders from this program.
    Refuses(String),
    /// Its process has ended.
    Ended(Ended),
}

/// How a vmemd has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ended {
    /// Of a child.
    pub(crate) status: Option<ExitStatus>,
    /// What it has said itself: its exit code, and why.
    pub(crate) said: Option<(u8, Option<String>)>,
}

impl Ended {
    /// The exit code, if it has not been killed, and if that is known.
    pub(crate) fn code(&self) -> Option<i32> {
        match self.status {
            Some(status) => status.code(),
            None => self.said.as_ref().map(|(code, _)| i32::from(*code)),
        }
    }
}

impl Message for DaemonEvent {
    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    fn dropped(lines: u64) -> Self {
        Self::Event(Event::Dropped { lines })
    }
}

/// The way to a vmemd, which takes orders if it is there.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    caller: Arc<Mutex<Option<Caller>>>,
    /// It has answered.
    greeted: Arc<AtomicBool>,
}

impl Orders {
    /// Gives an order, if there is somebody to take it. Waits for nothing: if vmemd has ended, that is heard.
    pub(crate) fn give(&self, request: Request) {
        if let Some(caller) = &*lock(&self.caller) {
            let _ = caller.send(request);
        }
    }

    /// Asks it to end, if it is known to hear.
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
    /// What vmemd has said of its end.
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

    /// From now on orders go there; those that are given before it answers as well.
    pub(super) fn connected(&self, greeting: &Greeting) {
        let caller = greeting.caller();
        // If it has ended, that is heard.
        let _ = caller.send(Request::Subscribe);
        let _ = caller.send(Request::Status);
        *lock(&self.orders.caller) = Some(caller);
    }

    /// Until the process has ended: on this connection, whose HELLO has been answered or not, and on others if it is lost. Returns what
    /// vmemd has said of its end.
    pub(super) fn hold(
        mut self,
        first: Option<(Greeting, bool)>,
        held: &Held,
    ) -> (Sender<DaemonEvent>, Option<(u8, Option<String>)>) {
        let mut next = first;
        loop {
            if let Some((greeting, is_answered)) = next.take() {
                if let Err(error) = self.recv(greeting, is_answered, held) {
                    self.lost(&error);
                }
                self.orders.greeted.store(false, Ordering::SeqCst);
                lock(&self.orders.caller).take();
            }
            if held.wait(PAUSE) {
                return (self.says, self.end);
            }
            if let Ok(greeting) = Greeting::send(&self.socket) {
                self.connected(&greeting);
                next = Some((greeting, false));
            }
        }
    }

    /// Until the connection is lost, or the process has ended.
    fn recv(&mut self, mut greeting: Greeting, is_answered: bool, held: &Held) -> Result<(), Error> {
        while !is_answered && greeting.wait(Instant::now() + POLL_INTERVAL)?.is_none() {
            if held.wait(Duration::ZERO) {
                return Ok(());
            }
        }
        self.orders.greeted.store(true, Ordering::SeqCst);
        let (_caller, mut incoming) = greeting.into_parts();
        // The end of a script in its place is not the end of a vmemd that the script has started: that one closes the connection.
        loop {
            if let Some(message) = incoming.next(Instant::now() + POLL_INTERVAL)? {
                self.heard(message);
            }
        }
    }

    /// Tells once why it cannot be talked to. That it has closed the connection is mostly its end.
    fn lost(&mut self, error: &Error) {
        if !matches!(error, Error::Closed) && !std::mem::replace(&mut self.has_refused, true) {
            self.says.send(DaemonEvent::Refuses(chain(error)));
        }
    }

    fn heard(&mut self, message: FromDaemon) {
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
            // That it does not start or release is said by what it does.
            FromDaemon::Reply(_) => {}
        }
    }
}
