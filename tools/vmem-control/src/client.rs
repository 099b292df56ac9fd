// SPDX-License-Identifier: GPL-2.0-or-later
//! The end that gives orders.

mod caller;
mod greeting;
mod incoming;

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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    use std::thread;

    use super::caller::HELLO;
    use super::*;
    use crate::event::Region;
    use crate::message::{Duty, LONGEST_REPLY};
    use crate::socket;
    use vmem_process::Identity;

    const LONG: Duration = Duration::from_secs(20);

    /// A client of a peer that accepts a connection and does this with it.
    fn of_peer(peer: impl FnOnce(UnixStream) + Send + 'static) -> Result<Client, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = socket::bind(&path).expect("a socket");
        thread::spawn(move || peer(listener.accept().expect("a client").0));
        Client::connect(&path, LONG)
    }

    fn hello(mut socket: &UnixStream) {
        let answer = Answer::Hello {
            version: 1,
            session: String::new(),
            duty: Duty::Fetch,
            process: Identity::own().expect("this process"),
        };
        let line = serde_json::to_string(&Reply { id: HELLO, answer }).expect("JSON");
        socket.write_all(format!("{line}\n").as_bytes()).expect("room");
    }

    /// Writes until nobody reads.
    fn flood(mut socket: &UnixStream, bytes: &[u8]) {
        while socket.write_all(bytes).is_ok() {}
    }

    #[test]
    fn peer_that_sends_an_endless_line_ends_the_conversation() {
        let refused = of_peer(|socket| flood(&socket, &[b'x'; 4096]));
        assert!(
            matches!(&refused, Err(Error::TooLong { longest: LONGEST_REPLY, beginning }) if beginning.len() == 80),
            "{refused:?}"
        );
        let mut client = of_peer(|socket| {
            hello(&socket);
            flood(&socket, &[b'x'; 4096]);
        })
        .expect("HELLO");
        let error = client.event(Instant::now() + LONG).expect_err("no event");
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn events_that_wait_for_an_answer_are_bounded() {
        let mut client = of_peer(|socket| {
            hello(&socket);
            let regions = vec![
                Region {
                    name: "x".repeat(31),
                    bytes: 0,
                    present_bytes: 0,
                    unreadable_pages: 0,
                    phase: crate::event::Phase::Filling,
                    ..Region::default()
                };
                crate::MAX_REGIONS
            ];
            let source = "host".to_owned();
            let line = serde_json::to_string(&Event::Ready { source, regions }).expect("JSON");
            // 8 MiB, and then no answer.
            let line = format!("{line}\n");
            let mut socket = &socket;
            (0..(8 << 20) / line.len()).for_each(|_| socket.write_all(line.as_bytes()).expect("a reader"));
        })
        .expect("HELLO");
        let unanswered = client.status(LONG);
        assert!(matches!(unanswered, Err(Error::Closed)), "{unanswered:?}");
        let mut kept = 0;
        while let Some(event) = client.events.pop() {
            kept += event.size();
        }
        assert!((1 << 20..5 << 20).contains(&kept), "{kept}");
    }

    #[test]
    fn other_process_to_which_the_daemon_has_given_the_connection_is_refused() {
        let mut client = of_peer(|socket| {
            hello(&socket);
            let mut other = Command::new("sh");
            other.args(["-c", "echo '{\"event\":\"end\",\"exit_code\":0,\"error\":null}'"]);
            other.stdout(Stdio::from(OwnedFd::from(socket)));
            other.status().expect("a process");
        })
        .expect("HELLO");
        let refused = client.event(Instant::now() + LONG);
        assert!(matches!(refused, Err(Error::Impostor { .. })), "{refused:?}");
    }
}
