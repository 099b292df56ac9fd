// SPDX-License-Identifier: GPL-2.0
//! Fixed-width fields of a payload, taken one after the other.

use super::WireError;

/// A payload that is being read.
pub(super) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The payload of a frame called `what`.
    pub(super) fn new(what: &'static str, payload: &'a [u8]) -> Self {
        Self { what, rest: payload }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(WireError::Short(self.what))?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// The number of entries that follow: 1 to `limit`.
    pub(super) fn count(&mut self, limit: usize) -> Result<usize, WireError> {
        let count = self.u32()?;
        match usize::try_from(count) {
            Ok(n) if (1..=limit).contains(&n) => Ok(n),
            _ => Err(WireError::Count {
                what: self.what,
                count,
                limit: limit as u32,
            }),
        }
    }

    /// Four bytes that must be zero.
    pub(super) fn reserved(&mut self) -> Result<(), WireError> {
        match self.u32()? {
            0 => Ok(()),
            _ => Err(WireError::Reserved(self.what)),
        }
    }

    /// What is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(WireError::Trailing { what: self.what, extra }),
        }
    }
}
