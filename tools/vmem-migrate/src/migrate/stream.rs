// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's end of the stream with the guest's state.

use std::net::SocketAddr;

use socket2::Socket;
use vmem_qemu::Qmp;

use crate::channel::Channel;
use crate::error::Cause;
use crate::relay::{End, Relay, relay};

/// The address of this host, as the peer of `channel` sees it, with port 0.
pub(crate) fn own_address(channel: &Channel) -> Result<SocketAddr, Cause> {
    let (mut own, _) = channel
        .ends()
        .ok_or_else(|| Cause::other("the destination is not on a network"))?;
    own.set_port(0);
    Ok(own)
}

/// Connects QEMU to the destination: QEMU gets one end of a socket pair, and what it sends there is relayed to `network`, the connection
/// for the state. Returns the URI for QEMU's `migrate`, which can be used once, and the relay.
pub(crate) fn give(qmp: &mut Qmp, network: Channel) -> Result<(String, Relay), Cause> {
    let (ours, uri) = vmem_qemu::stream::open(qmp)?;
    let (network, early) = network.into_parts();
    // If the relay fails, both ends are closed, and QEMU reports that.
    let relay = relay(End::Source, Socket::from(ours), network, early)
        .map_err(Cause::call("cannot relay the guest's state to the destination"))?;
    Ok((uri, relay))
}
