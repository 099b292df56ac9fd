// SPDX-License-Identifier: GPL-2.0-or-later
//! The levels of the index above the leaves: references to records, branches, and the table of packs.

use serde::{Deserialize, Serialize};

use crate::crypto::Hash16;
use crate::encoding::{Cursor, Malformed, put_varint};
use crate::hex;
use crate::leaf::LEAF_PAGES;
use crate::names::{PackId, WriterId};

/// Leaves of a branch: 1 GiB of memory.
pub(crate) const BRANCH_LEAVES: u64 = 512;
/// Pages of a branch.
pub(crate) const BRANCH_PAGES: u64 = BRANCH_LEAVES * LEAF_PAGES;
/// Packs of one part of the table of packs.
pub(crate) const TABLE_PACKS: usize = 64;
/// Most packs of a checkpoint.
pub(crate) const MAX_PACKS: u32 = 1 << 20;
/// Most objects of the index that a checkpoint refers to.
pub(crate) const MAX_INDEXES: usize = 64;
/// Most pages of a pack.
pub(crate) const MAX_PACK_PAGES: u32 = 1 << 20;

/// Where a record of the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct RecordRef {
    /// The object, by its place in the manifest's list.
    pub(crate) index: u32,
    /// Bytes in the object before the record.
    pub(crate) offset: u64,
    /// Bytes of the record with its header.
    pub(crate) length: u32,
    /// Of its contents before compression and encryption.
    #[serde(with = "hex")]
    pub(crate) hash: Hash16,
}

impl RecordRef {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.index));
        put_varint(out, self.offset);
        put_varint(out, u64::from(self.length));
        out.extend_from_slice(&self.hash);
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            index: cursor.varint32()?,
            offset: cursor.varint()?,
            length: cursor.varint32()?,
            hash: cursor.array()?,
        })
    }
}

/// The leaves of a branch; `None` is a leaf of zeros. At most [`BRANCH_LEAVES`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Branch(pub(crate) Vec<Option<RecordRef>>);

impl Branch {
    /// A number for the leaves, and for each a byte (0: zeros, 1: a reference follows).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.0.len() as u64);
        for leaf in &self.0 {
            out.push(u8::from(leaf.is_some()));
            if let Some(leaf) = leaf {
                leaf.encode(&mut out);
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.varint()?;
        if count > BRANCH_LEAVES {
            return Err(Malformed("a branch has too many leaves"));
        }
        let mut leaves = Vec::with_capacity(count as usize);
        for _ in 0..count {
            leaves.push(match cursor.u8()? {
                0 => None,
                1 => Some(RecordRef::decode(&mut cursor)?),
                _ => return Err(Malformed("a leaf of a branch has an unknown kind")),
            });
        }
        cursor.end()?;
        Ok(Self(leaves))
    }
}

/// A pack that a checkpoint refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub(crate) id: PackId,
    /// Pages that were written to it.
    pub(crate) pages: u32,
    /// Of the hashes of all of its pages. Stays when pages are given back.
    pub(crate) hash: Hash16,
}

/// A part of the table of packs, at most [`TABLE_PACKS`]; `None` is an ordinal that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PackTable(pub(crate) Vec<Option<PackInfo>>);

impl PackTable {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.0.len() as u64);
        for pack in &self.0 {
            out.push(u8::from(pack.is_some()));
            if let Some(pack) = pack {
                out.extend_from_slice(&pack.id.writer.0);
                put_varint(&mut out, u64::from(pack.id.number));
                put_varint(&mut out, u64::from(pack.pages));
                out.extend_from_slice(&pack.hash);
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.varint()?;
        if count > TABLE_PACKS as u64 {
            return Err(Malformed("a part of the table of packs is too long"));
        }
        let mut packs = Vec::with_capacity(count as usize);
        for _ in 0..count {
            packs.push(match cursor.u8()? {
                0 => None,
                1 => {
                    let id = PackId {
                        writer: WriterId(cursor.array()?),
                        number: cursor.varint32()?,
                    };
                    let pages = cursor.varint32()?;
                    if pages > MAX_PACK_PAGES {
                        return Err(Malformed("a pack has too many pages"));
                    }
                    let hash = cursor.array()?;
                    Some(PackInfo { id, pages, hash })
                }
                _ => return Err(Malformed("a pack has an unknown kind")),
            });
        }
        cursor.end()?;
        Ok(Self(packs))
    }
}

/// How many pages of each pack a checkpoint refers to, by the packs' ordinals.
pub(crate) fn encode_live(live: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, live.len() as u64);
    live.iter().for_each(|pages| put_varint(&mut out, u64::from(*pages)));
    out
}

pub(crate) fn decode_live(bytes: &[u8]) -> Result<Vec<u32>, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let count = cursor.varint()?;
    if count > u64::from(MAX_PACKS) || count > bytes.len() as u64 {
        return Err(Malformed("the counts of live pages are too many"));
    }
    let live = (0..count).map(|_| cursor.varint32()).collect::<Result<_, _>>()?;
    cursor.end()?;
    Ok(live)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = RecordRef> {
        (any::<u32>(), any::<u64>(), any::<u32>(), any::<[u8; 16]>()).prop_map(|(index, offset, length, hash)| RecordRef {
            index,
            offset,
            length,
            hash,
        })
    }

    fn pack() -> impl Strategy<Value = PackInfo> {
        (any::<[u8; 16]>(), any::<u32>(), 0..=MAX_PACK_PAGES, any::<[u8; 16]>()).prop_map(|(writer, number, pages, hash)| {
            PackInfo {
                id: PackId {
                    writer: WriterId(writer),
                    number,
                },
                pages,
                hash,
            }
        })
    }

    proptest! {
        #[test]
        fn branch_table_and_counts_come_back(
            leaves in proptest::collection::vec(proptest::option::of(record()), 0..30),
            packs in proptest::collection::vec(proptest::option::of(pack()), 0..TABLE_PACKS),
            live: Vec<u32>,
        ) {
            let branch = Branch(leaves);
            prop_assert_eq!(Branch::decode(&branch.encode()), Ok(branch));
            let table = PackTable(packs);
            prop_assert_eq!(PackTable::decode(&table.encode()), Ok(table));
            prop_assert_eq!(decode_live(&encode_live(&live)), Ok(live));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(branch) = Branch::decode(&bytes) {
                prop_assert_eq!(branch.encode(), bytes.clone());
            }
            if let Ok(table) = PackTable::decode(&bytes) {
                prop_assert_eq!(table.encode(), bytes.clone());
            }
            if let Ok(live) = decode_live(&bytes) {
                prop_assert_eq!(encode_live(&live), bytes);
            }
        }
    }

    #[test]
    fn counts_beyond_the_limits_are_refused_before_memory_is_taken() {
        let mut huge = Vec::new();
        put_varint(&mut huge, u64::MAX);
        assert!(Branch::decode(&huge).is_err());
        assert!(PackTable::decode(&huge).is_err());
        assert!(decode_live(&huge).is_err());
    }
}
