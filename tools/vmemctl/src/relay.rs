// SPDX-License-Identifier: GPL-2.0
//! QEMU's migration stream on its way through: QEMU on one side, the other machine on the other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;

use socket2::Socket;

/// A relay at work.
pub(crate) struct Relay {
    network: Socket,
}

impl Relay {
    /// Lets nothing through any more. QEMU gets what it has been sent, and then finds that there is no more.
    pub(crate) fn cut(&self) {
        // It may be at its end.
        let _ = self.network.shutdown(Shutdown::Both);
    }
}

/// Copies in both directions until both are at their end, in threads of its own. `first` goes to `qemu` before anything else.
pub(crate) fn relay(qemu: Socket, network: Socket, first: Vec<u8>) -> io::Result<Relay> {
    for socket in [&qemu, &network] {
        socket.set_read_timeout(None)?;
        // A QEMU that is stopped, or a network that is down, may come back; whoever waits for the migration has a time limit.
        socket.set_write_timeout(None)?;
    }
    let (from, to) = (qemu.try_clone()?, network.try_clone()?);
    let relay = Relay {
        network: network.try_clone()?,
    };
    thread::Builder::new()
        .name("state-out".to_owned())
        .spawn(move || copy(&from, &to, &[]))?;
    thread::Builder::new()
        .name("state-in".to_owned())
        .spawn(move || copy(&network, &qemu, &first))?;
    Ok(relay)
}

/// Copies until the end, and passes that on.
fn copy(mut from: &Socket, mut to: &Socket, first: &[u8]) {
    let mut buffer = vec![0; 64 << 10];
    let mut result = to.write_all(first);
    while result.is_ok() {
        result = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => to.write_all(&buffer[..length]),
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
        let _relay = relay(Socket::from(ours), Socket::from(theirs), b"early ".to_vec()).expect("threads");
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
    fn a_cut_ends_both_sides() {
        let (mut qemu, ours) = UnixStream::pair().expect("sockets");
        let (mut network, theirs) = UnixStream::pair().expect("sockets");
        let relay = relay(Socket::from(ours), Socket::from(theirs), Vec::new()).expect("threads");
        relay.cut();
        let mut text = String::new();
        qemu.read_to_string(&mut text).expect("the end");
        network.read_to_string(&mut text).expect("the end");
        assert_eq!(text, "");
    }
}
