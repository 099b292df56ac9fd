// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to sockets of QEMU.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to the socket at `path`.
///
/// # Errors
///
/// [`io::ErrorKind::WouldBlock`] after `limit`, and those of `connect(2)`.
pub(crate) fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The backlog of a QEMU with a client can be full. The send timeout of a socket limits connect(2), too.
    socket.set_write_timeout(Some(limit))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}
