// SPDX-License-Identifier: GPL-2.0-or-later
//! Frames: all that follows the greetings.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use super::compression::Coding;
use super::digests::MAX_DIGESTS;
use super::fields::Fields;
use super::{MAX_EXPORTS, ProtocolError, compression, digests, exports, map, ranges, refusal, rounds, session};
use crate::export::MAX_FETCH_RANGES;
use crate::holes::MAX_HOLES;

/// Size of a frame's header in bytes.
pub(crate) const HEADER_SIZE: usize = 24;

/// The longest payload of any frame in bytes.
pub(crate) const MAX_PAYLOAD: u32 = 1 << 20;

const _: () = assert!(compression::MAX_CONTENTS == MAX_PAYLOAD);

/// The type of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Type {
    Exports = 1,
    Read = 2,
    Pages = 3,
    Goodbye = 4,
    Error = 5,
    Release = 6,
    Next = 7,
    Batch = 8,
    Remainder = 9,
    Map = 10,
    Holes = 11,
    Digests = 12,
    Session = 14,
    Join = 15,
    Ended = 16,
    Compress = 17,
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
            Self::Next => "NEXT",
            Self::Batch => "BATCH",
            Self::Remainder => "REMAINDER",
            Self::Map => "MAP",
            Self::Holes => "HOLES",
            Self::Digests => "DIGESTS",
            Self::Session => "SESSION",
            Self::Join => "JOIN",
            Self::Ended => "ENDED",
            Self::Compress => "COMPRESS",
        }
    }

    /// What the peer does with a frame of this type, for [`Error::TimedOut`](crate::Error::TimedOut).
    pub(crate) fn take(self) -> &'static str {
        match self {
            Self::Exports => "take the list of exports",
            Self::Read => "take a READ",
            Self::Pages => "take pages",
            Self::Goodbye => "take a GOODBYE",
            Self::Error => "take an ERROR",
            Self::Release => "take a RELEASE",
            Self::Next => "take a NEXT",
            Self::Batch => "take a BATCH",
            Self::Remainder => "take a REMAINDER",
            Self::Map => "take a MAP",
            Self::Holes => "take a HOLES",
            Self::Digests => "take a DIGESTS",
            Self::Session => "take a SESSION",
            Self::Join => "take a JOIN",
            Self::Ended => "take an ENDED",
            Self::Compress => "take a COMPRESS",
        }
    }

    /// The longest payload of a valid frame in bytes, so that a peer cannot make this side allocate more.
    fn limit(self) -> u32 {
        let limit = match self {
            Self::Exports => exports::HEAD_SIZE + exports::ENTRY_SIZE * MAX_EXPORTS,
            Self::Read | Self::Release | Self::Remainder => ranges::HEAD_SIZE + ranges::ENTRY_SIZE * MAX_FETCH_RANGES,
            Self::Pages => return MAX_PAYLOAD,
            Self::Goodbye | Self::Ended => 0,
            Self::Error => refusal::MAX_SIZE,
            Self::Next => rounds::NEXT_SIZE,
            Self::Batch => rounds::BATCH_SIZE,
            Self::Map => map::MAP_SIZE,
            Self::Digests => digests::HEAD_SIZE + digests::ENTRY_SIZE * MAX_DIGESTS,
            Self::Holes => map::HOLES_HEAD_SIZE + ranges::ENTRY_SIZE * MAX_HOLES,
            Self::Session => session::SESSION_SIZE,
            Self::Join => session::JOIN_SIZE,
            Self::Compress => compression::COMPRESS_SIZE,
        };
        limit as u32
    }
}

impl TryFrom<u8> for Type {
    type Error = ProtocolError;

    fn try_from(number: u8) -> Result<Self, ProtocolError> {
        const ALL: &[Type] = &[
            Type::Exports,
            Type::Read,
            Type::Pages,
            Type::Goodbye,
            Type::Error,
            Type::Release,
            Type::Next,
            Type::Batch,
            Type::Remainder,
            Type::Map,
            Type::Holes,
            Type::Digests,
            Type::Session,
            Type::Join,
            Type::Ended,
            Type::Compress,
        ];
        ALL.iter()
            .copied()
            .find(|kind| *kind as u8 == number)
            .ok_or(ProtocolError::Type(number))
    }
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Type,
    /// Length of the payload in bytes.
    pub(crate) length: u32,
    /// How the contents of pages are coded.
    pub(crate) coding: Coding,
    /// The tag of the READ or NEXT that the frame belongs to; 0 if to none.
    pub(crate) tag: u32,
    /// Checksum of the payload.
    checksum: u64,
}

/// Encodes the header of a frame whose payload is `parts`, one after the other.
#[cfg(test)]
pub(crate) fn encode(kind: Type, tag: u32, parts: &[&[u8]]) -> [u8; HEADER_SIZE] {
    encode_as(kind, Coding::Plain, tag, parts, Sum::Xxh3)
}

/// Whether a payload has a checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sum {
    Xxh3,
    /// It has none, because TLS authenticates each byte.
    None,
}

impl Sum {
    fn hasher(self) -> Option<XxHash3_64> {
        (self == Self::Xxh3).then(XxHash3_64::new)
    }
}

/// Encodes the header of a frame whose payload is `parts`, one after the other, with page contents in this coding.
pub(crate) fn encode_as(kind: Type, coding: Coding, tag: u32, parts: &[&[u8]], sum: Sum) -> [u8; HEADER_SIZE] {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(length <= kind.limit() as usize, "{} of {length} bytes", kind.name());
    let checksum = sum.hasher().map_or(0, |mut payload| {
        parts.iter().for_each(|part| payload.write(part));
        payload.finish()
    });
    let mut header = [0; HEADER_SIZE];
    header[0..4].copy_from_slice(&(length as u32).to_le_bytes());
    header[4] = kind as u8;
    header[5] = coding as u8;
    header[8..12].copy_from_slice(&tag.to_le_bytes());
    header[12..20].copy_from_slice(&checksum.to_le_bytes());
    let own = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&own.to_le_bytes());
    header
}

impl Header {
    /// Decodes a header. It has a checksum of its own, because with a damaged length the receiver would wait for bytes that do not come.
    pub(crate) fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("header", bytes);
        let length = fields.u32()?;
        let [kind, coding, reserved @ ..] = fields.bytes::<4>()?;
        let tag = fields.u32()?;
        let checksum = fields.u64()?;
        let said = fields.u32()?;
        let found = crc32c::crc32c(&bytes[..20]);
        if said != found {
            return Err(ProtocolError::Checksum {
                what: "a header",
                said: said.into(),
                found: found.into(),
            });
        }
        let kind = Type::try_from(kind)?;
        // Contents of pages alone have a coding.
        if reserved != [0; 2] || (coding != 0 && kind != Type::Pages) {
            return Err(ProtocolError::Reserved("a header"));
        }
        let coding = Coding::from_number(coding).ok_or(ProtocolError::Coding(coding))?;
        if length > kind.limit() {
            return Err(ProtocolError::TooLong {
                what: kind.name(),
                length,
                limit: kind.limit(),
            });
        }
        Ok(Self {
            kind,
            length,
            coding,
            tag,
            checksum,
        })
    }

    /// Verifies the checksum of the payload. If payloads have none, its field is 0.
    pub(crate) fn verify(&self, payload: &[u8], sum: Sum) -> Result<(), ProtocolError> {
        let found = match sum {
            Sum::Xxh3 => XxHash3_64::oneshot(payload),
            Sum::None => 0,
        };
        if found == self.checksum {
            Ok(())
        } else {
            Err(ProtocolError::Checksum {
                what: self.kind.name(),
                said: self.checksum,
                found,
            })
        }
    }
}
