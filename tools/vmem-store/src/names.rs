// SPDX-License-Identifier: GPL-2.0-or-later
//! Names: of guests, of checkpoints, of writers, and of the objects in the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hex::{from_hex, to_hex};
use crate::random::{NoRandom, random};

/// A name breaks the rules for names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(pub(crate) String);

/// The name of a guest: 1 to 64 letters, digits, `.`, `_` and `-`; it does not begin with `.` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    /// Longest name, in bytes.
    pub const MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > Self::MAX || !text.bytes().all(is_known) || text.starts_with(['.', '-']) {
            return Err(NameError(format!(
                "{text:?} is no name of a guest: 1 to {} letters, digits, '.', '_' and '-', and no '.' or '-' at the beginning",
                Self::MAX
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for GuestName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checkpoint of a guest, by its number: `guest0@7`. Numbers begin at 1 and are not used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointName {
    /// The guest.
    pub guest: GuestName,
    /// The number.
    pub sequence: u64,
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.guest, self.sequence)
    }
}

/// Sixteen random bytes: who wrote an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WriterId(pub(crate) [u8; 16]);

impl WriterId {
    pub(crate) fn new() -> Result<Self, NoRandom> {
        Ok(Self(random()?))
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for WriterId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        from_hex(text)
            .map(Self)
            .ok_or_else(|| NameError(format!("{text:?} is not 32 hexadecimal digits")))
    }
}

impl TryFrom<String> for WriterId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<WriterId> for String {
    fn from(id: WriterId) -> Self {
        id.to_string()
    }
}

/// The name of the configuration, the first object of a store.
pub(crate) const CONFIG: &str = "config";

pub(crate) const KEYS: &str = "keys/";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const INDEXES: &str = "index/";
pub(crate) const CHECKPOINTS: &str = "checkpoints/";
pub(crate) const ORDERS: &str = "orders/";
pub(crate) const LEASES: &str = "leases/";
pub(crate) const TOMBSTONES: &str = "gc/";

/// A pack, whatever of it was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackId {
    pub(crate) writer: WriterId,
    pub(crate) number: u32,
}

impl PackId {
    /// What the names of all generations of the pack begin with.
    pub(crate) fn prefix(self) -> String {
        let writer = self.writer.to_string();
        format!("{PACKS}{}/{writer}-{:06}.", &writer[..2], self.number)
    }

    pub(crate) fn object(self, generation: u32) -> String {
        format!("{}{generation:04}.vpk", self.prefix())
    }

    /// The pack and its generation.
    pub(crate) fn parse(name: &str) -> Option<(Self, u32)> {
        let (_, file) = name.strip_prefix(PACKS)?.split_once('/')?;
        let (writer, rest) = file.strip_suffix(".vpk")?.split_once('-')?;
        let (number, generation) = rest.split_once('.')?;
        let pack = Self {
            writer: writer.parse().ok()?,
            number: number.parse().ok()?,
        };
        let generation = generation.parse().ok()?;
        (pack.object(generation) == name).then_some((pack, generation))
    }
}

pub(crate) fn index(writer: WriterId) -> String {
    format!("{INDEXES}{writer}.vix")
}

pub(crate) fn parse_index(name: &str) -> Option<WriterId> {
    name.strip_prefix(INDEXES)?.strip_suffix(".vix")?.parse().ok()
}

/// The object of a manifest. `revision` grows when a checkpoint is rewritten;
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManifestName {
    pub(crate) checkpoint: CheckpointName,
    pub(crate) revision: u32,
}

impl ManifestName {
    pub(crate) fn object(&self) -> String {
        let CheckpointName { guest, sequence } = &self.checkpoint;
        format!("{CHECKPOINTS}{guest}/{sequence:010}.{:04}.vcm", self.revision)
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (guest, file) = name.strip_prefix(CHECKPOINTS)?.split_once('/')?;
        let (sequence, revision) = file.strip_suffix(".vcm")?.split_once('.')?;
        let parsed = Self {
            checkpoint: CheckpointName {
                guest: guest.parse().ok()?,
                sequence: sequence.parse().ok()?,
            },
            revision: revision.parse().ok()?,
        };
        (parsed.object() == name).then_some(parsed)
    }
}

/// What says of a checkpoint that it is not to be removed.
pub(crate) fn protection(checkpoint: &CheckpointName) -> String {
    format!("{CHECKPOINTS}{}/{:010}.protected", checkpoint.guest, checkpoint.sequence)
}

/// What says that a guest's numbers up to this one were used.
pub(crate) fn used(checkpoint: &CheckpointName) -> String {
    format!("{CHECKPOINTS}{}/{:010}.used", checkpoint.guest, checkpoint.sequence)
}

/// The guest and number of an object of a guest with this ending.
pub(crate) fn parse_marker(name: &str, ending: &str) -> Option<CheckpointName> {
    let (guest, file) = name.strip_prefix(CHECKPOINTS)?.split_once('/')?;
    Some(CheckpointName {
        guest: guest.parse().ok()?,
        sequence: file.strip_suffix(ending)?.parse().ok()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn object_names_are_parsed_as_they_are_made() {
        let writer = WriterId([0xa5; 16]);
        let pack = PackId { writer, number: 7 };
        assert_eq!(PackId::parse(&pack.object(3)), Some((pack, 3)));
        assert_eq!(PackId::parse(&pack.object(3).replace("/a5/", "/a6/")), None);
        assert_eq!(parse_index(&index(writer)), Some(writer));
        let checkpoint = CheckpointName {
            guest: "guest-0.1".parse().unwrap(),
            sequence: 12,
        };
        let name = ManifestName {
            checkpoint: checkpoint.clone(),
            revision: 2,
        };
        assert_eq!(ManifestName::parse(&name.object()), Some(name));
        assert_eq!(parse_marker(&protection(&checkpoint), ".protected"), Some(checkpoint));
    }

    #[test]
    fn names_of_guests_cannot_leave_their_directory() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad:?}");
        }
        assert_eq!("guest0".parse::<GuestName>().unwrap().as_str(), "guest0");
    }
}
