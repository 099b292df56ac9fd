// SPDX-License-Identifier: GPL-2.0-or-later
//! The connections of a server.
//!
//! A connection is in the *handshake* until its client has chosen an export, and is *established* then. Those in the handshake have a limit of
//! their own: clients that connect and say nothing take no place of clients that read, or that come back to read.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::Link;

/// The most connections in the handshake at a time.
pub(super) const MAX_HANDSHAKES: usize = 16;

/// All connections by number; the lowest number is the oldest.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<BTreeMap<u64, Connection>>);

#[derive(Debug)]
struct Connection {
    link: Arc<Link>,
    established: bool,
}

/// A connection in the table. Dropping it, also if its thread panics, shuts the connection down and removes it.
#[derive(Debug)]
pub(super) struct Entry {
    connections: Arc<Connections>,
    number: u64,
}

impl Connections {
    /// Adds a connection in its handshake, with a number above all others. Returns whether the oldest one in the handshake was shut down for it.
    pub(super) fn enter(self: &Arc<Self>, number: u64, link: Arc<Link>) -> (Entry, bool) {
        let mut all = self.lock();
        let handshakes = || all.iter().filter(|(_, connection)| !connection.established);
        let oldest = handshakes().next().map(|(number, _)| *number);
        let oldest = oldest.filter(|_| handshakes().count() >= MAX_HANDSHAKES);
        let cut = oldest.and_then(|oldest| all.remove(&oldest));
        // Its thread finds the socket closed, whatever call it is in.
        let has_cut = cut.map(|cut| cut.link.shut_down(Shutdown::Both)).is_some();
        let established = false;
        all.insert(number, Connection { link, established });
        let connections = Arc::clone(self);
        (Entry { connections, number }, has_cut)
    }

    /// Shuts all connections down.
    pub(super) fn shut_down(&self, how: Shutdown) {
        self.lock().values().for_each(|connection| connection.link.shut_down(how));
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// From now on, `link` is the connection.
    pub(super) fn replace(&self, link: &Arc<Link>) {
        match self.connections.lock().get_mut(&self.number) {
            Some(own) => own.link = Arc::clone(link),
            // It was shut down meanwhile.
            None => link.shut_down(Shutdown::Both),
        }
    }

    /// The handshake is over. False if `most` connections are established already, or if this one was shut down.
    pub(super) fn establish(&self, most: usize) -> bool {
        let mut all = self.connections.lock();
        let has_room = all.values().filter(|connection| connection.established).count() < most;
        match all.get_mut(&self.number) {
            Some(own) if has_room => {
                own.established = true;
                true
            }
            _ => false,
        }
    }

    /// Whether [`establish`](Self::establish) has succeeded.
    pub(super) fn is_established(&self) -> bool {
        self.connections.lock().get(&self.number).is_some_and(|own| own.established)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(connection) = self.connections.lock().remove(&self.number) {
            connection.link.shut_down(Shutdown::Both);
        }
    }
}
