// SPDX-License-Identifier: GPL-2.0-or-later
//! The end that takes orders: one thread, which waits for no client. A client that stalls, sends garbage or dies costs others nothing, and
//! the daemon's own threads wait for none.

mod connection;
mod run;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmem_process::Identity;

use crate::backlog::Backlog;
use crate::credentials::own_user;
use crate::error::Error;
use crate::event::{Event, Status};
use crate::message::Duty;
use crate::rounds::Change;
use run::Run;

/// Events that wait for the thread, at most. It takes them at once, unless the machine is very busy.
const WAITING: usize = 4096;

/// Why a daemon does not do what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal(String);

impl Refusal {
    /// For this reason, which people read.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// What a daemon does when it is told to. Each call is made by the thread of the server, and must not wait.
pub trait Service: Send + 'static {
    /// The end of the hold. It means nothing if there is none.
    ///
    /// # Errors
    ///
    /// This daemon does not do that.
    fn start(&mut self) -> Result<(), Refusal>;

    /// The program has stopped: the rounds of the source are over.
    ///
    /// # Errors
    ///
    /// This daemon does not do that.
    fn finish(&mut self) -> Result<(), Refusal> {
        Err(Refusal::new("it sends no rounds"))
    }

    /// The source may give back what has been delivered.
    ///
    /// # Errors
    ///
    /// This daemon does not do that.
    fn release(&mut self) -> Result<(), Refusal>;

    /// Changes how it sends, and answers then, from any thread.
    fn set(&mut self, _: Change, answer: Later) {
        answer.answer(Err(Refusal::new("it sends nothing that can be changed")));
    }

    /// Gives a migration up.
    ///
    /// # Errors
    ///
    /// This daemon does not do that, or it is too late.
    fn abort(&mut self) -> Result<(), Refusal> {
        Err(Refusal::new("it migrates nothing"))
    }

    /// The end: [`Server::finish`] answers it.
    fn stop(&mut self);

    /// The last client has gone, or none has come within [`About::first_client`].
    fn abandoned(&mut self) {}
}

/// What a daemon says of itself, and whom it listens to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    /// It was started for this session.
    pub session: String,
    /// What it does.
    pub duty: Duty,
    /// Which process it is.
    pub process: Identity,
    /// Whose processes may give orders, beside root's. Later changes of this process's user do not matter.
    pub owner: u32,
    /// How long the first client may take; without a limit if there is none.
    pub first_client: Option<Duration>,
}

impl About {
    /// This process, as it is now.
    ///
    /// # Errors
    ///
    /// [`Error::Identity`].
    pub fn new(session: impl Into<String>, duty: Duty) -> Result<Self, Error> {
        Ok(Self {
            session: session.into(),
            duty,
            process: Identity::own().map_err(Error::Identity)?,
            owner: own_user(),
            first_client: None,
        })
    }
}

/// What the daemon's threads have for the server's.
#[derive(Debug)]
struct Shared {
    events: Backlog,
    status: Status,
    /// When it was last said where the migration stands.
    migration_at: Instant,
    /// Answers to requests that were not answered at once: the numbers of the client and of the request.
    answers: Vec<(u64, u64, Result<(), Refusal>)>,
    /// The daemon ends; whether it has let go of everything.
    finish: Option<bool>,
}

impl Shared {
    /// The status as it is now. A vmemctl may wait for QEMU or for the other host meanwhile: times go on.
    fn status(&self) -> Status {
        let mut status = self.status.clone();
        if let Some(migration) = &mut status.migration {
            let age = self.migration_at.elapsed().as_secs_f64();
            migration.seconds += age;
            migration.idle_seconds += age;
        }
        status
    }
}

/// What says what happens to the daemon.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<UnixStream>,
}

impl Publisher {
    /// Tells all who have subscribed. Waits for nobody.
    pub fn publish(&self, mut event: Event) {
        event.cut();
        {
            let mut shared = lock(&self.shared);
            if let Event::Migration(_) = event {
                shared.migration_at = Instant::now();
            }
            shared.status.apply(&event);
            shared.events.push(event);
        }
        self.wake();
    }

    fn wake(&self) {
        // If it is full, the thread is about to wake up.
        let _ = (&*self.wake).write(&[0]);
    }
}

/// The answer to a request, which is given later. If it is dropped, the client gets an error.
#[derive(Debug)]
pub struct Later {
    publisher: Publisher,
    client: u64,
    id: u64,
    is_answered: bool,
}

impl Later {
    fn new(publisher: &Publisher, client: u64, id: u64) -> Self {
        Self {
            publisher: publisher.clone(),
            client,
            id,
            is_answered: false,
        }
    }

    /// Answers. Waits for nobody.
    pub fn answer(mut self, result: Result<(), Refusal>) {
        self.put(result);
    }

    fn put(&mut self, result: Result<(), Refusal>) {
        self.is_answered = true;
        lock(&self.publisher.shared).answers.push((self.client, self.id, result));
        self.publisher.wake();
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if !self.is_answered {
            self.put(Err(Refusal::new("it could not be done")));
        }
    }
}

/// A daemon's end of the protocol.
#[derive(Debug)]
pub struct Server {
    publisher: Publisher,
    ended: Receiver<()>,
}

impl Server {
    /// Takes connections of `listener`, in a thread of its own.
    ///
    /// # Errors
    ///
    /// There are no descriptors, or no thread.
    pub fn start(listener: UnixListener, about: About, service: impl Service) -> Result<Self, Error> {
        let (wake, woken) = UnixStream::pair().map_err(Error::Io)?;
        for socket in [&wake, &woken] {
            socket.set_nonblocking(true).map_err(Error::Io)?;
        }
        listener.set_nonblocking(true).map_err(Error::Io)?;
        let shared = Arc::new(Mutex::new(Shared {
            events: Backlog::new(WAITING),
            status: Status::default(),
            migration_at: Instant::now(),
            answers: Vec::new(),
            finish: None,
        }));
        let publisher = Publisher {
            shared,
            wake: Arc::new(wake),
        };
        let run = Run::new(listener, woken, publisher.clone(), about, service);
        let (alive, ended) = channel();
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // Dropped when it ends, however that is.
                let _alive = alive;
                run.run();
            })
            .map_err(Error::Io)?;
        Ok(Self { publisher, ended })
    }

    /// What says what happens to the daemon.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// The daemon ends. Answers those who have asked for it, if it `has_let_go` of everything; otherwise they find the connection closed
    /// when the process has ended. Waits for `limit` at most until the clients have taken what was sent.
    pub fn finish(self, has_let_go: bool, limit: Duration) {
        lock(&self.publisher.shared).finish = Some(has_let_go);
        self.publisher.wake();
        match self.ended.recv_timeout(limit) {
            // Nobody says anything there: it is over, or a client takes nothing.
            Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
