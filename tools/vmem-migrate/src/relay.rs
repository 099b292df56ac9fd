// SPDX-License-Identifier: GPL-2.0-or-later
//! Relays QEMU's migration stream: QEMU is on one side, the other host on the other.

mod hold;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::Socket;
use vmem_qemu::stream::ReturnPath;

pub(crate) use hold::HoldError;
use hold::{AtEnd, Hold};

/// A running relay.
pub(crate) struct Relay {
    network: Socket,
    return_path: Arc<ReturnPath>,
    /// At the source only: what QEMU has written, and is not forwarded yet.
    hold: Arc<Hold>,
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

    /// From now on, keeps what this end's QEMU writes, until [`release`](Self::release). If QEMU ends its stream before, that is dropped.
    pub(crate) fn hold(&self) {
        self.hold.begin();
    }

    /// Whether QEMU has written everything: what is kept ends with the description of the devices. Waits for that for up to `limit`. A
    /// machine with `suppress-vmdesc` has no description.
    pub(crate) fn wait_saved(&self, limit: Duration) -> Result<bool, HoldError> {
        self.hold.wait_complete(limit)
    }

    /// The number of kept bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.hold.len()
    }

    /// Lets through what is kept and what follows, in a thread of its own.
    pub(crate) fn release(&self) -> io::Result<()> {
        let (hold, network) = (Arc::clone(&self.hold), self.network.try_clone()?);
        self.hold.release().map_err(io::Error::other)?;
        let forward = move || {
            let ended = loop {
                match hold.next() {
                    Ok(bytes) => {
                        if (&network).write_all(&bytes).is_err() {
                            hold.fail();
                        }
                    }
                    Err(at_end) => break at_end,
                }
            };
            // The connection may be closed already. When it is, the thread that copies to QEMU ends, too.
            let _ = match ended {
                AtEnd::Forward => network.shutdown(Shutdown::Write),
                AtEnd::Break => network.shutdown(Shutdown::Both),
                AtEnd::Leave => Ok(()),
            };
        };
        thread::Builder::new().name("state-held".to_owned()).spawn(forward)?;
        Ok(())
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
    let (return_path, hold) = (Arc::<ReturnPath>::default(), Arc::<Hold>::default());
    let relay = Relay {
        network: network.try_clone()?,
        return_path: Arc::clone(&return_path),
        hold: Arc::clone(&hold),
    };
    thread::Builder::new().name("state-out".to_owned()).spawn(move || match end {
        End::Source => {
            let result = copy(&from, &to, &[], |bytes| hold.is_open_for(bytes));
            match result.map(|()| hold.end()) {
                Ok(AtEnd::Forward) => forward_end(&from, &to, true),
                Ok(AtEnd::Leave) => {}
                Ok(AtEnd::Break) => forward_end(&from, &to, false),
                Err(_) => {
                    hold.fail();
                    forward_end(&from, &to, false);
                }
            }
        }
        End::Destination => {
            let observe = |bytes: &[u8]| {
                return_path.observe(bytes);
                Ok(true)
            };
            forward_end(&from, &to, copy(&from, &to, &[], observe).is_ok());
        }
    })?;
    thread::Builder::new().name("state-in".to_owned()).spawn(move || {
        let result = copy(&network, &qemu, &first, |_| Ok(true));
        forward_end(&network, &qemu, result.is_ok());
    })?;
    Ok(relay)
}

/// Copies until the end of the stream. `is_due` is called with all bytes, and says whether they are forwarded.
fn copy(mut from: &Socket, mut to: &Socket, first: &[u8], is_due: impl Fn(&[u8]) -> io::Result<bool>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    to.write_all(first)?;
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if is_due(bytes)? {
            to.write_all(bytes)?;
        }
    }
}

/// A regular end is forwarded as such. After an error both directions end, so QEMU notices that the stream is broken.
fn forward_end(from: &Socket, to: &Socket, is_regular: bool) {
    let (end, other) = match is_regular {
        true => (Shutdown::Write, None),
        false => (Shutdown::Both, Some(Shutdown::Both)),
    };
    // Either connection may be closed already.
    let _ = to.shutdown(end);
    let _ = other.map(|end| from.shutdown(end));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const LONG: Duration = Duration::from_secs(20);

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
    fn held_stream_passes_only_after_release() {
        let (mut qemu, ours) = UnixStream::pair().expect("sockets");
        let (mut network, theirs) = UnixStream::pair().expect("sockets");
        let relay = relay(End::Source, Socket::from(ours), Socket::from(theirs), Vec::new()).expect("threads");
        qemu.write_all(b"set up").expect("room");
        let mut bytes = [0; 6];
        network.read_exact(&mut bytes).expect("what was written before");
        relay.hold();
        let (first, last) = vmem_qemu::recorded::END.split_at(1000);
        qemu.write_all(first).expect("room");
        assert_eq!(relay.wait_saved(Duration::from_millis(100)), Ok(false), "a part");
        qemu.write_all(last).expect("room");
        assert_eq!(relay.wait_saved(LONG), Ok(true));
        assert_eq!(relay.held_bytes(), vmem_qemu::recorded::END.len());
        network.set_nonblocking(true).expect("a socket");
        let early = network.read(&mut bytes).expect_err("nothing");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        network.set_nonblocking(false).expect("a socket");
        relay.release().expect("a thread");
        let mut kept = vec![0; vmem_qemu::recorded::END.len()];
        network.read_exact(&mut kept).expect("what was kept");
        assert_eq!(kept, vmem_qemu::recorded::END);
        qemu.write_all(b"more").expect("room");
        drop(qemu);
        let mut text = String::new();
        network.read_to_string(&mut text).expect("the end");
        assert_eq!(text, "more");
    }

    #[test]
    fn held_stream_that_qemu_closes_does_not_arrive() {
        let (mut qemu, ours) = UnixStream::pair().expect("sockets");
        let (mut network, theirs) = UnixStream::pair().expect("sockets");
        let relay = relay(End::Source, Socket::from(ours), Socket::from(theirs), Vec::new()).expect("threads");
        relay.hold();
        qemu.write_all(vmem_qemu::recorded::END).expect("room");
        drop(qemu);
        let mut bytes = Vec::new();
        network.read_to_end(&mut bytes).expect("the end");
        assert!(bytes.is_empty(), "{bytes:?}");
        assert_eq!(relay.wait_saved(LONG), Err(HoldError::Ended));
        relay.release().expect_err("nothing is left");
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
