// SPDX-License-Identifier: GPL-2.0
//! Relays QEMU's migration stream: QEMU is on one side, the other host on the other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;

use socket2::Socket;
use vmem_qemu::stream::ReturnPath;

/// A running relay.
pub(crate) struct Relay {
    network: Socket,
    return_path: Arc<ReturnPath>,
}

impl Relay {
    /// Ends the relay in both directions. QEMU still gets what was sent to it, and then the end of the stream.
    pub(crate) fn cut(&self) {
        // The connection may be closed already.
        let _ = self.network.shutdown(Shutdown::Both);
    }

    /// Whether the QEMU at this end may have told the other QEMU that it has loaded everything. After a [`cut`](Self::cut), the other end
    /// cannot receive that message any more.
    pub(crate) fn has_loaded(&self) -> bool {
        self.return_path.has_loaded()
    }
}

/// Which of the two QEMUs is at this end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Copies in both directions until both have ended, in threads of its own. `first` goes to `qemu` before anything else.
pub(crate) fn relay(end: End, qemu: Socket, network: Socket, first: Vec<u8>) -> io::Result<Relay> {
    for socket in [&qemu, &network] {
        socket.set_read_timeout(None)?;
        // A stopped QEMU, or a network that is down, may come back. The caller has a time limit for the migration.
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
        End::Destination => copy(&from, &to, &[], |bytes| return_path.observe(bytes)),
    })?;
    thread::Builder::new()
        .name("state-in".to_owned())
        .spawn(move || copy(&network, &qemu, &first, |_| ()))?;
    Ok(relay)
}

/// Copies until the end of the stream, and forwards that end. `observe` is called with all bytes before they are forwarded.
fn copy(mut from: &Socket, mut to: &Socket, first: &[u8], observe: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    let mut result = to.write_all(first);
    while result.is_ok() {
        result = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                observe(&buffer[..length]);
                to.write_all(&buffer[..length])
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
    }
    // A regular end is forwarded as such. After an error both directions end, so QEMU notices that the stream is broken.
    let (end, other) = match result {
        Ok(()) => (Shutdown::Write, None),
        Err(_) => (Shutdown::Both, Some(Shutdown::Both)),
    };
    // Either connection may be closed already.
    let _ = to.shutdown(end);
    let _ = other.map(|end| from.shutdown(end));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn both_directions_and_the_end_are_forwarded() {
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
    fn cut_ends_both_sides() {
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
