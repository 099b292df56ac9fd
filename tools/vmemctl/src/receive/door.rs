// SPDX-License-Identifier: GPL-2.0
//! Who comes in: one guest at a time, and those who belong to it.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmem_cli::chain;

use crate::channel::{Channel, ChannelError};
use crate::failure::Trouble;
use crate::message::{FromDestination, Purpose};
use crate::network::Security;
use crate::report::err;

/// How long a visitor may take to say what it wants.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who has been let in.
pub(super) struct Visitor {
    pub(super) channel: Channel,
    pub(super) session: String,
    pub(super) purpose: Purpose,
}

/// Lets visitors in, in a thread of its own.
pub(super) struct Door {
    visitors: Receiver<Visitor>,
    /// The session of the guest that is being taken.
    guest: Arc<Mutex<Option<String>>>,
}

impl Door {
    pub(super) fn open(listener: TcpListener, security: Security) -> Result<Self, Trouble> {
        let (sender, visitors) = channel();
        let guest = Arc::new(Mutex::new(None));
        let inside = Arc::clone(&guest);
        thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    let (sender, inside, security) = (sender.clone(), Arc::clone(&inside), security.clone());
                    // One who says nothing must not keep others out.
                    let visit = move || match stream.map_err(ChannelError::Io).and_then(|stream| security.accept(stream)) {
                        Ok((channel, session, purpose)) => let_in(channel, session, purpose, &inside, &sender),
                        Err(error) => err(&format!("a visitor: {}", chain(&error))),
                    };
                    if let Err(error) = thread::Builder::new().name("visit".to_owned()).spawn(visit) {
                        err(&format!("a visitor cannot be heard: {error}"));
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            })
            .map_err(Trouble::io("cannot start a thread"))?;
        Ok(Self { visitors, guest })
    }

    /// The next visitor.
    pub(super) fn wait(&mut self) -> Result<Visitor, Trouble> {
        self.visitors.recv().map_err(|_| Trouble::other("nobody listens any more"))
    }

    /// The next visitor, if one comes within `limit`.
    pub(super) fn wait_for(&mut self, limit: Duration) -> Option<Visitor> {
        self.visitors.recv_timeout(limit).ok()
    }

    /// A visitor who is there already.
    pub(super) fn glance(&mut self) -> Option<Visitor> {
        self.visitors.try_recv().ok()
    }

    /// A guest is there that came in another way.
    pub(super) fn taken(&self, session: &str) {
        *lock(&self.guest) = Some(session.to_owned());
    }

    /// The guest has not come.
    pub(super) fn nobody(&self) {
        *lock(&self.guest) = None;
    }
}

fn lock(guest: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    guest.lock().unwrap_or_else(PoisonError::into_inner)
}

fn let_in(channel: Channel, session: String, purpose: Purpose, inside: &Mutex<Option<String>>, sender: &Sender<Visitor>) {
    let reason = {
        let mut guest = lock(inside);
        match (purpose, guest.as_deref()) {
            (Purpose::Migrate, None) => {
                *guest = Some(session.clone());
                None
            }
            (Purpose::Migrate, Some(_)) => Some("another guest is being taken"),
            (_, Some(taken)) if taken == session => None,
            _ => Some("this migration is not known here; 'vmemctl receive --resume' may know it"),
        }
    };
    let answer = match reason {
        None => FromDestination::Welcome,
        Some(reason) => FromDestination::Refuse {
            reason: reason.to_owned(),
        },
    };
    match channel.say(&answer) {
        // Who listens is the main thread; without it there is nothing to visit.
        Ok(()) if reason.is_none() => drop(sender.send(Visitor {
            channel,
            session,
            purpose,
        })),
        Ok(()) => {}
        Err(error) => {
            err(&format!("a visitor: {}", chain(&error)));
            if purpose == Purpose::Migrate && reason.is_none() {
                *lock(inside) = None;
            }
        }
    }
}
