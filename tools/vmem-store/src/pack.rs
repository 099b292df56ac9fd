// SPDX-License-Identifier: GPL-2.0-or-later
//! Packs: objects that hold pages, in frames, with a table of both at the end.

mod builder;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use crate::codec::{Codec, decompress};
use crate::crypto::{Crypto, Hash16, ObjectKey, SALT_BYTES};
use crate::encoding::{Cursor, Malformed, put_varint, put_zigzag};
use crate::envelope::{VERSION, check_version};
use crate::error::Error;
use crate::names::{PackId, WriterId};
use crate::tree::{MAX_PACK_PAGES, PackInfo};
use vmem_pages::PAGE_SIZE;

pub(crate) use builder::PackBuilder;

const MAGIC: [u8; 8] = *b"VMEMPACK";
const END_MAGIC: [u8; 8] = *b"VMEMPEND";
/// Bytes before the first frame.
const HEADER_BYTES: usize = 16;
/// Bytes of the last part, which says where the others are.
pub(crate) const TRAILER_BYTES: usize = 96;
/// Most pages of a frame.
pub(crate) const MAX_FRAME_PAGES: u32 = 64;
/// Most bytes of a frame as it is stored: pages that do not compress, and what encryption adds.
const MAX_FRAME_BYTES: u32 = MAX_FRAME_PAGES * PAGE_SIZE as u32 + 64;
/// Most bytes of each of the two tables.
const MAX_TABLE_BYTES: u32 = MAX_PACK_PAGES * 40;
/// The number of the table of pages as an encrypted part; frames have their own numbers.
const PAGES_PART: u64 = u64::MAX;

/// Where a page of a pack came from: the backend, by its number in the checkpoint that wrote it, and its offset in pages. A hint: which pages
/// of a frame belong together. What a page is, only the index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) backend: u32,
    pub(crate) pgoff: u64,
}

/// Pages that came from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OriginRun {
    /// The number of the first page.
    first: u32,
    origin: Origin,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) codec: Codec,
    /// Pages that are there of the pack before this frame.
    pub(crate) first: u32,
    pub(crate) pages: u32,
    pub(crate) crc: u32,
}

/// The table of pages: their hashes and origins. The same in all generations of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pages {
    pub(crate) hashes: Vec<Hash16>,
    origins: Vec<OriginRun>,
}

impl Pages {
    fn push(&mut self, origin: Origin, hash: Hash16) {
        let first = self.hashes.len() as u32;
        self.hashes.push(hash);
        if let Some(last) = self.origins.last_mut() {
            let follows = last.origin.backend == origin.backend
                && last.origin.pgoff.checked_add(u64::from(last.count)) == Some(origin.pgoff);
            if follows {
                last.count += 1;
                return;
            }
        }
        self.origins.push(OriginRun { first, origin, count: 1 });
    }

    pub(crate) fn origin(&self, number: u32) -> Option<Origin> {
        let at = self.origins.partition_point(|run| run.first <= number).checked_sub(1)?;
        let run = self.origins.get(at)?;
        let within = number - run.first;
        (within < run.count).then_some(Origin {
            backend: run.origin.backend,
            pgoff: run.origin.pgoff.wrapping_add(u64::from(within)),
        })
    }

    /// The number of pages (4 bytes), their hashes, and the runs of origins: pages, backend, and the first page's offset less that after
    /// the run before.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 17 * self.hashes.len());
        out.extend_from_slice(&(self.hashes.len() as u32).to_le_bytes());
        self.hashes.iter().for_each(|hash| out.extend_from_slice(hash));
        let mut expected = 0_u64;
        for run in &self.origins {
            put_varint(&mut out, u64::from(run.count));
            put_varint(&mut out, u64::from(run.origin.backend));
            put_zigzag(&mut out, run.origin.pgoff.wrapping_sub(expected) as i64);
            expected = run.origin.pgoff.wrapping_add(u64::from(run.count));
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let pages = cursor.u32()?;
        if pages > MAX_PACK_PAGES {
            return Err(Malformed("it has too many pages"));
        }
        let hashes = cursor.bytes(pages as usize * size_of::<Hash16>())?;
        let (hashes, []) = hashes.as_chunks_16() else {
            return Err(Malformed("it ends too early"));
        };
        let mut origins = Vec::new();
        let (mut first, mut expected) = (0_u32, 0_u64);
        while first < pages {
            let count = cursor.varint32()?;
            if count == 0 || count > pages - first {
                return Err(Malformed("its origins are not those of its pages"));
            }
            let backend = cursor.varint32()?;
            let pgoff = expected.wrapping_add(cursor.zigzag()? as u64);
            origins.push(OriginRun {
                first,
                origin: Origin { backend, pgoff },
                count,
            });
            first += count;
            expected = pgoff.wrapping_add(u64::from(count));
        }
        cursor.end()?;
        Ok(Self { hashes, origins })
    }
}

/// `slice::as_chunks` is newer than Rust 1.85.
trait AsChunks {
    fn as_chunks_16(&self) -> (Vec<[u8; 16]>, &[u8]);
}

impl AsChunks for [u8] {
    fn as_chunks_16(&self) -> (Vec<[u8; 16]>, &[u8]) {
        let chunks = self.chunks_exact(16);
        let rest = chunks.remainder();
        let whole = chunks.filter_map(|chunk| chunk.try_into().ok()).collect();
        (whole, rest)
    }
}

/// Which pages of a pack are still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    words: Vec<u64>,
    /// Pages before each word.
    ranks: Vec<u32>,
}

impl Live {
    fn new(words: Vec<u64>) -> Self {
        let mut before = 0;
        let ranks = words
            .iter()
            .map(|word| {
                let rank = before;
                before += word.count_ones();
                rank
            })
            .collect();
        Self { words, ranks }
    }

    pub(crate) fn of(pages: u32, is_live: impl Fn(u32) -> bool) -> Self {
        let mut words = vec![0_u64; pages.div_ceil(64) as usize];
        for page in (0..pages).filter(|page| is_live(*page)) {
            words[page as usize / 64] |= 1 << (page % 64);
        }
        Self::new(words)
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.words
            .get(number as usize / 64)
            .is_some_and(|word| (word >> (number % 64)) & 1 == 1)
    }

    /// The page's place among those that are there.
    fn rank(&self, number: u32) -> Option<u32> {
        let word = self.words.get(number as usize / 64)?;
        let bit = 1_u64 << (number % 64);
        (word & bit != 0).then(|| self.ranks[number as usize / 64] + (word & (bit - 1)).count_ones())
    }

    pub(crate) fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

/// What is at the end of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) pages: Pages,
    pub(crate) live: Live,
    pub(crate) frames: Vec<Frame>,
}

impl Footer {
    /// The frame with this page, and the page's place in it. `None` if the page was given back, or never was there.
    pub(crate) fn locate(&self, number: u32) -> Option<(usize, u32)> {
        let rank = self.live.rank(number)?;
        let at = self.frames.partition_point(|frame| frame.first <= rank).checked_sub(1)?;
        let frame = self.frames.get(at)?;
        (rank - frame.first < frame.pages).then_some((at, rank - frame.first))
    }

    /// The numbers of the pages in each frame.
    pub(crate) fn numbers(&self, frame: &Frame) -> Vec<u32> {
        // Few frames are asked for; a scan of a megapage's bits takes microseconds.
        let from = self.live.ranks.partition_point(|rank| *rank <= frame.first).saturating_sub(1) as u32 * 64;
        let numbers = (from..self.pages.hashes.len() as u32)
            .filter(|number| self.live.rank(*number).is_some_and(|rank| rank >= frame.first));
        numbers.take(frame.pages as usize).collect()
    }
}

fn encode_frames(live: &Live, pages: u32, frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    let is_whole = live.count() == pages;
    out.push(u8::from(!is_whole));
    if !is_whole {
        live.words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }
    for frame in frames {
        put_varint(&mut out, u64::from(frame.pages));
        put_varint(&mut out, u64::from(frame.length));
        out.push(frame.codec as u8);
        out.extend_from_slice(&frame.crc.to_le_bytes());
    }
    out
}

/// The pages that are there and the frames; `end` is where the frames have to end.
fn decode_frames(bytes: &[u8], pages: u32, frames: u32, end: u64) -> Result<(Live, Vec<Frame>), Malformed> {
    let mut cursor = Cursor::new(bytes);
    let live = match cursor.u8()? {
        0 => Live::of(pages, |_| true),
        1 => {
            let words = (0..pages.div_ceil(64)).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
            let after = pages % 64;
            if after > 0 && words.last().is_some_and(|last| last >> after != 0) {
                return Err(Malformed("pages beyond its last are there"));
            }
            Live::new(words)
        }
        _ => return Err(Malformed("its table of frames has an unknown form")),
    };
    // Each frame takes at least seven bytes of the table.
    if u64::from(frames) * 7 > bytes.len() as u64 {
        return Err(Malformed("it has too many frames"));
    }
    let mut table = Vec::with_capacity(frames as usize);
    let (mut offset, mut first) = (HEADER_BYTES as u64, 0_u32);
    for _ in 0..frames {
        let pages = cursor.varint32()?;
        let length = cursor.varint32()?;
        let codec = Codec::from_byte(cursor.u8()?)?;
        let crc = cursor.u32()?;
        if pages == 0 || pages > MAX_FRAME_PAGES || length > MAX_FRAME_BYTES {
            return Err(Malformed("a frame is too large"));
        }
        table.push(Frame {
            offset,
            length,
            codec,
            first,
            pages,
            crc,
        });
        offset += u64::from(length);
        first += pages;
    }
    cursor.end()?;
    if offset != end || first != live.count() {
        return Err(Malformed(
            "its frames are not as long as they should be, or do not have its pages",
        ));
    }
    Ok((live, table))
}

/// The last bytes of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trailer {
    key_generation: u32,
    id: PackId,
    generation: u32,
    salt: [u8; SALT_BYTES],
    frames_offset: u64,
    frames_length: u32,
    frames_crc: u32,
    pages_length: u32,
    pages_crc: u32,
    pages: u32,
    frames: u32,
}

impl Trailer {
    fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.extend_from_slice(&END_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.key_generation.to_le_bytes());
        out.extend_from_slice(&self.id.writer.0);
        out.extend_from_slice(&self.id.number.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.frames_offset.to_le_bytes());
        for number in [
            self.frames_length,
            self.frames_crc,
            self.pages_length,
            self.pages_crc,
            self.pages,
            self.frames,
            0,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut trailer = [0; TRAILER_BYTES];
        trailer.copy_from_slice(&out);
        trailer
    }

    /// The trailer of the object `name`, which has `size` bytes.
    fn decode(name: &str, bytes: &[u8; TRAILER_BYTES], size: u64) -> Result<Self, Error> {
        let malformed = |Malformed(what)| Error::damaged(name, what);
        let mut cursor = Cursor::new(bytes);
        if cursor.array().map_err(malformed)? != END_MAGIC {
            return Err(Error::damaged(name, "its end is not that of a pack"));
        }
        let version = cursor.u16().map_err(malformed)?;
        let (covered, crc) = bytes.split_at(TRAILER_BYTES - 4);
        if crc32c::crc32c(covered).to_le_bytes() != crc {
            return Err(Error::damaged(name, "the checksum of its trailer is wrong"));
        }
        check_version(name, version)?;
        let mut numbers = || -> Result<(u16, Self, u32), Malformed> {
            let flags = cursor.u16()?;
            let trailer = Self {
                key_generation: cursor.u32()?,
                id: PackId {
                    writer: WriterId(cursor.array()?),
                    number: cursor.u32()?,
                },
                generation: cursor.u32()?,
                salt: cursor.array()?,
                frames_offset: cursor.u64()?,
                frames_length: cursor.u32()?,
                frames_crc: cursor.u32()?,
                pages_length: cursor.u32()?,
                pages_crc: cursor.u32()?,
                pages: cursor.u32()?,
                frames: cursor.u32()?,
            };
            Ok((flags, trailer, cursor.u32()?))
        };
        let (flags, trailer, reserved) = numbers().map_err(malformed)?;
        let tables = u64::from(trailer.frames_length) + u64::from(trailer.pages_length) + TRAILER_BYTES as u64;
        let is_sane = flags == 0
            && reserved == 0
            && trailer.pages <= MAX_PACK_PAGES
            && trailer.frames_length <= MAX_TABLE_BYTES
            && trailer.pages_length <= MAX_TABLE_BYTES
            && trailer.frames_offset.checked_add(tables) == Some(size);
        if !is_sane {
            return Err(Error::damaged(name, "its trailer does not fit it"));
        }
        Ok(trailer)
    }

    /// Bytes of the tables and the trailer.
    pub(crate) fn tail(&self) -> u64 {
        u64::from(self.frames_length) + u64::from(self.pages_length) + TRAILER_BYTES as u64
    }
}

/// A pack that can be read.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) name: String,
    pub(crate) id: PackId,
    pub(crate) generation: u32,
    /// Bytes of the object.
    pub(crate) size: u64,
    pub(crate) footer: Footer,
    key: Option<ObjectKey>,
}

/// How much more of a pack's end is needed.
pub(crate) enum Opened {
    Pack(Box<Pack>),
    /// So many of its last bytes.
    Needs(u64),
}

impl Pack {
    /// The pack, from its last bytes. `size` is that of the object.
    pub(crate) fn open(id: PackId, generation: u32, tail: &[u8], size: u64, crypto: &Crypto) -> Result<Opened, Error> {
        let name = id.object(generation);
        let (rest, trailer) = tail
            .split_last_chunk::<TRAILER_BYTES>()
            .ok_or_else(|| Error::damaged(&name, "it is shorter than a pack can be"))?;
        let trailer = Trailer::decode(&name, trailer, size)?;
        if trailer.id != id || trailer.generation != generation {
            return Err(Error::damaged(&name, "it is another pack than its name says"));
        }
        let Some(start) = (tail.len() as u64).checked_sub(trailer.tail()) else {
            return Ok(Opened::Needs(trailer.tail()));
        };
        let (frames, pages) = rest[start as usize..].split_at(trailer.frames_length as usize);
        if crc32c::crc32c(frames) != trailer.frames_crc {
            return Err(Error::damaged(&name, "the checksum of its table of frames is wrong"));
        }
        if crc32c::crc32c(pages) != trailer.pages_crc {
            return Err(Error::damaged(&name, "the checksum of its table of pages is wrong"));
        }
        let malformed = |Malformed(what)| Error::damaged(&name, what);
        let key = crypto
            .object_key(trailer.key_generation, &name, &trailer.salt)
            .map_err(|what| Error::damaged(&name, what))?;
        let mut pages = pages.to_vec();
        if let Some(key) = &key {
            key.open(PAGES_PART, &mut pages)
                .map_err(|error| Error::damaged(&name, error.to_string()))?;
        }
        let pages = Pages::decode(&pages).map_err(malformed)?;
        if pages.hashes.len() != trailer.pages as usize {
            return Err(Error::damaged(&name, "its tables disagree about its pages"));
        }
        let (live, frames) = decode_frames(frames, trailer.pages, trailer.frames, trailer.frames_offset).map_err(malformed)?;
        Ok(Opened::Pack(Box::new(Self {
            name,
            id,
            generation,
            size,
            footer: Footer { pages, live, frames },
            key,
        })))
    }

    /// Whether this is what a checkpoint refers to: the hashes of all pages are those that they were.
    pub(crate) fn check(&self, info: &PackInfo, crypto: &Crypto) -> Result<(), Error> {
        let is_same =
            self.footer.pages.hashes.len() == info.pages as usize && crypto.hash16(&self.footer.pages.encode()) == info.hash;
        if is_same {
            Ok(())
        } else {
            Err(Error::damaged(
                &self.name,
                "its pages are not those that the checkpoint refers to",
            ))
        }
    }

    /// The pages of a frame, one after the other, from its stored bytes, whose checksum is checked. Does not look at the pages' hashes.
    pub(crate) fn open_frame(&self, frame: usize, stored: Vec<u8>) -> Result<Vec<u8>, Error> {
        let info = self.frame(frame)?;
        if crc32c::crc32c(&stored) != info.crc {
            return Err(self.damaged_frame(frame, "its checksum is wrong"));
        }
        self.decode_frame(frame, stored)
    }

    /// The same without the checksum, for a reader that checks the hash of each page that it uses.
    pub(crate) fn decode_frame(&self, frame: usize, mut stored: Vec<u8>) -> Result<Vec<u8>, Error> {
        let damaged = |what: &str| self.damaged_frame(frame, what);
        let info = self.frame(frame)?;
        if stored.len() != info.length as usize {
            return Err(damaged("it is not as long as it should be"));
        }
        if let Some(key) = &self.key {
            key.open(frame as u64, &mut stored)
                .map_err(|error| damaged(&error.to_string()))?;
        }
        decompress(info.codec, stored, info.pages as usize * PAGE_SIZE).map_err(|Malformed(what)| damaged(what))
    }

    fn frame(&self, frame: usize) -> Result<&Frame, Error> {
        let info = self.footer.frames.get(frame);
        info.ok_or_else(|| self.damaged_frame(frame, "there is no such frame"))
    }

    fn damaged_frame(&self, frame: usize, what: &str) -> Error {
        Error::damaged(&self.name, format!("frame {frame}: {what}"))
    }
}
