// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections that one vmemctl accepts and another one converses on. They are handed over through a socket of this host.

use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::Socket;

use crate::channel::Channel;
use crate::message::Purpose;
use crate::name::public_session;
use crate::network::Greeted;

/// The directory of sockets and locks of arriving guests, below that of the records.
pub(crate) const DIRECTORY: &str = "listen";

/// How long a process of this host may take to hand a connection over.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the HELLO of a connection said.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    version: u32,
    session: String,
    purpose: Purpose,
}

/// The socket at which the process that receives a guest takes the guest's further connections. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    path: PathBuf,
    inode: u64,
}

impl Rendezvous {
    /// Opens the socket for `session`, unless another process has it. A socket of a process that has ended is replaced.
    pub(crate) fn open(state: &Path, session: &str) -> io::Result<(Self, UnixListener)> {
        if connect(state, session)?.is_some() {
            return Err(io::Error::other("another vmemctl receives the guest of this session"));
        }
        let path = path(state, session)?;
        let _ = fs::remove_file(&path);
        let socket = UnixListener::bind(&path)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok((Self { path, inode }, socket))
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        // Another process may have replaced it. The directory may have been removed already.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the directory of sockets and locks. Only its owner may connect, so a peer there is trusted.
pub(crate) fn make_directory(state: &Path) -> io::Result<PathBuf> {
    let directory = state.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    Ok(directory)
}

fn path(state: &Path, session: &str) -> io::Result<PathBuf> {
    let name = public_session(session);
    // The name comes from another host.
    if !name.bytes().all(|byte| byte.is_ascii_hexdigit()) || name.len() != 16 || session.len() > 64 {
        return Err(io::Error::other("the session number is invalid"));
    }
    Ok(make_directory(state)?.join(name))
}

/// Connects to the process that receives the guest of a session. `None`: no process does.
pub(crate) fn connect(state: &Path, session: &str) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path(state, session)?) {
        Ok(peer) => {
            peer.set_write_timeout(Some(TIMEOUT))?;
            Ok(Some(peer))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hands a connection over to the process that [`connect`] has found.
pub(crate) fn send_greeted(peer: &UnixStream, greeted: Greeted) -> io::Result<()> {
    let hello = Hello {
        version: greeted.version,
        purpose: greeted.purpose,
        session: greeted.session,
    };
    let (socket, rest) = greeted.channel.into_parts();
    if !rest.is_empty() {
        return Err(io::Error::other("the source has not waited for WELCOME"));
    }
    send(peer, socket.as_fd(), &serde_json::to_vec(&hello)?)
}

/// Takes a connection that [`send_greeted`] hands over.
pub(crate) fn recv_greeted(peer: &UnixStream) -> io::Result<Greeted> {
    let (socket, text) = recv(peer)?;
    let Hello {
        version,
        session,
        purpose,
    } = serde_json::from_slice(&text)?;
    Ok(Greeted {
        channel: Channel::handed_over(Socket::from(socket))?,
        version,
        session,
        purpose,
        relay: None,
    })
}

/// Sends an open file with `text`, which is short enough to arrive at once.
pub(crate) fn send(peer: &UnixStream, file: impl AsFd, text: &[u8]) -> io::Result<()> {
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    with.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(peer, &[IoSlice::new(text)], &mut with, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send`] sends.
pub(crate) fn recv(peer: &UnixStream) -> io::Result<(OwnedFd, Vec<u8>)> {
    peer.set_read_timeout(Some(TIMEOUT))?;
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(peer, &mut [IoSliceMut::new(&mut bytes)], &mut with, RecvFlags::CMSG_CLOEXEC)?;
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("there is no descriptor free for the connection"));
    }
    let file = with.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file = file.ok_or_else(|| io::Error::other("no connection was handed over"))?;
    Ok((file, bytes.get(..got.bytes).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::message::FromSource;

    const SESSION: &str = "0123456789abcdef0123456789abcdef";

    fn greeted(session: &str) -> (TcpStream, Greeted) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let source = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let socket = Socket::from(listener.accept().expect("a connection").0);
        let greeted = Greeted {
            channel: Channel::handed_over(socket).expect("a channel"),
            version: 2,
            session: session.to_owned(),
            purpose: Purpose::Recover,
            relay: None,
        };
        (source, greeted)
    }

    #[test]
    fn connection_reaches_the_process_that_receives_its_guest() {
        let state = tempfile::tempdir().expect("a directory");
        let (rendezvous, socket) = Rendezvous::open(state.path(), SESSION).expect("a socket");
        let (source, sent) = greeted(SESSION);
        let peer = connect(state.path(), SESSION).expect("a socket").expect("a process");
        send_greeted(&peer, sent).expect("a process");
        let mut taken = recv_greeted(&socket.accept().expect("a connection").0).expect("a connection");
        assert_eq!(
            (taken.version, taken.session.as_str(), taken.purpose),
            (2, SESSION, Purpose::Recover)
        );
        let carrier = Socket::from(source);
        let source = Channel::new(carrier.try_clone().expect("a socket"), &carrier).expect("a channel");
        source.send(&FromSource::Heard).expect("room");
        let heard = taken.channel.recv_within::<FromSource>(TIMEOUT).expect("a message");
        assert_eq!(heard, FromSource::Heard);
        assert!(Rendezvous::open(state.path(), SESSION).is_err(), "it is somebody's");
        drop(socket);
        let (next, socket) = Rendezvous::open(state.path(), SESSION).expect("that of nobody");
        drop(rendezvous);
        assert!(
            connect(state.path(), SESSION).expect("no error").is_some(),
            "it is the next one's"
        );
        drop((next, socket));
        assert!(
            connect(state.path(), SESSION).expect("no error").is_none(),
            "nobody receives it"
        );
    }

    #[test]
    fn session_number_leads_into_no_other_directory() {
        let state = tempfile::tempdir().expect("a directory");
        for bad in ["", "../../../../etc/passwd", "0123456789abcde"] {
            assert!(path(state.path(), bad).is_err(), "{bad}");
        }
        assert!(path(state.path(), SESSION).is_ok_and(|path| path.ends_with("listen/0123456789abcdef")));
    }
}
