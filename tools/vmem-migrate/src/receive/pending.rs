// SPDX-License-Identifier: GPL-2.0
//! Connections that have not done yet what they must do to be let in: a bounded number, of which the oldest makes room for the newest.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those who wait.
#[derive(Clone, Debug)]
pub(super) struct PendingConnections {
    most: usize,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    number: u64,
    connections: VecDeque<(u64, TcpStream)>,
}

/// One of those who wait, as long as this is held.
#[derive(Debug)]
pub(super) struct PendingSlot {
    lobby: PendingConnections,
    number: u64,
}

impl PendingConnections {
    /// Has room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Arc::default(),
        }
    }

    /// Lets a connection wait. If there is no room, the one that has waited longest is ended.
    pub(super) fn enter(&self, connection: &TcpStream) -> io::Result<PendingSlot> {
        let connection = connection.try_clone()?;
        let mut waiting = self.lock();
        waiting.number += 1;
        let number = waiting.number;
        let full = waiting.connections.len() >= self.most;
        let oldest = full.then(|| waiting.connections.pop_front()).flatten();
        if let Some((_, oldest)) = oldest {
            // Whoever reads from it finds its end. It may be at its end already.
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
