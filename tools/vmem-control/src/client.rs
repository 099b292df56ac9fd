// SPDX-License-Identifier: GPL-2.0-or-later
//! The end that gives orders.

mod caller;
mod greeting;
mod incoming;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::backlog::Backlog;
use crate::error::Error;
use crate::event::{Event, Status};
use crate::message::{Answer, Message, Reply, Request};
use crate::rounds::Change;

pub use caller::Caller;
pub use greeting::{Greeting, Hello};
pub use incoming::Incoming;

/// The most events that wait for [`Client::event`].
const EVENTS: usize = 1024;

/// A connection to a daemon, for one thread.
#[derive(Debug)]
pub struct Client {
    hello: Hello,
    caller: Caller,
    incoming: Incoming,
    /// Events that came before answers.
    events: Backlog,
}

impl Client {
    /// Connects to the daemon at `path`, which must answer within `limit`.
    ///
    /// # Errors
    ///
    /// There is none, it does not answer, or it refuses.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let mut greeting = Greeting::send(path)?;
        let hello = greeting.wait(Instant::now() + limit)?.ok_or(Error::TimedOut(limit))?;
        let (caller, incoming) = greeting.into_parts();
        Ok(Self {
            hello,
            caller,
            incoming,
            events: Backlog::new(EVENTS),
        })
    }

    /// What the daemon has said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Sends a request, and waits for its answer. Events that come meanwhile are kept for [`event`](Self::event), the latest
    /// 1024 of them and 4 MiB.
    ///
    /// # Errors
    ///
    /// The daemon refuses ([`Error::Refused`]), does not answer within `limit`, or is gone.
    pub fn call(&mut self, request: Request, limit: Duration) -> Result<Answer, Error> {
        let until = Instant::now() + limit;
        let id = self.caller.send(request)?;
        loop {
            match self.incoming.next(until)?.ok_or(Error::TimedOut(limit))? {
                Message::Event(_) if Instant::now() > until => return Err(Error::TimedOut(limit)),
                Message::Event(event) => self.events.push(event),
                Message::Reply(Reply {
                    id: of,
                    answer: Answer::Error { kind, text },
                }) if of == id || of == 0 => return Err(Error::Refused { kind, text }),
                Message::Reply(Reply { id: of, answer }) if of == id => return Ok(answer),
                // To a request whose answer was not waited for any longer.
                Message::Reply(_) => {}
            }
        }
    }

    /// Where the daemon stands.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn status(&mut self, limit: Duration) -> Result<Status, Error> {
        match self.call(Request::Status, limit)? {
            Answer::Status(status) => Ok(*status),
            other => Err(Error::Foreign(format!("{other:?}"))),
        }
    }

    /// Has it end its hold.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn start(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Start, limit).map(drop)
    }

    /// Has it let the source give back what has been delivered.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn release(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Release, limit).map(drop)
    }

    /// Has a source change how it sends.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn set(&mut self, change: Change, limit: Duration) -> Result<(), Error> {
        self.call(Request::Set(change), limit).map(drop)
    }

    /// Has a vmemctl give its migration up. It ends later, with the event [`Event::End`].
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn abort(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Abort, limit).map(drop)
    }

    /// Has it send events from now on.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn subscribe(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Subscribe, limit).map(drop)
    }

    /// Has it end; when this returns without an error, it has let go of everything.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call); [`Error::Closed`]: it has ended before it could answer.
    pub fn stop(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Stop, limit).map(drop)
    }

    /// The next event, if there is one until `deadline`.
    ///
    /// # Errors
    ///
    /// No event will come any more.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Event>, Error> {
        if let Some(event) = self.events.pop() {
            return Ok(Some(event));
        }
        loop {
            match self.incoming.next(deadline)? {
                None => return Ok(None),
                Some(Message::Event(event)) => return Ok(Some(event)),
                Some(Message::Reply(_)) => {}
            }
        }
    }
}
