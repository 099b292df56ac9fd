// SPDX-License-Identifier: GPL-2.0
//! The connections of a server, and how many there may be.
//!
//! A connection is *unproven* until its peer has said who it is (with TLS) and has sent a whole greeting. Unproven connections have a
//! budget of their own: strangers who connect and say nothing take no place of a destination that has lost its connection and comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most unproven connections at a time.
pub(super) const UNPROVEN: usize = 16;

/// How many times as many connections as there may be can be open if the peers of the others have gone.
const MOST: usize = 16;

/// All open connections, by a running number: the lowest is the oldest.
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
    Unproven,
    /// It was unproven, and has been closed: its thread is about to end.
    Dropped,
    Proven,
}

/// The place of one connection, given up when it is dropped, whatever its thread ends of.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

impl Slots {
    /// Room for `limit` connections whose peers have proved who they are.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let open = Mutex::default();
        Arc::new(Self { limit, open })
    }

    /// Takes a new connection, whose other handle is `socket`. If there are too many unproven ones, one of them is closed: the oldest of the
    /// address that has most. Returns whose it was.
    pub(super) fn enter(self: &Arc<Self>, number: u64, socket: TcpStream, peer: SocketAddr) -> (Slot, Option<SocketAddr>) {
        let mut open = self.lock();
        let state = State::Unproven;
        open.insert(number, Open { socket, peer, state });
        let dropped = victim(&open).and_then(|number| open.get_mut(&number)).map(|victim| {
            // Its thread finds it closed, wherever it is.
            let _ = victim.socket.shutdown(Shutdown::Both);
            victim.state = State::Dropped;
            victim.peer
        });
        drop(open);
        let slots = Arc::clone(self);
        (Slot { slots, number }, dropped)
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        for connection in self.lock().values() {
            // It is gone already, or it is now.
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        // The map is whole whatever a thread died of.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The peer has proved who it is. False if there are as many of those as there may be.
    ///
    /// A connection whose peer has gone ends by itself, unless it waits for a page of a region that does not come: it takes nobody's place,
    /// up to a limit.
    pub(super) fn prove(&self) -> bool {
        let mut open = self.slots.lock();
        let limit = self.slots.limit;
        let proven = || open.values().filter(|connection| connection.state == State::Proven);
        let count = proven().count();
        let there = || proven().filter(|connection| !is_gone(&connection.socket)).count();
        if count >= limit && (count >= limit * MOST || there() >= limit) {
            return false;
        }
        match open.get_mut(&self.number) {
            Some(own) if own.state == State::Unproven => {
                own.state = State::Proven;
                true
            }
            _ => false,
        }
    }

    /// Whether [`prove`](Self::prove) has found room.
    pub(super) fn is_proven(&self) -> bool {
        self.slots
            .lock()
            .get(&self.number)
            .is_some_and(|own| own.state == State::Proven)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().remove(&self.number);
    }
}

/// The unproven connection that is closed for a new one, if there are too many.
fn victim(open: &BTreeMap<u64, Open>) -> Option<u64> {
    let unproven = || open.iter().filter(|(_, connection)| connection.state == State::Unproven);
    if unproven().count() <= UNPROVEN {
        return None;
    }
    let mut of_address: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
    for (number, connection) in unproven() {
        of_address.entry(connection.peer.ip()).or_insert((0, *number)).0 += 1;
    }
    // Of two addresses with as many, the one with the older connection.
    let most = of_address
        .into_values()
        .max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
    most.map(|(_, oldest)| oldest)
}

/// Whether the other side has closed the connection, or its direction of it.
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
    fn the_oldest_of_the_address_with_most_unproven_connections_makes_room() {
        let slots = Slots::new(4);
        let mut open = Vec::new();
        // One of 1, which is older than the others, and all the rest of 2.
        for number in 0..UNPROVEN as u64 {
            let (ours, theirs) = connection();
            let (slot, dropped) = slots.enter(number, ours, address(if number == 0 { 1 } else { 2 }));
            assert_eq!(dropped, None);
            open.push((slot, theirs));
        }
        let (ours, theirs) = connection();
        let (slot, dropped) = slots.enter(100, ours, address(3));
        assert_eq!(dropped, Some(address(2)));
        open.push((slot, theirs));
        let closed: Vec<_> = open.iter().map(|(_, theirs)| is_closed(theirs)).collect();
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
        assert!(closed[1], "the oldest of 2");
        assert!(!open[1].0.prove(), "what was dropped proves nothing");
        assert!(open[0].0.prove());
        drop(open);
        assert!(slots.lock().is_empty());
    }

    #[test]
    fn proven_connections_are_limited_and_do_not_count_as_unproven() {
        let slots = Slots::new(2);
        let enter = |number| {
            let (ours, theirs) = connection();
            (slots.enter(number, ours, address(1)).0, theirs)
        };
        let open: Vec<_> = (0..3).map(enter).collect();
        assert!(open[0].0.prove() && open[1].0.prove() && !open[2].0.prove());
        // Who has gone, but whose thread is still at something, takes nobody's place.
        drop(
            open.into_iter()
                .map(|(slot, _)| std::mem::ManuallyDrop::new(slot))
                .collect::<Vec<_>>(),
        );
        assert!(enter(10).0.prove());
    }

    #[test]
    fn a_peer_that_has_gone_is_known_to_be() {
        let (socket, peer) = connection();
        assert!(!is_gone(&socket));
        (&peer).write_all(b"a question").expect("room");
        assert!(!is_gone(&socket), "one that speaks is there");
        drop(peer);
        assert!(is_gone(&socket));
    }

    #[test]
    fn a_thread_that_panics_gives_its_slot_up() {
        let slots = Slots::new(1);
        let (ours, theirs) = connection();
        let (slot, _) = slots.enter(1, ours.try_clone().expect("a socket"), address(1));
        let thread = std::thread::spawn(move || {
            let _own = (slot, ours);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(slots.lock().is_empty());
        assert!(is_closed(&theirs), "its peer is told");
    }
}
