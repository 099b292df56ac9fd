// SPDX-License-Identifier: GPL-2.0-or-later
//! DIGESTS: which contents the destination has already.

use super::ProtocolError;
use super::fields::Fields;
use crate::digest::{KEY_SIZE, Key};

pub(crate) const HEAD_SIZE: usize = KEY_SIZE + 8;
pub(crate) const ENTRY_SIZE: usize = 8;

/// The most digests in a frame.
pub(crate) const MAX_DIGESTS: usize = 8192;

/// A DIGESTS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Digests {
    pub(crate) key: Key,
    /// The beginnings of digests of pages that the destination has. If there are none, all that were announced are withdrawn.
    pub(crate) prefixes: Vec<u64>,
}

/// Encodes a DIGESTS of at most [`MAX_DIGESTS`].
pub(crate) fn encode(key: &Key, prefixes: &[u64]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HEAD_SIZE + prefixes.len() * ENTRY_SIZE);
    payload.extend(key.bytes());
    payload.extend((prefixes.len() as u32).to_le_bytes());
    payload.extend([0; 4]);
    prefixes.iter().for_each(|prefix| payload.extend(prefix.to_le_bytes()));
    payload
}

pub(crate) fn decode(payload: &[u8]) -> Result<Digests, ProtocolError> {
    const WHAT: &str = "DIGESTS";
    let mut fields = Fields::new(WHAT, payload);
    let key = Key::from_bytes(fields.bytes()?);
    let count = fields.u32()?;
    fields.reserved()?;
    if count as usize > MAX_DIGESTS {
        let (what, limit) = (WHAT, MAX_DIGESTS as u32);
        return Err(ProtocolError::Count { what, count, limit });
    }
    let prefixes = (0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok(Digests { key, prefixes })
}
