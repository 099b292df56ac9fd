// SPDX-License-Identifier: GPL-2.0-or-later
//! Packs that are being written.

use super::{Frame, HEADER_BYTES, Live, MAGIC, Origin, PAGES_PART, Pack, Pages, Trailer, encode_frames};
use crate::codec::Codec;
use crate::crypto::{Crypto, Hash16, ObjectKey, SALT_BYTES};
use crate::envelope::VERSION;
use crate::error::Error;
use crate::names::PackId;
use crate::random::random;
use crate::tree::PackInfo;

/// A pack that is being written.
pub(crate) struct PackBuilder {
    id: PackId,
    generation: u32,
    key_generation: u32,
    salt: [u8; SALT_BYTES],
    key: Option<ObjectKey>,
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    pages: Pages,
    /// Pages in frames: fewer than all if pages were given back.
    stored: u32,
}

impl PackBuilder {
    /// An empty pack.
    pub(crate) fn new(id: PackId, crypto: &Crypto) -> Result<Self, Error> {
        Self::with(id, 0, Pages::default(), crypto)
    }

    /// A later generation of a pack, for fewer of its pages.
    pub(crate) fn trimmed(pack: &Pack, generation: u32, crypto: &Crypto) -> Result<Self, Error> {
        Self::with(pack.id, generation, pack.footer.pages.clone(), crypto)
    }

    fn with(id: PackId, generation: u32, pages: Pages, crypto: &Crypto) -> Result<Self, Error> {
        let salt = random()?;
        let name = id.object(generation);
        let key_generation = crypto.generation();
        let key = crypto
            .object_key(key_generation, &name, &salt)
            .map_err(|what| Error::damaged(&name, what))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        Ok(Self {
            id,
            generation,
            key_generation,
            salt,
            key,
            bytes,
            frames: Vec::new(),
            pages,
            stored: 0,
        })
    }

    pub(crate) fn name(&self) -> String {
        self.id.object(self.generation)
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Pages so far.
    pub(crate) fn pages(&self) -> u32 {
        self.pages.hashes.len() as u32
    }

    /// Appends new pages as a frame, and gives the number of the first of them.
    pub(crate) fn append(&mut self, codec: Codec, stored: Vec<u8>, pages: &[(Origin, Hash16)]) -> u32 {
        let first = self.pages();
        pages.iter().for_each(|(origin, hash)| self.pages.push(*origin, *hash));
        self.append_frame(codec, stored, pages.len() as u32);
        first
    }

    /// Appends a frame of pages that are in the table already.
    pub(crate) fn append_frame(&mut self, codec: Codec, mut stored: Vec<u8>, pages: u32) {
        if let Some(key) = &self.key {
            key.seal(self.frames.len() as u64, &mut stored);
        }
        self.frames.push(Frame {
            offset: self.bytes.len() as u64,
            length: stored.len() as u32,
            codec,
            first: self.stored,
            pages,
            crc: crc32c::crc32c(&stored),
        });
        self.stored += pages;
        self.bytes.extend_from_slice(&stored);
    }

    /// The whole object, and what a checkpoint refers to. `live` says which pages are in frames; all of them, if it is not given.
    pub(crate) fn finish(self, live: Option<Live>, crypto: &Crypto) -> (Vec<u8>, PackInfo) {
        let Self { id, mut bytes, .. } = self;
        let pages = self.pages.hashes.len() as u32;
        let mut table = self.pages.encode();
        let info = PackInfo {
            id,
            pages,
            hash: crypto.hash16(&table),
        };
        let live = live.unwrap_or_else(|| Live::of(pages, |_| true));
        debug_assert_eq!(live.count(), self.stored, "all live pages are in frames");
        let frames = encode_frames(&live, pages, &self.frames);
        if let Some(key) = &self.key {
            key.seal(PAGES_PART, &mut table);
        }
        let trailer = Trailer {
            key_generation: self.key_generation,
            id,
            generation: self.generation,
            salt: self.salt,
            frames_offset: bytes.len() as u64,
            frames_length: frames.len() as u32,
            frames_crc: crc32c::crc32c(&frames),
            pages_length: table.len() as u32,
            pages_crc: crc32c::crc32c(&table),
            pages,
            frames: self.frames.len() as u32,
        };
        bytes.extend_from_slice(&frames);
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(&trailer.encode());
        (bytes, info)
    }
}
