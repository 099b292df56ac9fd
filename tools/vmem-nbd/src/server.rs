// SPDX-License-Identifier: GPL-2.0-or-later
//! A server that exports memory images, read-only.
//!
//! Each connection has a thread that reads requests and a few that answer them, so that one answer that takes long does not delay the others,
//! and no connection waits for another one. Bounded are: connections, those in the handshake, requests of each, the bytes of each that are in memory, and the
//! time that a client may take for the handshake and for taking an answer.

mod connections;
mod handshake;
mod requests;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;
use vmem_wait::MessageLimit;

pub use crate::extent::Extent;
use crate::link::Link;
use connections::{Connections, Entry};

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
    /// Clients that have chosen an export, at a time; 16 more may be in the handshake, and the oldest of these gives way to a new one. Each client
    /// takes up to 2 MiB of memory while it reads, and five threads; what protects it may take another one.
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
                say(&format!("cannot accept a client: {error}"));
                thread::sleep(POLL_INTERVAL);
                continue;
            }
        };
        number += 1;
        let (entry, has_cut) = connections.enter(number, Arc::clone(&link));
        if has_cut {
            say("a client was disconnected: too many are in the handshake");
        }
        let (images, protect) = (Arc::clone(images), protect.cloned());
        let run = move || {
            let ended = attend(link, &entry, &*images, limits, protect.as_deref());
            match ended {
                Err(error) if entry.is_established() => tracing::info!("connection {number} has ended: {error}"),
                Err(error) => say(&format!("connection {number} has ended in its handshake: {error}")),
                Ok(()) => {}
            }
        };
        if let Err(error) = thread::Builder::new().name("nbd".to_owned()).spawn(run) {
            say(&format!("a client was refused: {error}"));
        }
    }
    connections.shut_down(Shutdown::Read);
    let until = Instant::now() + LINGER;
    while !connections.is_empty() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    connections.shut_down(Shutdown::Both);
    Ok(())
}

fn attend(link: Arc<Link>, entry: &Entry, images: &dyn Images, limits: Limits, protect: Option<&Protect>) -> io::Result<()> {
    match handshake::negotiate(link, images.exports(), protect, &|link| entry.replace(link))? {
        Some((link, chosen)) if entry.establish(limits.connections) => requests::answer(&link, images, chosen),
        Some(_) => Err(io::Error::other(format!("there are {} connections", limits.connections))),
        None => Ok(()),
    }
}

/// Says what anybody can cause who can connect.
fn say(line: &str) {
    static STRANGERS: MessageLimit = MessageLimit::new();
    if let Some(line) = STRANGERS.pass(line) {
        tracing::warn!("{line}");
    }
}
