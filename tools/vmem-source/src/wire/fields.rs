// SPDX-License-Identifier: GPL-2.0-or-later
//! Decodes the fixed-width fields of a payload.

use super::ProtocolError;

/// The rest of a payload that is being decoded.
pub(super) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The payload of a frame; `what` is its name for errors.
    pub(super) fn new(what: &'static str, payload: &'a [u8]) -> Self {
        Self { what, rest: payload }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(ProtocolError::Short(self.what))?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of entries from 1 to `limit`.
    pub(super) fn count(&mut self, limit: usize) -> Result<usize, ProtocolError> {
        let count = self.u32()?;
        match usize::try_from(count) {
            Ok(n) if (1..=limit).contains(&n) => Ok(n),
            _ => Err(ProtocolError::Count {
                what: self.what,
                count,
                limit: limit as u32,
            }),
        }
    }

    /// Four bytes that must be zero.
    pub(super) fn reserved(&mut self) -> Result<(), ProtocolError> {
        match self.u32()? {
            0 => Ok(()),
            _ => Err(ProtocolError::Reserved(self.what)),
        }
    }

    /// The rest of the payload.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Checks that the payload ends here.
    pub(super) fn end(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(ProtocolError::Trailing { what: self.what, extra }),
        }
    }
}
