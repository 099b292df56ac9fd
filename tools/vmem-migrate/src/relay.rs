// SPDX-License-Identifier: GPL-2.0
//! QEMU's migration stream on its way through: QEMU on one side, the other machine on the other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use socket2::Socket;

/// What QEMU calls the socket for the guest's state.
pub(crate) const STREAM: &str = "vmemctl-state";

/// A relay at work.
pub(crate) struct Relay {
    network: Socket,
    return_path: Arc<ReturnPath>,
}

/// What QEMU sends back while its state comes: messages of a type, a length and so many bytes, all big endian (QEMU's
/// `migration/migration.h`). With the first one below, a QEMU that has loaded everything says so.
#[derive(Debug, Default)]
struct ReturnPath {
    has_loaded: AtomicBool,
    /// Bytes of a message that is not whole yet.
    part: Mutex<Vec<u8>>,
}

/// The message by which a QEMU says how its loading has ended; 0 is well.
const SHUT: u16 = 1;

impl ReturnPath {
    /// These bytes are about to be passed on.
    fn see(&self, bytes: &[u8]) {
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
}

impl Relay {
    /// Lets nothing through any more. QEMU gets what it has been sent, and then finds that there is no more.
    pub(crate) fn cut(&self) {
        // It may be at its end.
        let _ = self.network.shutdown(Shutdown::Both);
    }

    /// Whether the QEMU at this end may have told the other one that it has loaded everything. After a [`cut`](Self::cut) this does not
    /// change to yes in a way that the other end could notice.
    pub(crate) fn has_loaded(&self) -> bool {
        self.return_path.has_loaded.load(Ordering::SeqCst)
    }
}

/// Which of the two QEMUs is at this end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Copies in both directions until both are at their end, in threads of its own. `first` goes to `qemu` before anything else.
pub(crate) fn relay(end: End, qemu: Socket, network: Socket, first: Vec<u8>) -> io::Result<Relay> {
    for socket in [&qemu, &network] {
        socket.set_read_timeout(None)?;
        // A QEMU that is stopped, or a network that is down, may come back; whoever waits for the migration has a time limit.
        socket.set_write_timeout(None)?;
    }
    let (from, to) = (qemu.try_clone()?, network.try_clone()?);
    let return_path = Arc::new(ReturnPath::default());
    let relay = Relay {
        network: network.try_clone()?,
        return_path: Arc::clone(&return_path),
    };
    thread::Builder::new().name("state-out".to_owned()).spawn(move || match end {
        End::Source => copy(&from, &to, &[], |_| ()),
        End::Destination => copy(&from, &to, &[], |bytes| return_path.see(bytes)),
    })?;
    thread::Builder::new()
        .name("state-in".to_owned())
        .spawn(move || copy(&network, &qemu, &first, |_| ()))?;
    Ok(relay)
}

/// Copies until the end, and passes that on. `see` sees everything before it goes.
fn copy(mut from: &Socket, mut to: &Socket, first: &[u8], see: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    let mut result = to.write_all(first);
    while result.is_ok() {
        result = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                see(&buffer[..length]);
                to.write_all(&buffer[..length])
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
    }
    // The end of a stream is passed on as such; a broken one ends both ways, and QEMU sees that it is cut.
    let (end, other) = match result {
        Ok(()) => (Shutdown::Write, None),
        Err(_) => (Shutdown::Both, Some(Shutdown::Both)),
    };
    // Either may be gone already.
    let _ = to.shutdown(end);
    let _ = other.map(|end| from.shutdown(end));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn both_directions_and_the_end_pass() {
        let (mut qemu, ours) = UnixStream::pair().expect("sockets");
        let (mut network, theirs) = UnixStream::pair().expect("sockets");
        let _relay = relay(End::Source, Socket::from(ours), Socket::from(theirs), b"early ".to_vec()).expect("threads");
        qemu.write_all(b"state").expect("room");
        qemu.shutdown(Shutdown::Write).expect("a socket");
        network.write_all(b"answer").expect("room");
        let mut text = String::new();
        network.read_to_string(&mut text).expect("the end");
        assert_eq!(text, "state");
        drop(network);
        text.clear();
        qemu.read_to_string(&mut text).expect("the end");
        assert_eq!(text, "early answer");
    }

    #[test]
    fn only_the_word_that_all_is_loaded_counts() {
        let shut = |value: u8| [0, 1, 0, 4, 0, 0, 0, value];
        let pong = [0, 2, 0, 4, 0, 0, 0, 1];
        let loaded = |pieces: &[&[u8]]| {
            let path = ReturnPath::default();
            pieces.iter().for_each(|piece| path.see(piece));
            path.has_loaded.load(Ordering::SeqCst)
        };
        assert!(!loaded(&[]));
        assert!(!loaded(&[&pong]));
        assert!(!loaded(&[&pong, &shut(1)]), "it has failed");
        assert!(!loaded(&[&pong, &shut(0)[..7]]), "half a word");
        assert!(loaded(&[&pong, &shut(0)]));
        assert!(loaded(&[&pong[..3], &pong[3..], &shut(0)[..1], &shut(0)[1..]]));
    }

    #[test]
    fn a_cut_ends_both_sides() {
        let (mut qemu, ours) = UnixStream::pair().expect("sockets");
        let (mut network, theirs) = UnixStream::pair().expect("sockets");
        let relay = relay(End::Destination, Socket::from(ours), Socket::from(theirs), Vec::new()).expect("threads");
        relay.cut();
        let mut text = String::new();
        qemu.read_to_string(&mut text).expect("the end");
        network.read_to_string(&mut text).expect("the end");
        assert_eq!(text, "");
    }
}
