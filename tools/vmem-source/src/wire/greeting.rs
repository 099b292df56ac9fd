// SPDX-License-Identifier: GPL-2.0-or-later
//! Greetings: the first 24 bytes in each direction.

use super::ProtocolError;
use super::fields::Fields;
use super::version::Version;
use crate::export::Lane;

/// Size of a greeting in bytes.
pub(crate) const SIZE: usize = 24;

const MAGIC: [u8; 8] = *b"VMEMPAGE";

/// The source accepts RELEASE frames.
pub(crate) const FEATURE_RELEASE: u64 = 1 << 0;

/// The source sends pages in rounds while the program runs, and the destination stages them.
pub(crate) const FEATURE_ROUNDS: u64 = 1 << 1;

/// The source answers MAP frames.
pub(crate) const FEATURE_MAP: u64 = 1 << 2;

/// The source leaves out contents that the destination has: it takes DIGESTS frames, and the destination knows the kinds of runs for that.
pub(crate) const FEATURE_HASHES: u64 = 1 << 3;
/// Several connections of a destination take part in its rounds: with [`FEATURE_ROUNDS`] the first one, which is told the token of the session,
/// and without it another one, which shows the token.
pub(crate) const FEATURE_STREAMS: u64 = 1 << 4;

/// The source compresses page contents as COMPRESS frames say.
pub(crate) const FEATURE_COMPRESS: u64 = 1 << 5;

/// Payloads have no checksum. In TLS only, which authenticates each byte.
pub(crate) const FEATURE_NO_CHECKSUM: u64 = 1 << 6;

/// A greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Greeting {
    /// The destination sends the version that it asks for, the source the version that both use from then on.
    pub(crate) version: Version,
    /// The lane of the connection; the source repeats it.
    pub(crate) lane: Lane,
    /// The features that the destination offers, or those of them that the source accepts.
    pub(crate) features: u64,
}

impl Greeting {
    pub(crate) fn encode(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.number().to_le_bytes());
        bytes[10] = match self.lane {
            Lane::Urgent => 1,
            Lane::Stream => 2,
        };
        bytes[12..20].copy_from_slice(&self.features.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a greeting. Magic and version come first in every version of the protocol, so that both sides understand them whatever
    /// versions they speak.
    pub(crate) fn decode(bytes: &[u8; SIZE]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("greeting", bytes);
        let magic = fields.bytes()?;
        if magic != MAGIC {
            return Err(ProtocolError::Magic(magic));
        }
        let version = u16::from_le_bytes(fields.bytes()?);
        let version = Version::from_number(version).ok_or(ProtocolError::Version(version))?;
        let [lane, reserved] = fields.bytes()?;
        let features = fields.u64()?;
        let said = fields.u32()?;
        let found = crc32c::crc32c(&bytes[..20]);
        if said != found {
            return Err(ProtocolError::Checksum {
                what: "the greeting",
                said: said.into(),
                found: found.into(),
            });
        }
        if reserved != 0 {
            return Err(ProtocolError::Reserved("a greeting"));
        }
        let lane = match lane {
            1 => Lane::Urgent,
            2 => Lane::Stream,
            other => return Err(ProtocolError::Lane(other)),
        };
        Ok(Self { version, lane, features })
    }
}
