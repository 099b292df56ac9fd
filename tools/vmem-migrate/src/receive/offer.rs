// SPDX-License-Identifier: GPL-2.0
//! A guest that a source offers. What another host says is not believed.

use crate::channel::Channel;
use crate::error::Cause;
use crate::key::Key;
use crate::message::Backend;
use crate::name::session_mark;
use crate::network::Security;

/// An offer that has been looked at.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) session: String,
    pub(super) guest: String,
    /// What tells it from others.
    pub(super) key: Key,
    pub(super) memory: Vec<Backend>,
    /// Where this host's vmemd finds the pages: `HOST:PORT`.
    pub(super) source: String,
    /// The source gives pages back.
    pub(super) release: bool,
}

/// Refuses what a source must not want of this host's vmemd; returns where that one finds the pages. `pages` is a port of the source, or
/// `HOST:PORT`.
pub(super) fn check(
    session: &str,
    memory: &[Backend],
    pages: &str,
    channel: &Channel,
    security: &Security,
) -> Result<String, Cause> {
    let mark = session_mark(session).ok_or_else(|| Cause::other("the source's session is no number"))?;
    for (at, backend) in memory.iter().enumerate() {
        let (id, export) = (&backend.id, &backend.export);
        // The export of another move cannot be called that.
        if vmem::Name::new(export).is_err() || !export.ends_with(mark) {
            return Err(Cause::other(format!("{export:?} is no name for an export of this move")));
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
        // The address as it is, with the scope of one that is link-local.
        peer.set_port(port);
        return Ok(peer.to_string());
    }
    security.check_host(pages)?;
    Ok(pages.to_owned())
}
