// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection to a server, and those who use it.

use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::link::Link;
use crate::wire::{Request, command, errno};

use super::description::Description;
use super::error::{Error, violation};
use super::handshake::{Protect, negotiate};
use super::inbox::{Failure, Inbox, Outcome};
use super::question::Question;
use super::receiver::Receiver;
use super::requests::{Priority, Requests, Wanted};

/// A connection to an export. It is closed when this and all of its clients are dropped.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    clients: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    description: Description,
    state: Mutex<State>,
    /// Requests can be sent, or the session has ended.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    requests: Requests,
    inboxes: Vec<Weak<Inbox>>,
    end: Option<End>,
}

#[derive(Clone, Debug)]
enum End {
    /// Nobody uses the session any more.
    Closed,
    Failed(Error),
}

impl Session {
    /// Negotiates the export over a connected socket. `timeout` is the time limit of the handshake, and of each answer: from the request on, or from when
    /// all earlier requests are answered. With `protect`, the export is negotiated only after the connection is protected. Each of the threads calls
    /// `begin` first.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn open(
        socket: Socket,
        export: &str,
        timeout: Duration,
        protect: Option<&Protect<'_>>,
        begin: impl Fn() + Clone + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let local = |error| Error::Io(Arc::new(error));
        let link = Link::new(socket, timeout).map_err(local)?;
        let (link, description) = negotiate(link, export, protect)?;
        let shared = Arc::new(Shared {
            link,
            description,
            state: Mutex::new(State {
                requests: Requests::new(!description.can_multi_conn),
                inboxes: Vec::new(),
                end: None,
            }),
            changed: Condvar::new(),
        });
        // From here on the threads end when the session is dropped.
        let session = Arc::new(Self {
            shared: Arc::clone(&shared),
            clients: AtomicU64::new(0),
        });
        for (name, run) in [
            ("nbd-send", Shared::send as fn(&Shared) -> _),
            ("nbd-receive", Shared::receive),
        ] {
            let (shared, begin) = (Arc::clone(&shared), begin.clone());
            let run = move || {
                // Also if it panics: a reply that never comes would be waited for without end.
                let _end = Guard(&shared);
                begin();
                if let Err(error) = run(&shared) {
                    shared.fail(error);
                }
            };
            thread::Builder::new().name(name.to_owned()).spawn(run).map_err(local)?;
        }
        Ok(session)
    }

    /// The export.
    #[must_use]
    pub fn description(&self) -> Description {
        self.shared.description
    }

    /// Whether it can be used.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.lock().end.is_none()
    }

    /// A client whose requests all have this priority.
    ///
    /// # Errors
    ///
    /// The session has ended, or there is no descriptor left.
    pub fn client(self: &Arc<Self>, priority: Priority) -> Result<Client, Error> {
        let inbox = Arc::new(Inbox::new()?);
        let mut state = self.shared.lock();
        if let Some(End::Failed(error)) = &state.end {
            return Err(error.clone());
        }
        state.inboxes.retain(|inbox| inbox.strong_count() > 0);
        state.inboxes.push(Arc::downgrade(&inbox));
        drop(state);
        Ok(Client {
            session: Arc::clone(self),
            number: self.clients.fetch_add(1, Ordering::Relaxed),
            priority,
            inbox,
        })
    }
}

impl Drop for Session {
    /// Waits for nothing: the sender takes leave of the server.
    fn drop(&mut self) {
        self.shared.lock().end.get_or_insert(End::Closed);
        self.shared.changed.notify_all();
    }
}

/// One that asks, and gets the replies to what it has asked for.
#[derive(Debug)]
pub struct Client {
    session: Arc<Session>,
    number: u64,
    priority: Priority,
    inbox: Arc<Inbox>,
}

impl Client {
    /// The export.
    #[must_use]
    pub fn description(&self) -> Description {
        self.session.description()
    }

    /// Asks, and waits for nothing. `tag` comes back with the reply.
    ///
    /// # Errors
    ///
    /// The session has ended.
    pub fn ask(&self, question: Question, tag: u64) -> Result<(), Error> {
        let shared = &self.session.shared;
        let mut state = shared.lock();
        if let Some(End::Failed(error)) = &state.end {
            return Err(error.clone());
        }
        let wanted = Wanted {
            client: self.number,
            tag,
            question,
            inbox: Arc::clone(&self.inbox),
        };
        state.requests.push(self.priority, wanted);
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }

    /// Waits for a reply, with its tag; only while one is due.
    ///
    /// # Errors
    ///
    /// The session has ended. No more replies will come.
    pub fn next_reply(&self) -> Result<(u64, Outcome), Error> {
        self.inbox.next()
    }

    /// A descriptor that is readable when there is a reply, or the session has ended.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.fd()
    }

    /// Makes the descriptor readable if there is a reply, or if the caller has `more` of its own; else not. To be called when the caller has taken what it
    /// wants.
    pub fn rearm(&self, more: bool) {
        self.inbox.rearm(more);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.session.shared.lock().requests.withdraw(self.number);
    }
}

/// Ends the session when its thread ends.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fail(Error::Io(Arc::new(std::io::Error::other(
            "a thread of the connection has ended",
        ))));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session, and tells all clients. The first error is the one that counts.
    fn fail(&self, error: Error) {
        let mut state = self.lock();
        if !matches!(state.end, Some(End::Failed(_))) {
            state.requests.clear();
            for inbox in state.inboxes.drain(..).filter_map(|inbox| inbox.upgrade()) {
                inbox.end(&error);
            }
            state.end = Some(End::Failed(error));
        }
        drop(state);
        self.link.shut_down(Shutdown::Both);
        self.changed.notify_all();
    }

    /// Sends requests until the session ends.
    fn send(&self) -> Result<(), Error> {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(End::Failed(_)) => return Ok(()),
                Some(End::Closed) => {
                    drop(state);
                    return self.take_leave();
                }
                None => {}
            }
            let bytes = state.requests.take();
            if bytes.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let written = self.link.write(&[&bytes]);
            written.map_err(Error::of("take a request", self.link.timeout()))?;
            state = self.lock();
        }
    }

    /// Tells the server that nothing is wanted any more.
    fn take_leave(&self) -> Result<(), Error> {
        let request = Request {
            flags: 0,
            command: command::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        // A server that has gone already was not to be told.
        let _ = self.link.write(&[&request.encode()]);
        Err(Error::Closed)
    }

    /// Receives replies until the session ends.
    fn receive(&self) -> Result<(), Error> {
        let receiver = Receiver {
            link: &self.link,
            description: self.description,
        };
        loop {
            self.wait_for_reply()?;
            let header = receiver.header()?;
            let cookie = header.cookie();
            let assembly = self.lock().requests.take_assembly(cookie);
            let unknown = || {
                violation(format!(
                    "a reply with the cookie {cookie:#x}, which no request has that is not answered"
                ))
            };
            let Some(mut assembly) = assembly else {
                // Of a session that has just ended, all requests are forgotten.
                return if self.lock().end.is_some() { Ok(()) } else { Err(unknown()) };
            };
            if !receiver.body(header, &mut assembly)? {
                self.lock().requests.put_assembly(cookie, assembly);
                continue;
            }
            let outcome = assembly.finish()?;
            if let Outcome::Read(Err(Failure { errno, .. }), _) | Outcome::Extents(Err(Failure { errno, .. })) = &outcome {
                if *errno == errno::ESHUTDOWN {
                    return Err(Error::ShuttingDown);
                }
            }
            if let Some(sent) = self.lock().requests.finish(cookie) {
                sent.inbox.deliver(sent.tag, outcome);
            }
            self.changed.notify_all();
        }
    }

    /// Waits until there is something to read, as long as the oldest request may take.
    fn wait_for_reply(&self) -> Result<(), Error> {
        let limit = self.link.timeout();
        loop {
            let deadline = self.lock().requests.waiting_since().map(|since| since + limit);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let is_readable = self.link.wait(Some(left.unwrap_or(limit)));
            if left == Some(Duration::ZERO) {
                return Err(Error::TimedOut {
                    action: "answer a request",
                    limit,
                });
            }
            match is_readable.map_err(|error| Error::Io(Arc::new(error)))? {
                true => return Ok(()),
                // A request may have been sent meanwhile: its time is not over before this wait is.
                false => continue,
            }
        }
    }
}
