// SPDX-License-Identifier: GPL-2.0-or-later
//! What sends requests.

use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::message::{Call, Request};

/// The number of the first request.
pub(super) const HELLO: u64 = 1;

/// What sends requests without waiting for answers. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Caller {
    socket: Arc<UnixStream>,
    next: Arc<AtomicU64>,
}

impl Caller {
    /// On this connection, on which nothing was sent yet.
    pub(super) fn new(socket: Arc<UnixStream>) -> Self {
        let next = Arc::new(AtomicU64::new(HELLO));
        Self { socket, next }
    }

    /// Sends a request; returns the number that the answer will have. Waits for nobody.
    ///
    /// # Errors
    ///
    /// The daemon is gone, or has not taken earlier requests.
    pub fn send(&self, request: Request) -> Result<u64, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Call { id, request }).map_err(|error| Error::Io(error.into()))?;
        line.push(b'\n');
        // A request takes a hundred bytes: the kernel takes it as a whole or not at all, as long as others are as short.
        match (&*self.socket).write(&line) {
            Ok(count) if count == line.len() => Ok(id),
            Ok(_) => Err(Error::Io(IoErrorKind::WriteZero.into())),
            Err(error) if matches!(error.kind(), IoErrorKind::BrokenPipe | IoErrorKind::ConnectionReset) => Err(Error::Closed),
            Err(error) => Err(Error::Io(error)),
        }
    }
}
