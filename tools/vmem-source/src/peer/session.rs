// SPDX-License-Identifier: GPL-2.0-or-later
//! The connections of this destination's rounds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmem::PageRange;

use crate::chunks::ChunkOwners;
use crate::export::Export;
use crate::wire::ProtocolError;
use crate::wire::session::Token;

/// What the connections of a session share: how others join it, and over which of them the pages of a chunk have come.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) token: Token,
    /// The most connections that the source takes, with the first one.
    pub(crate) connections: usize,
    owners: Arc<Mutex<ChunkOwners>>,
    /// Whether one of them has asked for pages.
    has_begun: Arc<AtomicBool>,
}

/// The place of a connection in its session.
#[derive(Debug)]
pub(super) struct Membership {
    session: Session,
    number: u8,
}

impl Session {
    pub(crate) fn new(session: crate::wire::session::Session, exports: &[Export]) -> Self {
        Self {
            token: session.token,
            connections: session.connections,
            owners: Arc::new(Mutex::new(ChunkOwners::new(exports))),
            has_begun: Arc::default(),
        }
    }

    /// The place of the connection `number`, of which 0 is the first one.
    pub(super) fn member(&self, number: u8) -> Membership {
        Membership {
            session: self.clone(),
            number,
        }
    }
}

impl Membership {
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Whether another connection gets the list of the remaining pages.
    pub(super) fn is_joined(&self) -> bool {
        self.number > 0
    }

    /// Notes that a connection asks for pages: no holes may be asked for any more, which contents of another connection could overtake.
    pub(super) fn begin(&self) {
        self.session.has_begun.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.session.has_begun.load(Ordering::Relaxed)
    }

    /// Checks that earlier pages around these came over the same connection: otherwise contents could overtake each other.
    pub(super) fn check(&self, export: usize, range: PageRange) -> Result<(), ProtocolError> {
        // The table is consistent even if a thread panicked.
        let mut owners = self.session.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners
            .accept(export, range, self.number)
            .map_err(ProtocolError::OtherConnection)
    }
}
