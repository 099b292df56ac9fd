// SPDX-License-Identifier: GPL-2.0
//! The source's side of the page protocol: offers memory to peers.
//!
//! One thread accepts, and each connection has a thread of its own, so that an urgent question is answered while the stream is busy.
//! What a connection may use is bounded: one chunk of pages, one frame of questions, and time for everything that it begins, but for one
//! thing: a touch of an absent page of a region takes as long as its daemon does.

mod connection;
mod held;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vmem::PageRange;
use vmem_pages::split;
use vmem_tls::Identity;

use crate::export::{Export, Lane, MAX_RELEASE_PAGES};
use crate::memory::{Memory, ReleaseError};
use crate::wire::MAX_EXPORTS;
use crate::wire::greeting::FEATURE_RELEASE;

pub use connection::{ServeError, Served};
use held::Held;
use slots::Slots;

/// What peers may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time whose peers have proved who they are; a daemon takes two. Others have a budget of their own.
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
        /// Whether it had proved who it is. Anybody can make connections that have not.
        proven: bool,
    },
    /// A connection was closed before its peer had proved who it is: there were too many of those.
    Dropped {
        /// Who.
        peer: SocketAddr,
    },
    /// Pages could not be given back.
    Kept {
        /// Of which memory.
        name: &'a vmem::Name,
        /// Why: the first error, if there were several.
        error: &'a ReleaseError,
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
    slots: Arc<Slots>,
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
        let shared = Arc::new(Shared {
            memories,
            exports,
            limits,
            identity,
            held: Held::default(),
            totals: Arc::default(),
            report: Box::new(report),
            slots: Slots::new(limits.connections),
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
        self.shared.slots.close();
        Ok(())
    }

    /// Gives a connection to a thread.
    fn begin(&self, number: u64, socket: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.spawn(number, socket, peer) {
            (self.shared.report)(Event::Failed { error: &error });
        }
    }

    fn spawn(&self, number: u64, socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
        socket.set_nonblocking(false)?;
        let (slot, dropped) = self.shared.slots.enter(number, socket.try_clone()?, peer);
        if let Some(peer) = dropped {
            (self.shared.report)(Event::Dropped { peer });
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(format!("peer-{number}"));
        thread.spawn(move || {
            let mut served = Served::default();
            let result = connection::run(socket, peer, &shared, &slot, &mut served);
            let proven = slot.is_proven();
            drop(slot);
            (shared.report)(Event::Ended {
                peer,
                served,
                error: result.err().as_ref(),
                proven,
            });
        })?;
        Ok(())
    }
}

impl Shared {
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

    /// Gives pages back, in pieces: who reads a page waits for what one takes. What fails for one does not keep the others.
    fn give_back(&self, export: usize, ranges: &[PageRange]) -> u64 {
        let Some(memory) = self.memories.get(export) else { return 0 };
        let mut count = 0;
        let mut failed = None;
        for range in ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
                let (piece, back) = split(range, MAX_RELEASE_PAGES);
                rest = back;
                match piece.map_or(Ok(0), |piece| memory.release(piece)) {
                    Ok(pages) => count += pages,
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        if let Some(error) = failed {
            let name = &memory.export().name;
            (self.report)(Event::Kept { name, error: &error });
        }
        self.totals.released.fetch_add(count, Ordering::Relaxed);
        count
    }
}
