// SPDX-License-Identifier: GPL-2.0
//! The offer of a guest. Everything in it comes from another host, so it is checked before use.

use crate::channel::Channel;
use crate::error::Cause;
use crate::key::Key;
use crate::message::Backend;
use crate::name::session_mark;
use crate::network::Security;

/// An offer that has passed [`check`].
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) session: String,
    pub(super) guest: String,
    /// What identifies the guest on this host.
    pub(super) key: Key,
    pub(super) memory: Vec<Backend>,
    /// Where this host's vmemd connects to for the pages: `HOST:PORT`.
    pub(super) source: String,
    /// The source frees pages that the destination has.
    pub(super) release: bool,
    /// What the source offers for fetching.
    pub(super) fetching: Fetching,
}

/// How pages are fetched before the guest runs here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Fetching {
    /// Pages are taken in rounds while the guest runs at the source.
    pub(super) rounds: bool,
    /// All pages are compared with the source's once they are here.
    pub(super) verify: bool,
}

/// Refuses an offer that would have this host's vmemd do what a source must not ask for. Returns the address of the source's vmemd. `pages`
/// is a port of the source, or `HOST:PORT`.
pub(super) fn check(
    session: &str,
    memory: &[Backend],
    pages: &str,
    channel: &Channel,
    security: &Security,
) -> Result<String, Cause> {
    let mark = session_mark(session).ok_or_else(|| Cause::other("the source has sent an invalid session number"))?;
    for (at, backend) in memory.iter().enumerate() {
        let (id, export) = (&backend.id, &backend.export);
        // The mark is this session's, so no export of another move has such a name.
        if vmem::Name::new(export).is_err() || !export.ends_with(mark) {
            return Err(Cause::other(format!(
                "the source offers the export {export:?}, whose name is invalid for this move"
            )));
        }
        let before = memory.iter().take(at);
        if before.filter(|other| other.id == *id || other.export == *export).count() > 0 {
            return Err(Cause::other(format!(
                "the source offers memory backend {id:?} or its export twice"
            )));
        }
    }
    if let Ok(port) = pages.parse::<u16>() {
        let (_, mut peer) = channel.ends().ok_or_else(|| Cause::other("the source is not on a network"))?;
        // The peer's address keeps its scope, which a link-local address needs.
        peer.set_port(port);
        return Ok(peer.to_string());
    }
    security.check_host(pages)?;
    Ok(pages.to_owned())
}
