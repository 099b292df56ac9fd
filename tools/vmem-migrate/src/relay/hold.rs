// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of QEMU's migration stream, which the source keeps until QEMU has saved all devices.
//!
//! Saving a device may write to the guest's memory. When QEMU has written the whole stream, it writes to that memory no more.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmem_qemu::DeviceState;

/// The largest number of bytes that are kept.
const LIMIT: usize = 1 << 30;

/// Why the end of the stream is not let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// There is no room for it.
    #[error("QEMU has written more than {} MiB of device state, which vmemctl keeps until the state is complete", .0 >> 20)]
    TooLong(usize),
    /// QEMU, or the network, has closed the stream.
    #[error("the stream with the guest's state has ended early")]
    Ended,
}

/// What happens to bytes of QEMU.
#[derive(Debug)]
enum State {
    /// They are forwarded at once.
    Open,
    /// They are kept.
    Held(DeviceState),
    /// The kept bytes are being forwarded, and these are next.
    Releasing { next: Vec<u8>, has_ended: bool },
    /// The stream has ended, or is broken.
    Closed(HoldError),
}

/// What the copying thread does at the end of QEMU's stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AtEnd {
    /// It forwards the end.
    Forward,
    /// It ends both directions: a part of the stream does not arrive.
    Break,
    /// It leaves the end to the thread that forwards the kept bytes.
    Leave,
}

/// A place in the stream at which bytes can be kept.
#[derive(Debug)]
pub(super) struct Hold {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

impl Default for Hold {
    fn default() -> Self {
        Self::with_limit(LIMIT)
    }
}

impl Hold {
    fn with_limit(limit: usize) -> Self {
        Self {
            state: Mutex::new(State::Open),
            changed: Condvar::new(),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps all bytes from now on.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        if let State::Open = *state {
            *state = State::Held(DeviceState::default());
        }
    }

    /// Whether the caller is to forward these bytes of QEMU now. If not, they are kept.
    pub(super) fn is_open_for(&self, bytes: &[u8]) -> io::Result<bool> {
        let mut state = self.lock();
        let has_room = |kept: &[u8]| kept.len().saturating_add(bytes.len()) <= self.limit;
        let kept = match &mut *state {
            State::Open => return Ok(true),
            State::Closed(error) => Err(*error),
            State::Held(stored) if has_room(stored.bytes()) => {
                stored.push(bytes);
                Ok(())
            }
            State::Releasing { next, .. } if has_room(next) => {
                next.extend_from_slice(bytes);
                Ok(())
            }
            State::Held(_) | State::Releasing { .. } => Err(HoldError::TooLong(self.limit)),
        };
        if let Err(error) = kept {
            *state = State::Closed(error);
        }
        self.changed.notify_all();
        kept.map(|()| false).map_err(io::Error::other)
    }

    /// Notes that QEMU's stream has ended. Kept bytes that were not released are dropped.
    pub(super) fn end(&self) -> AtEnd {
        let mut state = self.lock();
        let at_end = match &mut *state {
            State::Releasing { has_ended, .. } => {
                *has_ended = true;
                return AtEnd::Leave;
            }
            State::Closed(_) => return AtEnd::Break,
            State::Open => AtEnd::Forward,
            State::Held(_) => AtEnd::Break,
        };
        *state = State::Closed(HoldError::Ended);
        self.changed.notify_all();
        at_end
    }

    /// Notes that the stream is broken. Kept bytes are dropped.
    pub(super) fn fail(&self) {
        let mut state = self.lock();
        if !matches!(*state, State::Closed(_)) {
            *state = State::Closed(HoldError::Ended);
        }
        self.changed.notify_all();
    }

    /// Whether QEMU has written everything. Waits for that for up to `limit`.
    pub(super) fn wait_complete(&self, limit: Duration) -> Result<bool, HoldError> {
        let is_incomplete = |state: &mut State| matches!(state, State::Held(stored) if !stored.is_complete());
        let waited = self.changed.wait_timeout_while(self.lock(), limit, is_incomplete);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Held(stored) => Ok(stored.is_complete()),
            State::Closed(error) => Err(*error),
            State::Open | State::Releasing { .. } => Ok(false),
        }
    }

    /// The number of kept bytes.
    pub(super) fn len(&self) -> usize {
        match &*self.lock() {
            State::Held(stored) => stored.bytes().len(),
            _ => 0,
        }
    }

    /// Begins to let the kept bytes through. [`next`](Self::next) returns them.
    pub(super) fn release(&self) -> Result<(), HoldError> {
        let mut state = self.lock();
        match &mut *state {
            State::Held(stored) => {
                let next = std::mem::take(stored).into_bytes();
                *state = State::Releasing { next, has_ended: false };
                Ok(())
            }
            State::Closed(error) => Err(*error),
            State::Open | State::Releasing { .. } => Ok(()),
        }
    }

    /// The next bytes that are to be forwarded after [`release`](Self::release). If there are none, the caller does as the result says, and
    /// the copying thread forwards what follows.
    pub(super) fn next(&self) -> Result<Vec<u8>, AtEnd> {
        let mut state = self.lock();
        let at_end = match &mut *state {
            State::Releasing { next, .. } if !next.is_empty() => return Ok(std::mem::take(next)),
            State::Releasing { has_ended: true, .. } => AtEnd::Forward,
            State::Releasing { has_ended: false, .. } | State::Open => AtEnd::Leave,
            State::Held(_) | State::Closed(_) => return Err(AtEnd::Break),
        };
        *state = match at_end {
            AtEnd::Leave => State::Open,
            _ => State::Closed(HoldError::Ended),
        };
        Err(at_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmem_qemu::recorded::END;

    #[test]
    fn bytes_over_the_limit_break_the_stream() {
        let hold = Hold::with_limit(8);
        assert!(hold.is_open_for(&[0; 100]).expect("an open stream"), "nothing is kept yet");
        hold.begin();
        assert!(!hold.is_open_for(&[0; 8]).expect("room"));
        assert_eq!((hold.len(), hold.wait_complete(Duration::ZERO)), (8, Ok(false)));
        hold.is_open_for(&[0]).expect_err("no room");
        assert_eq!(hold.wait_complete(Duration::ZERO), Err(HoldError::TooLong(8)));
        assert_eq!(hold.release(), Err(HoldError::TooLong(8)));
        assert_eq!(hold.end(), AtEnd::Break);
        assert_eq!(
            hold.wait_complete(Duration::ZERO),
            Err(HoldError::TooLong(8)),
            "the first reason"
        );
    }

    #[test]
    fn stream_that_ends_while_it_is_held_is_not_released() {
        let hold = Hold::default();
        hold.begin();
        assert!(!hold.is_open_for(END).expect("room"));
        assert_eq!(hold.wait_complete(Duration::ZERO), Ok(true));
        assert_eq!(hold.end(), AtEnd::Break);
        assert_eq!(hold.release(), Err(HoldError::Ended));
        assert_eq!(hold.next(), Err(AtEnd::Break));
    }

    #[test]
    fn bytes_that_arrive_during_the_release_stay_in_order() {
        let hold = Hold::default();
        hold.begin();
        assert!(!hold.is_open_for(b"one").expect("room"));
        hold.release().expect("a stream");
        assert_eq!(hold.next(), Ok(b"one".to_vec()));
        assert!(!hold.is_open_for(b"two").expect("room"), "one is being written");
        assert_eq!(hold.next(), Ok(b"two".to_vec()));
        assert_eq!(hold.next(), Err(AtEnd::Leave));
        assert!(hold.is_open_for(b"three").expect("an open stream"));
        assert_eq!(hold.end(), AtEnd::Forward);
    }

    #[test]
    fn end_during_the_release_follows_the_kept_bytes() {
        let hold = Hold::default();
        hold.begin();
        assert!(!hold.is_open_for(b"one").expect("room"));
        hold.release().expect("a stream");
        assert_eq!(hold.end(), AtEnd::Leave);
        assert_eq!(hold.next(), Ok(b"one".to_vec()));
        assert_eq!(hold.next(), Err(AtEnd::Forward));
    }
}
