// SPDX-License-Identifier: GPL-2.0
//! The thread between a protected connection and its user.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;

/// The most of one direction that waits here.
const ROOM: usize = 64 << 10;

/// Carries bytes in both directions until both are at their end, or one fails. That the other side has ended a direction is passed on
/// only if it has said so under the protection: a connection that was cut is cut here too.
///
/// Once the user has ended its direction, what is left has `limit`: whoever keeps its end open must not keep this thread.
pub(crate) fn carry(mut connection: Connection, network: &TcpStream, user: &UnixStream, limit: Duration) -> io::Result<()> {
    connection.set_buffer_limit(Some(ROOM));
    let mut carrier = Carrier {
        connection,
        network,
        user,
        limit,
        over: None,
        inward: Vec::new(),
        user_ended: false,
        peer_ended: false,
        told_user: false,
        told_peer: false,
    };
    // The other side's first words may have come with its last of the handshake.
    carrier.begin()?;
    while !carrier.is_over() {
        carrier.turn()?;
    }
    Ok(())
}

struct Carrier<'a> {
    connection: Connection,
    network: &'a TcpStream,
    user: &'a UnixStream,
    limit: Duration,
    /// When it is over, whatever is left, once the user has ended.
    over: Option<Instant>,
    /// Plain bytes on their way to the user.
    inward: Vec<u8>,
    user_ended: bool,
    peer_ended: bool,
    /// Each has heard that the other has ended.
    told_user: bool,
    told_peer: bool,
}

impl Carrier<'_> {
    fn is_over(&self) -> bool {
        self.told_user && self.told_peer && !self.connection.wants_write()
    }

    /// Passes on what came before.
    fn begin(&mut self) -> io::Result<()> {
        self.peer_ended = self.take_plain()?;
        self.pass_ends_on()
    }

    /// Waits until something can be moved, and moves it.
    fn turn(&mut self) -> io::Result<()> {
        let read_network = !self.peer_ended && self.inward.len() < ROOM;
        let write_network = self.connection.wants_write();
        // What the user has sent waits with the user while the network does not take it.
        let read_user = !self.user_ended && !write_network;
        let write_user = !self.inward.is_empty();
        let flags = |read: bool, write: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            flags
        };
        let (network, user) = (flags(read_network, write_network), flags(read_user, write_user));
        // One that nothing is wanted of is left out: that it has ended would be told without end.
        let mut fds = Vec::with_capacity(2);
        if !network.is_empty() {
            fds.push(PollFd::new(self.network, network));
        }
        if !user.is_empty() {
            fds.push(PollFd::new(self.user, user));
        }
        let left = self.over.map(|over| over.saturating_duration_since(Instant::now()));
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
        if read_network && network.intersects(PollFlags::IN | ended) {
            self.take_from_network()?;
        }
        if write_user && user.intersects(PollFlags::OUT | ended) {
            let count = unless_blocked(self.user.write(&self.inward))?;
            self.inward.drain(..count);
        }
        if read_user && user.intersects(PollFlags::IN | ended) {
            self.take_from_user()?;
        }
        self.pass_ends_on()
    }

    fn take_from_network(&mut self) -> io::Result<()> {
        match self.connection.read_tls(&mut self.network) {
            Ok(0) if !self.peer_ended => {
                // Without a word: somebody has cut it, unless the last word has just come.
                self.peer_ended = self.take_plain()?;
                return if self.peer_ended {
                    Ok(())
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            other => unless_blocked(other)?,
        };
        self.peer_ended = self.take_plain()?;
        Ok(())
    }

    /// Takes what has been decrypted; returns whether there will be no more.
    fn take_plain(&mut self) -> io::Result<bool> {
        let state = self.connection.process_new_packets().map_err(io::Error::other)?;
        let at = self.inward.len();
        self.inward.resize(at + state.plaintext_bytes_to_read(), 0);
        self.connection.reader().read_exact(&mut self.inward[at..])?;
        Ok(state.peer_has_closed())
    }

    fn take_from_user(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        let count = match self.user.read(&mut piece) {
            Ok(0) => {
                self.user_ended = true;
                self.over = Some(Instant::now() + self.limit);
                0
            }
            other => unless_blocked(other)?,
        };
        // The limit of the buffer is more than a piece, and it was empty.
        self.connection.writer().write_all(&piece[..count])
    }

    fn pass_ends_on(&mut self) -> io::Result<()> {
        if self.user_ended && !self.told_peer {
            self.connection.send_close_notify();
            self.told_peer = true;
        }
        if self.peer_ended && self.inward.is_empty() && !self.told_user {
            self.user.shutdown(Shutdown::Write)?;
            self.told_user = true;
        }
        if self.told_peer && self.connection.wants_write() {
            // The last bytes: there may be no other turn.
            unless_blocked(self.connection.write_tls(&mut self.network))?;
        }
        Ok(())
    }
}

/// Nothing moves now; it is tried again when something can.
fn unless_blocked(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
