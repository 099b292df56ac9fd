// SPDX-License-Identifier: GPL-2.0-or-later
//! Objects of the index: records one after the other, each compressed and encrypted by itself.

use crate::codec::{Codec, Compression, compress, decompress};
use crate::crypto::{Crypto, ObjectKey, SALT_BYTES, TAG_BYTES};
use crate::encoding::{Cursor, Malformed};
use crate::envelope::{VERSION, check_version};
use crate::error::Error;
use crate::names::{self, WriterId};
use crate::random::random;
use crate::tree::RecordRef;

const MAGIC: [u8; 8] = *b"VMEMINDX";
/// Bytes before the first record.
pub(crate) const HEADER_BYTES: usize = 48;
const RECORD_HEADER_BYTES: usize = 16;
/// Most bytes of a record, with its header.
pub(crate) const MAX_RECORD: u32 = 8 << 20;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Leaf = 1,
    Branch = 2,
    PackTable = 3,
    Live = 4,
}

/// An object of the index that is being written.
pub(crate) struct IndexWriter {
    bytes: Vec<u8>,
    key: Option<ObjectKey>,
}

impl IndexWriter {
    pub(crate) fn new(writer: WriterId, crypto: &Crypto) -> Result<Self, Error> {
        let name = names::index(writer);
        let salt = random()?;
        let generation = crypto.generation();
        let key = crypto
            .object_key(generation, &name, &salt)
            .map_err(|what| Error::damaged(&name, what))?;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&writer.0);
        bytes.extend_from_slice(&salt);
        Ok(Self { bytes, key })
    }

    /// Appends a record. `index` is the ordinal of this object in the manifest.
    pub(crate) fn append(&mut self, kind: RecordKind, index: u32, plain: Vec<u8>, crypto: &Crypto) -> Result<RecordRef, Error> {
        let hash = crypto.hash16(&plain);
        let length = plain.len() as u32;
        if plain.len() > MAX_RECORD as usize / 2 {
            return Err(Error::TooLarge(format!(
                "a record of the index would have {} bytes",
                plain.len()
            )));
        }
        let offset = self.bytes.len() as u64;
        let (codec, mut stored) = compress(Compression::Zstd(3), plain);
        if let Some(key) = &self.key {
            key.seal(offset, &mut stored);
        }
        self.bytes.extend_from_slice(&[kind as u8, codec as u8, 0, 0]);
        self.bytes.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&crc32c::crc32c(&stored).to_le_bytes());
        self.bytes.extend_from_slice(&stored);
        Ok(RecordRef {
            index,
            offset,
            length: (RECORD_HEADER_BYTES + stored.len()) as u32,
            hash,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The key of an object of the index, from its header.
pub(crate) fn open_header(name: &str, writer: WriterId, header: &[u8], crypto: &Crypto) -> Result<Option<ObjectKey>, Error> {
    let malformed = |Malformed(what)| Error::damaged(name, what);
    let mut cursor = Cursor::new(header);
    if cursor.array().map_err(malformed)? != MAGIC {
        return Err(Error::damaged(name, "it is no object of an index"));
    }
    let version = cursor.u16().map_err(malformed)?;
    check_version(name, version)?;
    let reserved = cursor.u16().map_err(malformed)?;
    let generation = cursor.u32().map_err(malformed)?;
    let found = WriterId(cursor.array().map_err(malformed)?);
    let salt = cursor.array::<SALT_BYTES>().map_err(malformed)?;
    if reserved != 0 || found != writer {
        return Err(Error::damaged(name, "its header is that of another object"));
    }
    crypto
        .object_key(generation, name, &salt)
        .map_err(|what| Error::damaged(name, what))
}

/// The contents of a record, from its stored bytes.
pub(crate) fn open_record(
    name: &str,
    kind: RecordKind,
    reference: &RecordRef,
    bytes: &[u8],
    key: Option<&ObjectKey>,
    crypto: &Crypto,
) -> Result<Vec<u8>, Error> {
    let damaged = |what: &str| Error::damaged(name, format!("the record at {}: {what}", reference.offset));
    let malformed = |Malformed(what)| damaged(what);
    let mut cursor = Cursor::new(bytes);
    let [found, codec, 0, 0] = cursor.array().map_err(malformed)? else {
        return Err(damaged("reserved bytes are not zero"));
    };
    let stored = cursor.u32().map_err(malformed)?;
    let length = cursor.u32().map_err(malformed)?;
    let crc = cursor.u32().map_err(malformed)?;
    if found != kind as u8 {
        return Err(damaged("it is of another kind"));
    }
    if stored > MAX_RECORD || length > MAX_RECORD / 2 {
        return Err(damaged("it is too long"));
    }
    let mut body = cursor.bytes(stored as usize).map_err(malformed)?.to_vec();
    cursor.end().map_err(malformed)?;
    if crc32c::crc32c(&body) != crc {
        return Err(damaged("its checksum is wrong"));
    }
    if let Some(key) = key {
        if body.len() < TAG_BYTES {
            return Err(damaged("it ends too early"));
        }
        key.open(reference.offset, &mut body)
            .map_err(|error| damaged(&error.to_string()))?;
    }
    let plain = decompress(Codec::from_byte(codec).map_err(malformed)?, body, length as usize).map_err(malformed)?;
    if crypto.hash16(&plain) != reference.hash {
        return Err(damaged("its hash is not that of its contents"));
    }
    Ok(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::KeyRing;

    fn open(bytes: &[u8], reference: &RecordRef, crypto: &Crypto) -> Result<Vec<u8>, Error> {
        let writer = WriterId([4; 16]);
        let key = open_header(&names::index(writer), writer, &bytes[..HEADER_BYTES], crypto)?;
        let record = &bytes[reference.offset as usize..][..reference.length as usize];
        open_record("x", RecordKind::Leaf, reference, record, key.as_ref(), crypto)
    }

    proptest! {
        #[test]
        fn record_comes_back_and_a_changed_one_is_refused(
            body in proptest::collection::vec(any::<u8>(), 0..500), at: prop::sample::Index, bit in 0..8_u8, sealed: bool,
        ) {
            let keys = sealed.then(|| KeyRing { hash: [1; 32], masters: vec![[2; 32]] });
            let crypto = Crypto::new(keys);
            let mut writer = IndexWriter::new(WriterId([4; 16]), &crypto).unwrap();
            writer.append(RecordKind::Branch, 0, b"before".to_vec(), &crypto).unwrap();
            let reference = writer.append(RecordKind::Leaf, 0, body.clone(), &crypto).unwrap();
            let bytes = writer.bytes().to_vec();
            prop_assert_eq!(open(&bytes, &reference, &crypto).unwrap(), body);
            let mut changed = bytes.clone();
            let at = reference.offset as usize + at.index(reference.length as usize);
            changed[at] ^= 1 << bit;
            prop_assert!(open(&changed, &reference, &crypto).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let reference = RecordRef { index: 0, offset: 48, length: bytes.len() as u32, hash: [0; 16] };
            let crypto = Crypto::new(None);
            prop_assert!(open_record("x", RecordKind::Leaf, &reference, &bytes, None, &crypto).is_err());
            prop_assert!(open_header("x", WriterId([0; 16]), &bytes, &crypto).is_err());
        }
    }
}
