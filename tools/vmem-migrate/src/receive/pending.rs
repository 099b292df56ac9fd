// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections that are not accepted yet. Their number is bounded: a new connection replaces the oldest one.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The pending connections of one stage.
#[derive(Clone, Debug)]
pub(crate) struct PendingConnections {
    most: usize,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    number: u64,
    connections: VecDeque<(u64, TcpStream)>,
}

/// A slot of a pending connection. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct PendingSlot {
    lobby: PendingConnections,
    number: u64,
}

impl PendingConnections {
    /// Makes room for `most` connections.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Arc::default(),
        }
    }

    /// Adds a connection. If all slots are taken, this shuts down the connection that has waited longest.
    pub(crate) fn enter(&self, connection: &TcpStream) -> io::Result<PendingSlot> {
        let connection = connection.try_clone()?;
        let mut waiting = self.lock();
        waiting.number += 1;
        let number = waiting.number;
        let full = waiting.connections.len() >= self.most;
        let oldest = full.then(|| waiting.connections.pop_front()).flatten();
        if let Some((_, oldest)) = oldest {
            // The thread that reads from it finds the end of the stream. The connection may be closed already.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        waiting.connections.push_back((number, connection));
        Ok(PendingSlot {
            lobby: self.clone(),
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        let mut waiting = self.lobby.lock();
        waiting.connections.retain(|(number, _)| *number != self.number);
    }
}
