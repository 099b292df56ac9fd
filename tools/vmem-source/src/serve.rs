// SPDX-License-Identifier: GPL-2.0
//! The source's side of the page protocol: offers memory to peers.
//!
//! One thread accepts, and each connection has a thread of its own, so that an urgent question is answered while the stream is busy.
//! What a connection may use is bounded: one chunk of pages, one frame of questions, and time for everything that it begins, but for one
//! thing: a touch of an absent page of a region takes as long as its daemon does.

mod connection;
mod held;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem::PageRange;
use vmem_tls::Identity;

use crate::memory::Memory;
use crate::source::{Export, Lane};
use crate::wire::MAX_EXPORTS;
use crate::wire::greeting::FEATURE_RELEASE;

pub use connection::{ServeError, Served};
use held::Held;

/// What peers may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; a daemon takes two.
    pub connections: usize,
    /// How long a peer may take for a greeting, to send a frame that it has begun, or to take one.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What happens to connections, for a log.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A peer has greeted.
    Connected {
        /// Who.
        peer: SocketAddr,
        /// What for.
        lane: Lane,
    },
    /// A connection has ended.
    Ended {
        /// Who.
        peer: SocketAddr,
        /// What it was given.
        served: Served,
        /// Why, unless the peer said goodbye.
        error: Option<&'a ServeError>,
    },
    /// A connection was refused: there are too many.
    Refused {
        /// Who.
        peer: SocketAddr,
    },
    /// Pages could not be given back.
    Kept {
        /// Of which memory.
        name: &'a vmem::Name,
        /// Why.
        error: &'a io::Error,
    },
    /// A connection could not be accepted.
    Failed {
        /// Why.
        error: &'a io::Error,
    },
}

/// What a server has given to all connections together.
#[derive(Debug, Default)]
pub struct Totals {
    /// Connections that were taken.
    pub connections: AtomicU64,
    /// Pages with their bytes.
    pub data: AtomicU64,
    /// Zero pages.
    pub zero: AtomicU64,
    /// Pages that could not be read.
    pub unreadable: AtomicU64,
    /// Pages given back.
    pub released: AtomicU64,
}

/// A listening server.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What all threads share.
struct Shared {
    memories: Vec<Memory>,
    exports: Vec<Export>,
    limits: Limits,
    identity: Option<Identity>,
    /// What was released before anything may be.
    held: Held,
    totals: Arc<Totals>,
    report: Box<dyn Fn(Event<'_>) + Send + Sync>,
    /// The connections, by a running number, to end them when the server ends.
    open: Mutex<HashMap<u64, TcpStream>>,
}

/// A server cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Not as many as a source can offer.
    #[error("{0} exports; a source offers 1 to {MAX_EXPORTS}")]
    Exports(usize),
    /// Two have the same name.
    #[error("two exports are called {0}")]
    DuplicateName(vmem::Name),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Server {
    /// Listens on `address`. With an identity, only those are let in whom its authority has certified. `report` is called from several
    /// threads.
    ///
    /// # Errors
    ///
    /// There is nothing to offer, or not so, or not there.
    pub fn bind(
        address: SocketAddr,
        memories: Vec<Memory>,
        limits: Limits,
        identity: Option<Identity>,
        report: impl Fn(Event<'_>) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let exports: Vec<Export> = memories.iter().map(|memory| memory.export().clone()).collect();
        if !(1..=MAX_EXPORTS).contains(&exports.len()) {
            return Err(StartError::Exports(exports.len()));
        }
        let mut names = HashSet::new();
        if let Some(twice) = exports.iter().find(|export| !names.insert(&export.name)) {
            return Err(StartError::DuplicateName(twice.name.clone()));
        }
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| StartError::Listen { address, source })?;
        let open = Mutex::default();
        let shared = Arc::new(Shared {
            memories,
            exports,
            limits,
            identity,
            held: Held::default(),
            totals: Arc::default(),
            report: Box::new(report),
            open,
        });
        Ok(Self { listener, shared })
    }

    /// Gives no page back before [`allow_release`](Self::allow_release): what destinations say that they have is kept until then.
    #[must_use]
    pub fn hold_release(self) -> Self {
        self.shared.held.begin(self.shared.memories.len());
        self
    }

    /// It is sure that nobody will need the memory here any more: gives back what destinations have, and will have.
    pub fn allow_release(&self) {
        for (export, ranges) in self.shared.held.end().into_iter().enumerate() {
            self.shared.give_back(export, &ranges);
        }
    }

    /// What is offered.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.shared.exports
    }

    /// What it has given so far, and gives from now on.
    #[must_use]
    pub fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.shared.totals)
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// None but what a broken descriptor gives.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is readable, then ends all connections.
    ///
    /// # Errors
    ///
    /// Waiting is not possible.
    pub fn run(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut next = 0;
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[0].revents().is_empty() {
                break;
            }
            match self.listener.accept() {
                Ok((socket, peer)) => {
                    next += 1;
                    self.begin(next, socket, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    (self.shared.report)(Event::Failed { error: &error });
                    // No descriptors or no memory: what is there goes on, and this gets better, or not, by itself.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        for socket in self.shared.open().values() {
            // It is gone already, or it is now.
            let _ = socket.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// Gives a connection to a thread.
    fn begin(&self, number: u64, socket: TcpStream, peer: SocketAddr) {
        if self.shared.is_full() {
            (self.shared.report)(Event::Refused { peer });
            connection::refuse(socket, self.shared.identity.is_some());
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = socket
            .set_nonblocking(false)
            .and_then(|()| socket.try_clone())
            .and_then(|clone| {
                self.shared.open().insert(number, clone);
                thread::Builder::new().name(format!("peer-{number}")).spawn(move || {
                    let (served, result) = connection::run(socket, peer, &shared);
                    shared.open().remove(&number);
                    (shared.report)(Event::Ended {
                        peer,
                        served,
                        error: result.err().as_ref(),
                    });
                })
            });
        if let Err(error) = started {
            self.shared.open().remove(&number);
            (self.shared.report)(Event::Failed { error: &error });
        }
    }
}

impl Shared {
    /// Whether there are as many connections as there may be. One whose peer has gone ends by itself, unless it waits for a page of a region
    /// that does not come: it takes nobody's place, up to a limit.
    fn is_full(&self) -> bool {
        const MOST: usize = 16;
        let (open, limit) = (self.open(), self.limits.connections);
        let there = || open.values().filter(|socket| !is_gone(socket)).count();
        open.len() >= limit && (open.len() >= limit * MOST || there() >= limit)
    }

    /// The features that are accepted if they are offered.
    fn features(&self) -> u64 {
        if self.memories.iter().any(Memory::is_releasable) {
            FEATURE_RELEASE
        } else {
            0
        }
    }

    /// A destination has these pages for good: gives them back, if that is wanted here and may be done already. Returns how many.
    fn release(&self, export: usize, ranges: &[PageRange]) -> u64 {
        match self.memories.get(export) {
            Some(memory) if memory.is_releasable() && !self.held.keep(export, memory.export().pages, ranges) => {
                self.give_back(export, ranges)
            }
            _ => 0,
        }
    }

    fn give_back(&self, export: usize, ranges: &[PageRange]) -> u64 {
        let Some(memory) = self.memories.get(export) else { return 0 };
        let mut count = 0;
        for range in ranges {
            match memory.release(*range) {
                Ok(()) => count += range.count(),
                // Nothing is lost but that they are still here.
                Err(error) => {
                    let name = &memory.export().name;
                    (self.report)(Event::Kept { name, error: &error });
                    break;
                }
            }
        }
        self.totals.released.fetch_add(count, Ordering::Relaxed);
        count
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        // The map is whole whatever a thread died of.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the other side has closed the connection, or its direction of it.
fn is_gone(socket: &TcpStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
