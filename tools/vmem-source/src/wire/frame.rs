// SPDX-License-Identifier: GPL-2.0
//! The frame around everything after the greetings.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use super::fields::Fields;
use super::{MAX_EXPORTS, WireError, exports, question, refusal};
use crate::export::MAX_ASK_RANGES;

/// Size of a frame's header in bytes.
pub(crate) const HEADER_SIZE: usize = 24;

/// The longest payload of any frame in bytes.
pub(crate) const MAX_PAYLOAD: u32 = 1 << 20;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Type {
    Exports = 1,
    Read = 2,
    Pages = 3,
    Goodbye = 4,
    Error = 5,
    Release = 6,
}

impl Type {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exports => "EXPORTS",
            Self::Read => "READ",
            Self::Pages => "PAGES",
            Self::Goodbye => "GOODBYE",
            Self::Error => "ERROR",
            Self::Release => "RELEASE",
        }
    }

    /// The longest payload that makes sense: nobody shall make us take memory for more.
    fn limit(self) -> u32 {
        let limit = match self {
            Self::Exports => exports::HEAD_SIZE + exports::ENTRY_SIZE * MAX_EXPORTS,
            Self::Read | Self::Release => question::HEAD_SIZE + question::ENTRY_SIZE * MAX_ASK_RANGES,
            Self::Pages => return MAX_PAYLOAD,
            Self::Goodbye => 0,
            Self::Error => refusal::MAX_SIZE,
        };
        limit as u32
    }
}

impl TryFrom<u8> for Type {
    type Error = WireError;

    fn try_from(number: u8) -> Result<Self, WireError> {
        const ALL: [Type; 6] = [
            Type::Exports,
            Type::Read,
            Type::Pages,
            Type::Goodbye,
            Type::Error,
            Type::Release,
        ];
        ALL.into_iter()
            .find(|kind| *kind as u8 == number)
            .ok_or(WireError::Type(number))
    }
}

/// The header of a frame whose payload is still to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Type,
    /// Length of the payload in bytes.
    pub(crate) length: u32,
    /// Which question the frame belongs to; 0 if to none.
    pub(crate) tag: u32,
    /// Checksum of the payload.
    checksum: u64,
}

/// The header of a frame with the payload `parts`, one after the other.
pub(crate) fn encode(kind: Type, tag: u32, parts: &[&[u8]]) -> [u8; HEADER_SIZE] {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(length <= kind.limit() as usize, "{} of {length} bytes", kind.name());
    let mut payload = XxHash3_64::new();
    parts.iter().for_each(|part| payload.write(part));
    let mut header = [0; HEADER_SIZE];
    header[0..4].copy_from_slice(&(length as u32).to_le_bytes());
    header[4] = kind as u8;
    header[8..12].copy_from_slice(&tag.to_le_bytes());
    header[12..20].copy_from_slice(&payload.finish().to_le_bytes());
    let own = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&own.to_le_bytes());
    header
}

impl Header {
    /// Takes a header, which has a checksum of its own: a damaged length would have us wait for bytes that do not come.
    pub(crate) fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self, WireError> {
        let mut fields = Fields::new("header", bytes);
        let length = fields.u32()?;
        let [kind, reserved @ ..] = fields.bytes::<4>()?;
        let tag = fields.u32()?;
        let checksum = fields.u64()?;
        let said = fields.u32()?;
        let found = crc32c::crc32c(&bytes[..20]);
        if said != found {
            return Err(WireError::Checksum {
                what: "a header",
                said: said.into(),
                found: found.into(),
            });
        }
        let kind = Type::try_from(kind)?;
        if reserved != [0; 3] {
            return Err(WireError::Reserved("a header"));
        }
        if length > kind.limit() {
            return Err(WireError::TooLong {
                what: kind.name(),
                length,
                limit: kind.limit(),
            });
        }
        Ok(Self {
            kind,
            length,
            tag,
            checksum,
        })
    }

    /// Whether the payload is what was sent.
    pub(crate) fn verify(&self, payload: &[u8]) -> Result<(), WireError> {
        let found = XxHash3_64::oneshot(payload);
        if found == self.checksum {
            Ok(())
        } else {
            Err(WireError::Checksum {
                what: self.kind.name(),
                said: self.checksum,
                found,
            })
        }
    }
}
