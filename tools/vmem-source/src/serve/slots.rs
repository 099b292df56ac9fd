// SPDX-License-Identifier: GPL-2.0-or-later
//! The connections of a server, and their limits.
//!
//! A connection is *established* once the TLS handshake is complete (with TLS) and the peer has sent a whole greeting; before, it is in the
//! *handshake*. Connections in the handshake have a limit of their own: hosts that connect and send nothing do not take the place of a
//! destination that has lost its connection and reconnects.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most connections in the handshake at a time.
pub(super) const MAX_HANDSHAKES: usize = 16;

/// Connections whose peers have gone do not count, up to this multiple of the limit.
const MAX_OVERCOMMIT: usize = 16;

/// All open connections by number; the lowest number is the oldest.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    open: Mutex<BTreeMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    socket: TcpStream,
    peer: SocketAddr,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Handshake,
    /// Closed in its handshake for another connection: its thread is about to end.
    Evicted,
    Established,
}

/// The entry of one connection. Dropping it removes the entry, also if the thread panics.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

impl Slots {
    /// A table for `limit` established connections.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let open = Mutex::default();
        Arc::new(Self { limit, open })
    }

    /// Adds a connection; `socket` is another handle of it. If there are too many connections in the handshake, the oldest of the address
    /// with most of them is closed. Returns the peer of the closed connection.
    pub(super) fn insert(self: &Arc<Self>, number: u64, socket: TcpStream, peer: SocketAddr) -> (Slot, Option<SocketAddr>) {
        let mut open = self.lock();
        let state = State::Handshake;
        open.insert(number, Open { socket, peer, state });
        let evicted = eviction_candidate(&open)
            .and_then(|number| open.get_mut(&number))
            .map(|connection| {
                // Its thread finds the socket closed, whatever call it is in.
                let _ = connection.socket.shutdown(Shutdown::Both);
                connection.state = State::Evicted;
                connection.peer
            });
        drop(open);
        let slots = Arc::clone(self);
        (Slot { slots, number }, evicted)
    }

    /// Closes all connections.
    pub(super) fn close(&self) {
        for connection in self.lock().values() {
            // An error means that the connection is closed already.
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        // The map is consistent even if a thread panicked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Marks the connection as established. False if there are too many established connections.
    ///
    /// A connection whose peer has gone usually ends by itself, but its thread can wait for an absent page of a region. Such connections do
    /// not count, up to a limit.
    pub(super) fn establish(&self) -> bool {
        let mut open = self.slots.lock();
        let limit = self.slots.limit;
        let established = || open.values().filter(|connection| connection.state == State::Established);
        let count = established().count();
        let alive = || established().filter(|connection| !is_gone(&connection.socket)).count();
        if count >= limit && (count >= limit * MAX_OVERCOMMIT || alive() >= limit) {
            return false;
        }
        match open.get_mut(&self.number) {
            Some(own) if own.state == State::Handshake => {
                own.state = State::Established;
                true
            }
            _ => false,
        }
    }

    /// Whether [`establish`](Self::establish) has succeeded.
    pub(super) fn is_established(&self) -> bool {
        self.slots
            .lock()
            .get(&self.number)
            .is_some_and(|own| own.state == State::Established)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().remove(&self.number);
    }
}

/// The connection to close if there are too many in the handshake.
fn eviction_candidate(open: &BTreeMap<u64, Open>) -> Option<u64> {
    let handshakes = || open.iter().filter(|(_, connection)| connection.state == State::Handshake);
    if handshakes().count() <= MAX_HANDSHAKES {
        return None;
    }
    let mut of_address: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
    for (number, connection) in handshakes() {
        of_address.entry(connection.peer.ip()).or_insert((0, *number)).0 += 1;
    }
    // Of two addresses with as many, the address with the older connection.
    let most = of_address
        .into_values()
        .max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
    most.map(|(_, oldest)| oldest)
}

/// Whether the peer has closed the connection, or its sending direction.
fn is_gone(socket: &TcpStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    /// Two ends of a connection, of which the first is that of a server.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        peer.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        (listener.accept().expect("a connection").0, peer)
    }

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 1000).into()
    }

    fn is_closed(mut peer: &TcpStream) -> bool {
        peer.read(&mut [0]).is_ok_and(|count| count == 0)
    }

    #[test]
    fn oldest_handshake_of_the_busiest_address_is_evicted() {
        let slots = Slots::new(4);
        let mut open = Vec::new();
        // One of 1, which is older than the others, and all the rest of 2.
        for number in 0..MAX_HANDSHAKES as u64 {
            let (ours, theirs) = connection();
            let (slot, evicted) = slots.insert(number, ours, address(if number == 0 { 1 } else { 2 }));
            assert_eq!(evicted, None);
            open.push((slot, theirs));
        }
        let (ours, theirs) = connection();
        let (slot, evicted) = slots.insert(100, ours, address(3));
        assert_eq!(evicted, Some(address(2)));
        open.push((slot, theirs));
        let closed: Vec<_> = open.iter().map(|(_, theirs)| is_closed(theirs)).collect();
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
        assert!(closed[1], "the oldest of 2");
        assert!(!open[1].0.establish(), "an evicted connection is never established");
        assert!(open[0].0.establish());
        drop(open);
        assert!(slots.lock().is_empty());
    }

    #[test]
    fn proven_connections_are_limited_and_do_not_count_as_handshakes() {
        let slots = Slots::new(2);
        let insert = |number| {
            let (ours, theirs) = connection();
            (slots.insert(number, ours, address(1)).0, theirs)
        };
        let open: Vec<_> = (0..3).map(insert).collect();
        assert!(open[0].0.establish() && open[1].0.establish() && !open[2].0.establish());
        // A connection whose peer has gone, but whose thread still runs, does not count.
        drop(
            open.into_iter()
                .map(|(slot, _)| std::mem::ManuallyDrop::new(slot))
                .collect::<Vec<_>>(),
        );
        assert!(insert(10).0.establish());
    }

    #[test]
    fn closed_peer_is_gone_and_sending_peer_is_not() {
        let (socket, peer) = connection();
        assert!(!is_gone(&socket));
        (&peer).write_all(b"a question").expect("room");
        assert!(!is_gone(&socket), "a peer that sends is not gone");
        drop(peer);
        assert!(is_gone(&socket));
    }

    #[test]
    fn slot_of_a_panicked_thread_is_free() {
        let slots = Slots::new(1);
        let (ours, theirs) = connection();
        let (slot, _) = slots.insert(1, ours.try_clone().expect("a socket"), address(1));
        let thread = std::thread::spawn(move || {
            let _own = (slot, ours);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(slots.lock().is_empty());
        assert!(is_closed(&theirs), "the connection is closed");
    }
}
