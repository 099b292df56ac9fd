// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's side of the page protocol: a server of exported memory.
//!
//! One thread accepts, and each connection has a thread of its own, so that an urgent READ is answered while the stream is busy. The
//! resources of a connection are bounded: one chunk of pages, one frame of ranges, and a time limit for each operation. The exception is a
//! touch of an absent page of a region, which takes as long as the daemon of that region does.

mod connection;
mod deferred;
mod group;
mod hashes;
mod limiter;
mod map;
mod next;
mod released;
mod sender;
mod slots;
mod staging;
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
use vmem_tls::Identity;
use vmem_wait::Liveness;

use crate::error::Error;
use crate::export::{Export, Lane, MAX_RELEASE_PAGES};
use crate::memory::Memory;
use crate::wire::MAX_EXPORTS;
use crate::wire::greeting::{
    FEATURE_COMPRESS, FEATURE_HASHES, FEATURE_MAP, FEATURE_NO_CHECKSUM, FEATURE_RELEASE, FEATURE_ROUNDS, FEATURE_STREAMS,
};

pub use crate::rounds::{Batch, Rounds, RoundsError, Sent};
use deferred::DeferredReleases;
use hashes::Budget;
pub use limiter::{LEAST_BANDWIDTH, Limiter};
pub use released::Released;
pub use sender::Served;
use slots::Slots;
use staging::Staging;

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Established connections at a time; a daemon uses one for each stream, and one for urgent pages. Connections in the handshake have a limit of their own.
    pub connections: usize,
    /// Time limit of a peer for its greeting, for the rest of a frame that it has begun, and for taking a frame.
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

/// An event of a connection, for a log.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection is established: the peer has sent its greeting, and its certificate is accepted.
    Connected {
        /// The address of the peer.
        peer: SocketAddr,
        /// The lane of the connection.
        lane: Lane,
    },
    /// A connection has ended.
    Ended {
        /// The address of the peer.
        peer: SocketAddr,
        /// What the connection was sent.
        served: Served,
        /// Why; `None` if the peer sent a GOODBYE.
        error: Option<&'a Error>,
        /// Whether it was established. Any host that reaches the server can cause events of connections that were not.
        established: bool,
    },
    /// A connection was closed in its handshake: there were too many connections in the handshake.
    Evicted {
        /// The address of the peer.
        peer: SocketAddr,
    },
    /// Pages could not be released.
    ReleaseFailed {
        /// The export.
        name: &'a vmem::Name,
        /// The first error.
        error: &'a Error,
    },
    /// A connection could not be accepted.
    AcceptFailed {
        /// The error of `accept(2)`, or of the start of its thread.
        error: &'a io::Error,
    },
}

/// Counters of a server, over all connections.
#[derive(Debug, Default)]
pub struct Totals {
    /// Connections that were established.
    pub connections: AtomicU64,
    /// Pages sent with their contents.
    pub data: AtomicU64,
    /// Pages sent as zero pages.
    pub zero: AtomicU64,
    /// Pages sent as unreadable.
    pub unreadable: AtomicU64,
    /// Pages of which digests were sent: their destinations have the contents.
    pub known: AtomicU64,
    /// Pages of which nothing was sent: they had been sent with the same contents before.
    pub same: AtomicU64,
    /// Pages released.
    pub released: AtomicU64,
    /// Bytes of the frames with pages, as they were sent: compressed, or not.
    pub bytes: AtomicU64,
}

/// The pause after a connection could not be accepted.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A listening server.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
    /// Where its threads show that they are alive.
    liveness: Liveness,
}

/// State that all threads share.
struct Shared {
    memories: Vec<Memory>,
    exports: Vec<Export>,
    limits: Limits,
    identity: Option<Identity>,
    /// Releases that arrived before releases are allowed.
    deferred: DeferredReleases,
    /// The rounds, if the program still runs.
    staging: Staging,
    /// The user's limit of the bandwidth.
    limiter: Arc<Limiter>,
    /// What may be kept of announced digests.
    budget: Budget,
    totals: Arc<Totals>,
    report: Box<dyn Fn(Event<'_>) + Send + Sync>,
    slots: Arc<Slots>,
    /// The last field: it is dropped after the memories.
    guard: released::Guard,
}

impl Server {
    /// Listens on `address`. With an identity, only peers with a certificate of its authority are accepted. Several threads call `report`.
    ///
    /// # Errors
    ///
    /// [`Error::ExportCount`], [`Error::DuplicateName`], [`Error::Listen`].
    pub fn bind(
        address: SocketAddr,
        memories: Vec<Memory>,
        limits: Limits,
        identity: Option<Identity>,
        report: impl Fn(Event<'_>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let exports: Vec<Export> = memories.iter().map(|memory| memory.export().clone()).collect();
        if !(1..=MAX_EXPORTS).contains(&exports.len()) {
            return Err(Error::ExportCount(exports.len()));
        }
        let mut names = HashSet::new();
        if let Some(twice) = exports.iter().find(|export| !names.insert(&export.name)) {
            return Err(Error::DuplicateName(twice.name.clone()));
        }
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| Error::Listen { address, source })?;
        let shared = Arc::new(Shared {
            memories,
            budget: Budget::of(&exports),
            exports,
            limits,
            identity,
            deferred: DeferredReleases::default(),
            staging: Staging::default(),
            limiter: Arc::default(),
            totals: Arc::default(),
            report: Box::new(report),
            slots: Slots::new(limits.connections),
            guard: released::Guard::default(),
        });
        Ok(Self {
            listener,
            shared,
            liveness: Liveness::default(),
        })
    }

    /// Has the threads of the server show in `liveness` that they are alive: the one that accepts, and those of connections while they read memory
    /// other than regions, and while they send.
    #[must_use]
    pub fn with_liveness(mut self, liveness: Liveness) -> Self {
        self.liveness = liveness;
        self
    }

    /// Defers the releases of destinations until [`allow_release`](Self::allow_release).
    #[must_use]
    pub fn hold_release(self) -> Self {
        self.shared.deferred.start(self.shared.memories.len());
        self
    }

    /// Executes the deferred releases, and later ones when they arrive. The caller is sure that the guest does not need the memory here any more.
    pub fn allow_release(&self) {
        for (export, ranges) in self.shared.deferred.take().into_iter().enumerate() {
            self.shared.release_now(export, &ranges);
        }
    }

    /// Serves memory whose program still runs: a destination stages the pages that `rounds` chooses. READs are refused until it has the list
    /// of the remaining pages.
    #[must_use]
    pub fn with_rounds(self, rounds: Arc<dyn Rounds>) -> Self {
        self.shared.staging.start(rounds);
        self
    }

    /// Allows READs without rounds, for a destination that does not stage pages. The caller is sure that the program has stopped. It is not
    /// needed for one that does.
    pub fn allow_reads(&self) {
        self.shared.staging.allow_reads();
    }

    /// The limit of the bandwidth of all connections but those of the urgent lane. There is none at first.
    #[must_use]
    pub fn limiter(&self) -> Arc<Limiter> {
        Arc::clone(&self.shared.limiter)
    }

    /// The exports of the server.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.shared.exports
    }

    /// The counters, which go on changing.
    #[must_use]
    pub fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.shared.totals)
    }

    /// What waits until the memory is let go of. A thread of a connection can hold it after the server was dropped: it ends when it has
    /// noticed that its connection is closed.
    #[must_use]
    pub fn released(&self) -> Released {
        self.shared.guard.released()
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    ///
    /// The error of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is readable, then closes all connections.
    ///
    /// # Errors
    ///
    /// The error of `poll(2)`.
    pub fn run(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut next = 0;
        let pulse = self.liveness.watch("accept");
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            pulse.rests();
            let woken = poll(&mut fds, None);
            pulse.works();
            match woken {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[0].revents().is_empty() {
                break;
            }
            match self.listener.accept() {
                Ok((socket, peer)) => {
                    next += 1;
                    self.start_connection(next, socket, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    (self.shared.report)(Event::AcceptFailed { error: &error });
                    // No descriptors or no memory: existing connections go on.
                    thread::sleep(ACCEPT_RETRY_INTERVAL);
                }
            }
        }
        self.shared.limiter.close();
        self.shared.slots.close();
        Ok(())
    }

    /// Starts the thread of a connection.
    fn start_connection(&self, number: u64, socket: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.spawn(number, socket, peer) {
            (self.shared.report)(Event::AcceptFailed { error: &error });
        }
    }

    fn spawn(&self, number: u64, socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
        socket.set_nonblocking(false)?;
        let (slot, evicted) = self.shared.slots.insert(number, socket.try_clone()?, peer);
        if let Some(peer) = evicted {
            (self.shared.report)(Event::Evicted { peer });
        }
        let shared = Arc::clone(&self.shared);
        let name = format!("peer-{number}");
        let pulse = self.liveness.watch(&name);
        let thread = thread::Builder::new().name(name);
        thread.spawn(move || {
            let mut served = Served::default();
            let result = connection::run(socket, peer, &shared, &slot, &pulse, &mut served);
            let established = slot.is_established();
            drop(slot);
            (shared.report)(Event::Ended {
                peer,
                served,
                error: result.err().as_ref(),
                established,
            });
        })?;
        Ok(())
    }
}

impl Shared {
    /// The features that the server accepts on a lane of a connection that is protected or not.
    fn features(&self, lane: Lane, is_protected: bool) -> u64 {
        let is_releasable = self.memories.iter().any(Memory::is_releasable);
        let is_stream = lane == Lane::Stream;
        let has_rounds = is_stream && self.staging.is_offered();
        [
            (is_releasable, FEATURE_RELEASE),
            (has_rounds, FEATURE_ROUNDS | FEATURE_STREAMS),
            (is_stream, FEATURE_MAP),
            (is_stream, FEATURE_HASHES),
            (true, FEATURE_COMPRESS),
            (is_protected, FEATURE_NO_CHECKSUM),
        ]
        .into_iter()
        .filter_map(|(accepted, feature)| accepted.then_some(feature))
        .sum()
    }

    /// Releases pages that a destination has, now or once releases are allowed. Returns the number of pages released now.
    fn release(&self, export: usize, ranges: &[PageRange]) -> u64 {
        match self.memories.get(export) {
            Some(memory) if memory.is_releasable() && !self.deferred.defer(export, memory.export().pages, ranges) => {
                self.release_now(export, ranges)
            }
            _ => 0,
        }
    }

    /// Releases pages in pieces, because readers of pages wait for each piece. An error of one piece does not end the release of others.
    fn release_now(&self, export: usize, ranges: &[PageRange]) -> u64 {
        let Some(memory) = self.memories.get(export) else { return 0 };
        let mut count = 0;
        let mut failed = None;
        for range in ranges {
            let mut rest = Some(*range);
            while let Some(range) = rest {
                let (piece, back) = range.split_at(MAX_RELEASE_PAGES);
                rest = back;
                match piece.map_or(Ok(0), |piece| memory.release(piece)) {
                    Ok(pages) => count += pages,
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        if let Some(error) = failed {
            let name = &memory.export().name;
            (self.report)(Event::ReleaseFailed { name, error: &error });
        }
        self.totals.released.fetch_add(count, Ordering::Relaxed);
        count
    }
}
