// SPDX-License-Identifier: GPL-2.0-or-later
//! Accepts connections of sources: one new guest at a time, and the further connections of that guest.
//!
//! A connection is unauthenticated until it has sent HELLO, with TLS after a handshake in which it shows a certificate. A source that wants
//! to move a guest is then pending until it has offered the guest. Each of the two stages has a bounded number of slots. A new connection
//! takes the slot of the one that has been silent longest, so silent connections cannot keep a source out.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmem_cli::chain;

use super::offer::{self, Fetching, Offer, Transport};
use super::pending::{PendingConnections, PendingSlot};
use crate::channel::{Channel, canonical};
use crate::error::Cause;
use crate::handover::{self, Rendezvous};
use crate::key::Key;
use crate::message::{FromDestination, FromSource, Purpose};
use crate::network::{Greeted, Security};

/// How long a connection may take to say what it is for.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a source may take to send OFFER: the source starts its vmemd first.
const OFFER: Duration = Duration::from_secs(45);

/// Slots for unauthenticated connections, and as many for pending ones.
const PLACES: usize = 16;

/// How long the listener pauses after `accept` has failed: this host most likely lacks descriptors or memory.
const PAUSE: Duration = Duration::from_millis(500);

/// A connection that was accepted, by its purpose.
pub(super) enum IncomingConnection {
    /// A source that offers a guest.
    Guest(Channel, Offer),
    /// The connection for the state of the guest that is being received.
    State(Channel),
    /// A new connection of the source of the guest that is being received.
    Recover(Channel),
}

/// Accepts connections, in threads of its own.
pub(super) struct Listener {
    connections: Receiver<IncomingConnection>,
    inside: Inside,
    /// It accepts no connection of the network itself.
    passive: bool,
    /// Where `vmemctl listen` hands over further connections of the guest.
    handover: Option<Rendezvous>,
}

/// The state that the threads of the listener share.
#[derive(Clone)]
struct Inside {
    security: Security,
    /// The session of the guest that is being received.
    guest: Arc<Mutex<Option<String>>>,
    sender: Sender<IncomingConnection>,
    silent: PendingConnections,
}

impl Listener {
    pub(super) fn open(listener: TcpListener, security: Security) -> Result<Self, Cause> {
        Self::with(move || Ok(listener.accept()?.0), security)
    }

    /// A listener for the connections that `accept` returns.
    fn with(accept: impl FnMut() -> io::Result<TcpStream> + Send + 'static, security: Security) -> Result<Self, Cause> {
        let listener = Self {
            passive: false,
            ..Self::passive(security)
        };
        let inside = listener.inside.clone();
        thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || inside.accept_all(accept))
            .map_err(Cause::call("cannot start a thread"))?;
        Ok(listener)
    }

    /// A listener that accepts no connection of the network itself: `vmemctl listen` does.
    pub(super) fn passive(security: Security) -> Self {
        let (sender, connections) = channel();
        let inside = Inside {
            security,
            guest: Arc::default(),
            sender,
            silent: PendingConnections::new(PLACES),
        };
        Self {
            connections,
            inside,
            passive: true,
            handover: None,
        }
    }

    /// Whether it has only the connections that `vmemctl listen` accepts.
    pub(super) fn is_passive(&self) -> bool {
        self.passive
    }

    /// The answer to HELLO, and the offer that follows, of a connection that `vmemctl listen` has accepted.
    pub(super) fn offered(&self, greeted: Greeted) -> Option<(Channel, Offer)> {
        match self.inside.converse(greeted) {
            Some(IncomingConnection::Guest(channel, offer)) => Some((channel, offer)),
            _ => None,
        }
    }

    /// Answers HELLO of a connection that `vmemctl listen` has accepted, and passes the connection on to [`wait_for`](Self::wait_for).
    pub(super) fn pass_on(&self, greeted: Greeted) {
        self.inside.pass_on(greeted);
    }

    /// Takes the further connections of the guest of `session` from `vmemctl listen`, if that accepts them on this host.
    pub(super) fn take_over(&mut self, state: &Path, session: &str) -> Result<(), Cause> {
        let failed = || Cause::call("cannot take connections over from 'vmemctl listen'");
        let (rendezvous, socket) = Rendezvous::open(state, session).map_err(failed())?;
        let inside = self.inside.clone();
        let take_all = move || {
            for peer in socket.incoming().flatten() {
                match handover::recv_greeted(&peer) {
                    Ok(greeted) => inside.pass_on(greeted),
                    Err(error) => tracing::warn!("a connection cannot be taken over: {error}"),
                }
            }
        };
        let thread = thread::Builder::new().name("handover".to_owned());
        thread.spawn(take_all).map_err(failed())?;
        self.handover = Some(rendezvous);
        Ok(())
    }

    /// The next connection, if one is accepted within `limit`.
    pub(super) fn wait_for(&mut self, limit: Duration) -> Option<IncomingConnection> {
        self.connections.recv_timeout(limit).ok()
    }

    /// A connection that has been accepted already. Does not wait.
    pub(super) fn poll(&mut self) -> Option<IncomingConnection> {
        self.connections.try_recv().ok()
    }

    /// Refuses new guests: the guest of `session` is received, although it was not offered on this listener.
    pub(super) fn reserve_guest(&self, session: &str) {
        *lock(&self.inside.guest) = Some(session.to_owned());
    }

    /// Accepts new guests again: the guest was not received.
    pub(super) fn release_guest(&self) {
        *lock(&self.inside.guest) = None;
    }
}

fn lock(guest: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    guest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inside {
    fn accept_all(&self, mut accept: impl FnMut() -> io::Result<TcpStream>) {
        let strangers = PendingConnections::new(PLACES);
        loop {
            let accepted = accept().and_then(|stream| {
                let seat = strangers.enter(&stream)?;
                let inside = self.clone();
                let visit = move || inside.visit(stream, seat);
                thread::Builder::new().name("incoming".to_owned()).spawn(visit)
            });
            if let Err(error) = accepted {
                tracing::warn!("a connection cannot be taken: {error}");
                thread::sleep(PAUSE);
            }
        }
    }

    fn visit(&self, stream: TcpStream, stranger: PendingSlot) {
        let carrier = stream.try_clone();
        let peer = stream.peer_addr();
        let greeted = match self.security.accept(stream) {
            Ok(greeted) => greeted,
            Err(error) => return tracing::warn!("a visitor{}: {}", from(peer.ok()), chain(&error)),
        };
        let silent = match carrier.and_then(|carrier| self.silent.enter(&carrier)) {
            Ok(seat) => seat,
            Err(error) => return tracing::warn!("a visitor cannot be heard: {error}"),
        };
        drop(stranger);
        self.pass_on(greeted);
        drop(silent);
    }

    /// Converses on a connection, and passes it on to the main thread.
    fn pass_on(&self, greeted: Greeted) {
        if let Some(connection) = self.converse(greeted) {
            // The main thread receives. If it has ended, the connection is not needed.
            let _ = self.sender.send(connection);
        }
    }

    /// Answers HELLO, and waits for the offer if the connection is for one. `None`: the connection is of no use.
    fn converse(&self, greeted: Greeted) -> Option<IncomingConnection> {
        let Greeted {
            channel,
            version,
            session,
            purpose,
            relay: _,
        } = greeted;
        let refusal = self.refusal(&session, purpose);
        let answer = refusal.map_or(FromDestination::Welcome { version }, |reason| FromDestination::Refuse {
            reason: reason.to_owned(),
        });
        if let Err(error) = channel.send(&answer) {
            tracing::warn!("a visitor: {}", chain(&error));
            return None;
        }
        match (refusal, purpose) {
            (Some(_), _) => None,
            (None, Purpose::State) => Some(IncomingConnection::State(channel)),
            (None, Purpose::Recover) => Some(IncomingConnection::Recover(channel)),
            (None, Purpose::Migrate) => self.recv_offer(channel, session),
        }
    }

    /// Why a connection is refused. `None`: it is accepted.
    fn refusal(&self, session: &str, purpose: Purpose) -> Option<&'static str> {
        match (purpose, lock(&self.guest).as_deref()) {
            (Purpose::Migrate, None) => None,
            (Purpose::Migrate, Some(_)) => Some("another guest is being taken"),
            (_, Some(taken)) if taken == session => None,
            _ => Some("this migration is not known here; 'vmemctl receive --resume' may know it"),
        }
    }

    /// Waits for OFFER. The first valid offer is taken. Each connection waits in its own thread, so it delays no other connection.
    fn recv_offer(&self, mut channel: Channel, session: String) -> Option<IncomingConnection> {
        let (guest, key, memory, pages, release, fetching, transport) = match channel.recv_within(OFFER) {
            Ok(FromSource::Offer {
                guest,
                key,
                memory,
                pages,
                release,
                rounds,
                verify,
                streams,
                compress,
            }) => {
                let transport = Transport::new(streams, compress.as_deref());
                (guest, key, memory, pages, release, Fetching { rounds, verify }, transport)
            }
            Ok(other) => {
                tracing::warn!("a source has sent a message out of order: {other:?}");
                return None;
            }
            Err(error) => {
                tracing::warn!("a source: {}", chain(&error));
                return None;
            }
        };
        let reason = match offer::check(&session, &memory, &pages, &channel, &self.security) {
            Ok(source) => {
                let mut taken = lock(&self.guest);
                if taken.is_none() {
                    *taken = Some(session.clone());
                    let offer = Offer {
                        session,
                        key: key.as_deref().map_or_else(|| guest.as_str().into(), Key::received),
                        guest,
                        memory,
                        source,
                        release,
                        fetching,
                        transport,
                    };
                    return Some(IncomingConnection::Guest(channel, offer));
                }
                "another guest is being taken".to_owned()
            }
            Err(cause) => chain(&cause),
        };
        tracing::warn!("a guest is refused: {reason}");
        // If the source does not receive FAILED, it finds the connection closed.
        let _ = channel.send(&FromDestination::Failed { reason });
        None
    }
}

fn from(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(String::new, |peer| format!(" from {}", canonical(peer)))
}

#[cfg(test)]
mod tests;
