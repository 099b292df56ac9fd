// SPDX-License-Identifier: GPL-2.0-or-later
//! Replies that wait for a client.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::error::Error;
use crate::extent::Extent;

/// The bytes of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bytes {
    /// All are zero; none was sent.
    Zero,
    /// As many as were asked for.
    Data(Vec<u8>),
}

/// The error of one request. Others can succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("error {errno} of the NBD server{text}")]
pub struct Failure {
    /// Number of the error, as the protocol has it.
    pub errno: u32,
    /// What the server says about it, after a colon; may be empty.
    pub text: String,
}

/// The reply to one request.
#[derive(Debug)]
pub enum Outcome {
    /// What was read, and how many bytes the reply had on the network.
    Read(Result<Bytes, Failure>, u64),
    /// Extents from the offset on that was asked for: of all bytes, or of the first ones, or of more.
    Extents(Result<Vec<Extent>, Failure>),
}

/// Where the replies for one client go.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    /// Readable when something waits, or the connection has ended.
    ready: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    replies: VecDeque<(u64, Outcome)>,
    end: Option<Error>,
}

impl Inbox {
    pub(super) fn new() -> Result<Self, Error> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            state: Mutex::default(),
            ready: ready.map_err(|error| Error::Io(Arc::new(error.into())))?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        // It can only fail if 2^64 events wait.
        let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
    }

    /// Delivers a reply, with the client's number of the request.
    pub(super) fn deliver(&self, tag: u64, outcome: Outcome) {
        self.lock().replies.push_back((tag, outcome));
        self.signal();
    }

    /// No more replies will come.
    pub(super) fn end(&self, error: &Error) {
        self.lock().end.get_or_insert_with(|| error.clone());
        self.signal();
    }

    /// Makes the descriptor readable if something waits, or if the client has `more` of its own.
    pub(super) fn rearm(&self, more: bool) {
        let state = self.lock();
        if more || !state.replies.is_empty() || state.end.is_some() {
            self.signal();
        } else {
            self.clear();
        }
    }

    /// With the lock held: no reply comes meanwhile.
    fn clear(&self) {
        // It fails if the count is zero, which is what is wanted.
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
    }

    /// Waits for a reply. There is one, or an error, within the time limit of the session if one is due.
    pub(super) fn next(&self) -> Result<(u64, Outcome), Error> {
        loop {
            let mut state = self.lock();
            if let Some(reply) = state.replies.pop_front() {
                return Ok(reply);
            }
            if let Some(error) = &state.end {
                return Err(error.clone());
            }
            self.clear();
            drop(state);
            match poll(&mut [PollFd::new(&self.ready, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Io(Arc::new(io::Error::from(error)))),
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}
