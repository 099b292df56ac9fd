// SPDX-License-Identifier: GPL-2.0-or-later
//! A server that exports memory images, read-only.
//!
//! Each connection has a thread that reads requests and a few that answer them, so that one answer that takes long does not delay the others,
//! and no connection waits for another one. Bounded are: connections, requests of each, the bytes of each that are in memory, and the
//! time that a client may take for the handshake and for taking an answer.

mod handshake;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

pub use crate::extent::Extent;
use crate::link::Link;

/// An image that is exported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its name. The first export is the default one, with the empty name, too.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Why bytes cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// They may be readable later: the server tries again as long as the client waits.
    #[error("{0}")]
    Away(String),
    /// They are lost: the client gets EIO.
    #[error("{0}")]
    Lost(String),
}

/// What is exported.
pub trait Images: Send + Sync {
    /// The exports, at least one. They do not change.
    fn exports(&self) -> &[Export];

    /// Reads bytes of an export, which has them.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; `out` may have changed.
    fn read(&self, export: usize, offset: u64, out: &mut [u8]) -> Result<(), ReadError>;

    /// What is known of `bytes` bytes of an export, which has them: of all, or of the first ones.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    fn extents(&self, export: usize, offset: u64, bytes: u64) -> Result<Vec<Extent>, ReadError>;
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. Each takes up to 2 MiB of memory while it reads, and five threads; what protects it may take another one.
    pub connections: usize,
    /// How long a client may take for the handshake, for the rest of a request that it has begun, and for taking a piece of an answer.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What protects connections: takes the socket of one and a time limit, and returns the socket to use instead, or why there is none.
pub type Protect = dyn Fn(Socket, Duration) -> Result<Socket, String> + Send + Sync;

/// Where a server listens.
#[derive(Debug)]
pub enum Listener {
    /// At a path.
    Unix(UnixListener),
    /// On the network.
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(listener) => Socket::from(OwnedFd::from(listener.accept()?.0)),
            Self::Tcp(listener) => Socket::from(OwnedFd::from(listener.accept()?.0)),
        })
    }

    fn wait(&self, limit: Duration) -> io::Result<bool> {
        let (fd, limit) = match self {
            Self::Unix(listener) => (listener.as_fd(), Timespec::try_from(limit).ok()),
            Self::Tcp(listener) => (listener.as_fd(), Timespec::try_from(limit).ok()),
        };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], limit.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// How often the server looks whether it is to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long clients may take for the answers that are under way when the server ends.
const LINGER: Duration = Duration::from_secs(2);

/// The connections that there are.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<u64, Arc<Link>>>);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Link>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until `ends` returns true, and then until the requests under way are answered, for two seconds at most. With `protect`, a client learns and
/// gets nothing before its connection is protected (`FORCEDTLS` of the protocol).
///
/// # Errors
///
/// The listener cannot be used any more.
pub fn serve(
    listener: &Listener,
    images: &Arc<dyn Images>,
    limits: Limits,
    protect: Option<&Arc<Protect>>,
    ends: &dyn Fn() -> bool,
) -> io::Result<()> {
    match listener {
        Listener::Unix(listener) => listener.set_nonblocking(true)?,
        Listener::Tcp(listener) => listener.set_nonblocking(true)?,
    }
    let connections = Arc::new(Connections::default());
    let mut number = 0;
    while !ends() {
        if !listener.wait(POLL_INTERVAL)? {
            continue;
        }
        let accepted = listener.accept().and_then(|socket| Link::new(socket, limits.timeout));
        let link = match accepted {
            Ok(link) => Arc::new(link),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // The client has gone already, or descriptors are short for a moment.
                tracing::warn!("cannot accept a client: {error}");
                thread::sleep(POLL_INTERVAL);
                continue;
            }
        };
        if connections.lock().len() >= limits.connections {
            tracing::warn!("a client was refused: there are {} connections", limits.connections);
            continue;
        }
        number += 1;
        connections.lock().insert(number, Arc::clone(&link));
        let (images, of, protect) = (Arc::clone(images), Arc::clone(&connections), protect.cloned());
        let run = move || {
            // Also if it panics.
            let _entry = Entry(&of, number);
            let replace = |link: &Arc<Link>| drop(of.lock().insert(number, Arc::clone(link)));
            if let Err(error) = attend(link, &*images, protect.as_deref(), &replace) {
                tracing::info!("connection {number} has ended: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("nbd".to_owned()).spawn(run) {
            tracing::warn!("a client was refused: {error}");
            connections.lock().remove(&number);
        }
    }
    connections.lock().values().for_each(|link| link.shut_down(Shutdown::Read));
    let until = Instant::now() + LINGER;
    while !connections.lock().is_empty() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    connections.lock().values().for_each(|link| link.shut_down(Shutdown::Both));
    Ok(())
}

/// A connection in the table, until its thread ends.
struct Entry<'a>(&'a Connections, u64);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.0.lock().remove(&self.1) {
            link.shut_down(Shutdown::Both);
        }
    }
}

fn attend(link: Arc<Link>, images: &dyn Images, protect: Option<&Protect>, replace: &dyn Fn(&Arc<Link>)) -> io::Result<()> {
    match handshake::negotiate(link, images.exports(), protect, replace)? {
        Some((link, chosen)) => requests::answer(&link, images, chosen),
        None => Ok(()),
    }
}
