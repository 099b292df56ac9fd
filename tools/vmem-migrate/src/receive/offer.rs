// SPDX-License-Identifier: GPL-2.0-or-later
//! The offer of a guest. Everything in it comes from another host, so it is checked before use.

use crate::channel::Channel;
use crate::error::Cause;
use crate::key::Key;
use crate::message::Backend;
use crate::name::session_mark;
use crate::network::Security;
use vmem_source::Compression;

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
    /// How pages come.
    pub(super) transport: Transport,
}

/// How pages come: what the source's user wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Transport {
    /// Connections of the stream.
    streams: Option<u8>,
    compression: Option<Compression>,
}

impl Transport {
    /// What an offer says. What this vmemctl does not know, or would not do for its own user, is left out: the guest moves without it.
    pub(super) fn new(streams: Option<u8>, compress: Option<&str>) -> Self {
        let known = streams.filter(|streams| (1..=16).contains(streams));
        let compression = compress.and_then(|compress| compress.parse().ok());
        if known != streams {
            tracing::warn!(
                "the source wants {} streams, of which there are 1 to 16",
                streams.unwrap_or_default()
            );
        }
        if let (Some(unknown), None) = (compress, compression) {
            tracing::warn!("the source wants a compression that is not known here: {unknown:?}");
        }
        Self {
            streams: known,
            compression,
        }
    }

    /// The options of vmemd.
    pub(super) fn vmemd_arguments(self) -> Vec<String> {
        let streams = self.streams.map(|streams| ["--streams".to_owned(), streams.to_string()]);
        let compression = self
            .compression
            .map(|compression| ["--compress".to_owned(), compression.to_string()]);
        streams.into_iter().chain(compression).flatten().collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_the_transport_becomes_options_of_vmemd() {
        let arguments = |streams, compress| Transport::new(streams, compress).vmemd_arguments().join(" ");
        assert_eq!(arguments(None, None), "");
        assert_eq!(arguments(Some(3), Some("zstd")), "--streams 3 --compress zstd:1");
        assert_eq!(arguments(Some(16), Some("none")), "--streams 16 --compress none");
        for streams in [0, 17, 255] {
            assert_eq!(arguments(Some(streams), Some("lz4")), "--compress lz4");
        }
        for unknown in ["", "brotli", "zstd:99", "lz4 --resume", "--verify"] {
            assert_eq!(arguments(Some(1), Some(unknown)), "--streams 1");
        }
    }
}
