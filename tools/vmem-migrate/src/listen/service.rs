// SPDX-License-Identifier: GPL-2.0-or-later
//! What systemd and a service have to say to each other.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use socket2::Socket;

/// Where systemd waits for news of the service.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Tells systemd the state of the service. Without systemd, nobody wants to know.
pub(super) fn notify(state: &str) {
    let Some(path) = std::env::var_os(NOTIFY_SOCKET) else { return };
    if let Err(error) = path
        .to_str()
        .map_or_else(|| Err(io::Error::other("not text")), |path| send(path, state))
    {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

fn send(path: &str, state: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The processes of connections are no services.
pub(super) fn hide_from(command: &mut Command) {
    command.env_remove(NOTIFY_SOCKET);
}

/// The listening socket on standard input, where systemd puts it with `StandardInput=socket`. Standard input is replaced in every child
/// process, so that no QEMU keeps the socket; the descriptors of `LISTEN_FDS` would be inherited.
pub(super) fn socket() -> Option<TcpListener> {
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    socket.is_listener().is_ok_and(|is| is).then(|| socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_arrives_at_sockets_of_both_kinds() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = format!("vmem-test-{}", std::process::id());
        let sockets = [
            (path.to_str().expect("text").to_owned(), UnixDatagram::bind(&path)),
            (
                format!("@{name}"),
                SocketAddr::from_abstract_name(&name).and_then(|address| UnixDatagram::bind_addr(&address)),
            ),
        ];
        for (path, socket) in sockets {
            send(&path, "READY=1").expect("a socket");
            let mut bytes = [0; 32];
            let length = socket.expect("a socket").recv(&mut bytes).expect("a state");
            assert_eq!(&bytes[..length], b"READY=1");
        }
    }
}
