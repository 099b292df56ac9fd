// SPDX-License-Identifier: GPL-2.0-or-later
//! The stream of a guest's state: the socket that QEMU writes it to or reads it from, and what QEMU sends back.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::connection::Qmp;
use crate::error::Error;

/// The name of the socket in QEMU.
const NAME: &str = "vmemctl-state";

/// Gives QEMU one end of a socket pair. Returns the other end, and the URI of QEMU's end for `migrate` or `migrate-incoming`. The URI can
/// be used once.
///
/// # Errors
///
/// [`Error::Stream`]; those of [`Qmp::send_fd`].
pub fn open(qmp: &mut Qmp) -> Result<(UnixStream, String), Error> {
    let (theirs, ours) = UnixStream::pair().map_err(Error::Stream)?;
    qmp.send_fd(NAME, &theirs)?;
    Ok((ours, format!("fd:{NAME}")))
}

/// What QEMU sends back while it loads the state: messages that consist of a type, a length and that many bytes, all big endian (QEMU's
/// `migration/migration.h`). With the type `SHUT` and the value 0, QEMU reports that it has loaded everything.
#[derive(Debug, Default)]
pub struct ReturnPath {
    has_loaded: AtomicBool,
    /// The bytes of an incomplete message.
    part: Mutex<Vec<u8>>,
}

/// The type of the message by which QEMU reports how loading has ended. Its value 0 means success.
const SHUT: u16 = 1;

impl ReturnPath {
    /// Examines bytes that are about to be forwarded.
    pub fn observe(&self, bytes: &[u8]) {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        part.extend_from_slice(bytes);
        while let Some((&[t1, t0, l1, l0], rest)) = part.split_first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([l1, l0]));
            let Some(payload) = rest.get(..length) else { return };
            if u16::from_be_bytes([t1, t0]) == SHUT && payload == [0; 4] {
                self.has_loaded.store(true, Ordering::SeqCst);
            }
            part.drain(..4 + length);
        }
    }

    /// Whether QEMU has reported that it has loaded everything.
    pub fn has_loaded(&self) -> bool {
        self.has_loaded.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_successful_shut_message_counts_as_loaded() {
        let shut = |value: u8| [0, 1, 0, 4, 0, 0, 0, value];
        let pong = [0, 2, 0, 4, 0, 0, 0, 1];
        let loaded = |pieces: &[&[u8]]| {
            let path = ReturnPath::default();
            pieces.iter().for_each(|piece| path.observe(piece));
            path.has_loaded()
        };
        assert!(!loaded(&[]));
        assert!(!loaded(&[&pong]));
        assert!(!loaded(&[&pong, &shut(1)]), "it has failed");
        assert!(!loaded(&[&pong, &shut(0)[..7]]), "half a word");
        assert!(loaded(&[&pong, &shut(0)]));
        assert!(loaded(&[&pong[..3], &pong[3..], &shut(0)[..1], &shut(0)[1..]]));
    }
}
