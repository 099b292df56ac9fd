// SPDX-License-Identifier: GPL-2.0-or-later
//! Relays bytes between a protected connection and the socket of its user.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;
use socket2::Socket;

/// The most bytes of one direction that the relay buffers.
const BUFFER_SIZE: usize = 64 << 10;

/// Relays bytes in both directions until both have ended, or until one fails. The relay passes the end of the peer's direction on only if
/// the peer sent a `close_notify`: a connection that was cut is an error.
///
/// After the user has ended its direction, the peer has `limit` to end the other one: a peer that keeps it open must not keep the thread.
pub(crate) fn relay(mut connection: Connection, network: &Socket, user: &UnixStream, limit: Duration) -> io::Result<()> {
    connection.set_buffer_limit(Some(BUFFER_SIZE));
    let mut relay = Relay {
        connection,
        network,
        user,
        limit,
        deadline: None,
        to_user: Vec::new(),
        user_ended: false,
        peer_ended: false,
        user_notified: false,
        peer_notified: false,
    };
    // The peer can send its first data together with its last handshake message.
    relay.flush_handshake_data()?;
    while !relay.is_done() {
        relay.poll()?;
    }
    Ok(())
}

struct Relay<'a> {
    connection: Connection,
    network: &'a Socket,
    user: &'a UnixStream,
    limit: Duration,
    /// Set when the user has ended its direction.
    deadline: Option<Instant>,
    /// Decrypted bytes that the user's socket has not taken yet.
    to_user: Vec<u8>,
    user_ended: bool,
    peer_ended: bool,
    /// Whether the end of each side's direction has been passed on to the other side.
    user_notified: bool,
    peer_notified: bool,
}

impl Relay<'_> {
    fn is_done(&self) -> bool {
        self.user_notified && self.peer_notified && !self.connection.wants_write()
    }

    /// Passes on the data that arrived with the handshake.
    fn flush_handshake_data(&mut self) -> io::Result<()> {
        self.peer_ended = self.decrypt()?;
        self.forward_ends()
    }

    /// Waits until a direction can make progress, and moves its bytes.
    fn poll(&mut self) -> io::Result<()> {
        let wants_network = !self.peer_ended && self.to_user.len() < BUFFER_SIZE;
        let write_network = self.connection.wants_write();
        // While the network is full, the user's data stays in the user's socket.
        let wants_user = !self.user_ended && !write_network;
        let write_user = !self.to_user.is_empty();
        let flags = |read: bool, write: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            flags
        };
        let (network, user) = (flags(wants_network, write_network), flags(wants_user, write_user));
        // A descriptor without flags is left out: poll(2) would report its hang-up again and again.
        let mut fds = Vec::with_capacity(2);
        if !network.is_empty() {
            fds.push(PollFd::new(self.network, network));
        }
        if !user.is_empty() {
            fds.push(PollFd::new(self.user, user));
        }
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(PollFd::revents);
        let mut of = |wanted: PollFlags| match wanted.is_empty() {
            true => PollFlags::empty(),
            false => found.next().unwrap_or(PollFlags::empty()),
        };
        let (network, user) = (of(network), of(user));
        let ended = PollFlags::HUP | PollFlags::ERR;
        if write_network && network.intersects(PollFlags::OUT | ended) {
            unless_blocked(self.connection.write_tls(&mut self.network))?;
        }
        if wants_network && network.intersects(PollFlags::IN | ended) {
            self.read_network()?;
        }
        if write_user && user.intersects(PollFlags::OUT | ended) {
            let count = unless_blocked(self.user.write(&self.to_user))?;
            self.to_user.drain(..count);
        }
        if wants_user && user.intersects(PollFlags::IN | ended) {
            self.read_user()?;
        }
        self.forward_ends()
    }

    fn read_network(&mut self) -> io::Result<()> {
        match self.connection.read_tls(&mut self.network) {
            Ok(0) if !self.peer_ended => {
                // No close_notify: the connection was cut, unless the close_notify is in the last packet.
                self.peer_ended = self.decrypt()?;
                return if self.peer_ended {
                    Ok(())
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            other => unless_blocked(other)?,
        };
        self.peer_ended = self.decrypt()?;
        Ok(())
    }

    /// Decrypts what arrived; returns whether the peer has ended its direction.
    fn decrypt(&mut self) -> io::Result<bool> {
        let state = self.connection.process_new_packets().map_err(io::Error::other)?;
        let at = self.to_user.len();
        self.to_user.resize(at + state.plaintext_bytes_to_read(), 0);
        self.connection.reader().read_exact(&mut self.to_user[at..])?;
        Ok(state.peer_has_closed())
    }

    fn read_user(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        let count = match self.user.read(&mut piece) {
            Ok(0) => {
                self.user_ended = true;
                self.deadline = Some(Instant::now() + self.limit);
                0
            }
            other => unless_blocked(other)?,
        };
        // A piece fits: the buffer was empty, and its limit is larger.
        self.connection.writer().write_all(&piece[..count])
    }

    fn forward_ends(&mut self) -> io::Result<()> {
        if self.user_ended && !self.peer_notified {
            self.connection.send_close_notify();
            self.peer_notified = true;
        }
        if self.peer_ended && self.to_user.is_empty() && !self.user_notified {
            self.user.shutdown(Shutdown::Write)?;
            self.user_notified = true;
        }
        if self.peer_notified && self.connection.wants_write() {
            // The last bytes: this poll can be the last one.
            unless_blocked(self.connection.write_tls(&mut self.network))?;
        }
        Ok(())
    }
}

/// Zero bytes if the call would block: poll(2) says when to try again.
fn unless_blocked(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
