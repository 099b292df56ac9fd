// SPDX-License-Identifier: GPL-2.0-or-later
//! The listening socket that systemd passes on.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;

use socket2::Socket;

/// The socket on standard input, where systemd puts it with `StandardInput=socket`. Standard input is replaced in every child process, so that no
/// QEMU keeps the socket; the descriptors of `LISTEN_FDS` would be inherited.
pub(super) fn listener() -> Option<TcpListener> {
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    socket.is_listener().is_ok_and(|is| is).then(|| socket.into())
}
