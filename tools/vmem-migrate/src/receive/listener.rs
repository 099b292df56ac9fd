// SPDX-License-Identifier: GPL-2.0
//! Who comes in: one guest at a time, and those who belong to it.
//!
//! A connection is a stranger's until it has greeted (with TLS: until it has shown a certificate), and a visitor's until it has offered a
//! guest. There are places for a few of each, and a newcomer gets that of the one who has been silent longest: so nobody keeps others out
//! by saying nothing.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmem_cli::chain;

use super::offer::{self, Offer};
use super::pending::{PendingConnections, PendingSlot};
use crate::channel::Channel;
use crate::error::Cause;
use crate::key::Key;
use crate::message::{FromDestination, FromSource, Purpose};
use crate::network::{Greeted, Security};

/// How long a visitor may take to say what it wants.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a source may take to offer its guest: it starts its vmemd first.
const OFFER: Duration = Duration::from_secs(45);

/// Places for strangers, and as many for visitors.
const PLACES: usize = 16;

/// How long no connection is taken after one could not be: this host lacks descriptors or memory, most likely.
const PAUSE: Duration = Duration::from_millis(500);

/// Somebody who has been let in.
pub(super) enum IncomingConnection {
    /// A source with a guest.
    Guest(Channel, Offer),
    /// The connection for the state of the guest that is being taken.
    State(Channel),
    /// The source of the guest that is being taken, again.
    Recover(Channel),
}

/// Lets visitors in, in threads of its own.
pub(super) struct Listener {
    visitors: Receiver<IncomingConnection>,
    /// The session of the guest that is being taken.
    guest: Arc<Mutex<Option<String>>>,
}

/// What each thread of the listener has.
#[derive(Clone)]
struct Inside {
    security: Security,
    guest: Arc<Mutex<Option<String>>>,
    sender: Sender<IncomingConnection>,
    silent: PendingConnections,
}

impl Listener {
    pub(super) fn open(listener: TcpListener, security: Security) -> Result<Self, Cause> {
        Self::with(move || Ok(listener.accept()?.0), security)
    }

    /// With the connections that `accept` waits for.
    fn with(accept: impl FnMut() -> io::Result<TcpStream> + Send + 'static, security: Security) -> Result<Self, Cause> {
        let (sender, visitors) = channel();
        let guest = Arc::new(Mutex::new(None));
        let inside = Inside {
            security,
            guest: Arc::clone(&guest),
            sender,
            silent: PendingConnections::new(PLACES),
        };
        thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || inside.accept_all(accept))
            .map_err(Cause::io("cannot start a thread"))?;
        Ok(Self { visitors, guest })
    }

    /// The next visitor, if one comes within `limit`.
    pub(super) fn wait_for(&mut self, limit: Duration) -> Option<IncomingConnection> {
        self.visitors.recv_timeout(limit).ok()
    }

    /// A visitor who is there already.
    pub(super) fn glance(&mut self) -> Option<IncomingConnection> {
        self.visitors.try_recv().ok()
    }

    /// A guest is there that came in another way.
    pub(super) fn reserve_guest(&self, session: &str) {
        *lock(&self.guest) = Some(session.to_owned());
    }

    /// The guest has not come.
    pub(super) fn release_guest(&self) {
        *lock(&self.guest) = None;
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
                thread::Builder::new().name("visit".to_owned()).spawn(visit)
            });
            if let Err(error) = accepted {
                tracing::warn!("a connection cannot be taken: {error}");
                thread::sleep(PAUSE);
            }
        }
    }

    fn visit(&self, stream: TcpStream, stranger: PendingSlot) {
        let carrier = stream.try_clone();
        let Greeted {
            channel,
            version,
            session,
            purpose,
        } = match self.security.accept(stream) {
            Ok(visitor) => visitor,
            Err(error) => return tracing::warn!("a visitor: {}", chain(&error)),
        };
        let silent = match carrier.and_then(|carrier| self.silent.enter(&carrier)) {
            Ok(seat) => seat,
            Err(error) => return tracing::warn!("a visitor cannot be heard: {error}"),
        };
        drop(stranger);
        let (answer, welcome) = match self.refusal(&session, purpose) {
            None => (FromDestination::Welcome { version }, true),
            Some(reason) => (
                FromDestination::Refuse {
                    reason: reason.to_owned(),
                },
                false,
            ),
        };
        if let Err(error) = channel.send(&answer) {
            return tracing::warn!("a visitor: {}", chain(&error));
        }
        if !welcome {
            return;
        }
        let visitor = match purpose {
            Purpose::State => IncomingConnection::State(channel),
            Purpose::Recover => IncomingConnection::Recover(channel),
            Purpose::Migrate => match self.recv_offer(channel, session) {
                Some(visitor) => visitor,
                None => return,
            },
        };
        drop(silent);
        // Who listens is the main thread; without it there is nothing to visit.
        let _ = self.sender.send(visitor);
    }

    /// Why a visitor is not let in.
    fn refusal(&self, session: &str, purpose: Purpose) -> Option<&'static str> {
        match (purpose, lock(&self.guest).as_deref()) {
            (Purpose::Migrate, None) => None,
            (Purpose::Migrate, Some(_)) => Some("another guest is being taken"),
            (_, Some(taken)) if taken == session => None,
            _ => Some("this migration is not known here; 'vmemctl receive --resume' may know it"),
        }
    }

    /// Waits for a guest. The first that is offered as it must be is taken; nobody else has to wait for that.
    fn recv_offer(&self, mut channel: Channel, session: String) -> Option<IncomingConnection> {
        let (guest, key, memory, pages, release) = match channel.recv_within(OFFER) {
            Ok(FromSource::Offer {
                guest,
                key,
                memory,
                pages,
                release,
            }) => (guest, key, memory, pages, release),
            Ok(other) => {
                tracing::warn!("a source said something out of order: {other:?}");
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
                    };
                    return Some(IncomingConnection::Guest(channel, offer));
                }
                "another guest is being taken".to_owned()
            }
            Err(trouble) => chain(&trouble),
        };
        tracing::warn!("a guest is refused: {reason}");
        // A source that does not hear it finds the connection closed.
        let _ = channel.send(&FromDestination::Failed { reason });
        None
    }
}

#[cfg(test)]
mod tests;
