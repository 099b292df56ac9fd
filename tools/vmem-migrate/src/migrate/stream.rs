// SPDX-License-Identifier: GPL-2.0
//! The source's end of the guest's state.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use socket2::Socket;
use vmem_qmp::Qmp;

use crate::channel::Channel;
use crate::error::Cause;
use crate::relay::{End, STREAM, relay};

/// Where this host is, as the other end of `channel` sees it, and any port.
pub(crate) fn own_address(channel: &Channel) -> Result<SocketAddr, Cause> {
    let (mut own, _) = channel
        .ends()
        .ok_or_else(|| Cause::other("the destination is not on a network"))?;
    own.set_port(0);
    Ok(own)
}

/// The way of the guest's state: QEMU gets one end of a socket, and what it sends there goes to the destination. `network` is a connection
/// for the state. It can be used once.
pub(crate) fn give(qmp: &mut Qmp, network: Channel) -> Result<String, Cause> {
    let failed = || Cause::io("no way for the guest's state");
    let (theirs, ours) = UnixStream::pair().map_err(failed())?;
    qmp.send_fd(STREAM, &theirs)?;
    let (network, early) = network.into_parts();
    // If it cannot be relayed, both ends are closed, and QEMU says so.
    relay(End::Source, Socket::from(ours), network, early).map_err(failed())?;
    Ok(format!("fd:{STREAM}"))
}
