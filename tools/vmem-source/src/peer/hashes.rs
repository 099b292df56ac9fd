// SPDX-License-Identifier: GPL-2.0-or-later
//! Contents that this side has already: what a source may leave out.

use super::Peer;
use crate::answer::{Kind, Run};
use crate::digest::Key;
use crate::error::Error;
use crate::wire::digests::MAX_DIGESTS;
use crate::wire::frame::Type;
use crate::wire::greeting::FEATURE_HASHES;
use crate::wire::{ProtocolError, digests, pages};

impl Peer {
    pub(super) fn takes_hashes(&self) -> bool {
        self.features & FEATURE_HASHES != 0
    }

    /// Sends DIGESTS.
    pub(super) fn send_digests(&mut self, key: &Key, prefixes: &[u64]) -> Result<(), Error> {
        if !self.takes_hashes() {
            return Ok(());
        }
        let withdraws = prefixes.is_empty();
        self.announced |= !withdraws;
        let frames = prefixes.chunks(MAX_DIGESTS).chain(withdraws.then_some(&[][..]));
        for prefixes in frames {
            let payload = digests::encode(key, prefixes);
            self.link.write_frame(Type::Digests, 0, &[&payload])?;
        }
        Ok(())
    }

    /// Checks that the source leaves out only what this side has announced, or staged.
    pub(super) fn check_kinds(&self, runs: &[Run], in_rounds: bool) -> Result<(), ProtocolError> {
        let is_allowed = |kind| match kind {
            Kind::Data | Kind::Zero | Kind::Unreadable => true,
            Kind::Known => self.announced,
            Kind::Same => in_rounds && self.takes_hashes(),
        };
        match runs.iter().find(|run| !is_allowed(run.kind)) {
            Some(run) => Err(ProtocolError::Kind(pages::number(run.kind))),
            None => Ok(()),
        }
    }
}
