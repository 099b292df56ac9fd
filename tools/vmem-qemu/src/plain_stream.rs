// SPDX-License-Identifier: GPL-2.0-or-later
//! Makes one plain migration stream, with the memory in it, of a device state that was saved without the memory.
//!
//! QEMU saves the device state with the capability `x-ignore-shared`: the stream lists the blocks of memory, and has no page of those in shared
//! files. A QEMU that loads it needs the same capability, and the memory in files. What [`PlainStream`] makes of it needs neither.
//!
//! The format is that of QEMU's `migration/savevm.c` and `migration/ram.c`. All numbers are big endian:
//!
//! - A header of 8 bytes. The configuration (7): the machine's name with its length (4 bytes), and subsections (5).
//! - Commands (8), if the migration has a return path: what they ask for needs one, so those are left out.
//! - Sections: begin (1), part (2), end (3) or all at once (4). A section begins with its number and, in 1 and 4, its name, instance and
//!   version. A footer (0x7e) repeats the number.
//! - Section `ram` begins with the sizes of the blocks, and ends each time with a mark. Its parts have pages.

use std::borrow::Cow;
use std::io::{self, Write};

const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
const CONFIGURATION: u8 = 7;
const SUBSECTION: u8 = 5;
const COMMAND: u8 = 8;
const SECTION_START: u8 = 1;
const SECTION_PART: u8 = 2;
const SECTION_END: u8 = 3;
const SECTION_FULL: u8 = 4;
const END_OF_STREAM: u8 = 0;
const DESCRIPTION: u8 = 6;

/// A description of the devices, which readers expect and do not need.
const NO_DESCRIPTION: &[u8] = br#"{"page_size":4096,"devices":[]}"#;
const FOOTER: u8 = 0x7e;

/// Commands of a migration with a return path: to open it, and to answer over it.
const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;

/// The flags of section `ram`, in the lower bits of an offset.
const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const END: u64 = 0x10;
const CONTINUE: u64 = 0x20;

/// The version of section `ram`.
const RAM_VERSION: u32 = 4;

/// Bytes of a page of the guest.
const PAGE_BYTES: u64 = 4096;

const IGNORE_SHARED: &[u8] = b"x-ignore-shared";

/// Most blocks of memory that are accepted.
const MAX_BLOCKS: usize = 4096;

/// A device state of which no plain stream can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the device state cannot be made a plain stream: at byte {at}, {what}")]
pub struct StreamError {
    /// Where, in bytes.
    at: usize,
    what: String,
}

/// A block of the guest's memory, as QEMU names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// `ram`, or `/objects/ram` in older machines, for the memory backend `ram`.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A stream without the capability `x-ignore-shared`, in three parts: what comes before the pages, the pages, and what follows.
#[derive(Debug)]
pub struct PlainStream<'a> {
    head: Vec<u8>,
    blocks: Vec<Block>,
    section: u32,
    has_footers: bool,
    rest: Cow<'a, [u8]>,
}

impl<'a> PlainStream<'a> {
    /// Takes a device state apart.
    ///
    /// # Errors
    ///
    /// It has a form that is not known. It is not loaded: QEMU says whether the devices suit.
    pub fn of(state: &'a [u8]) -> Result<Self, StreamError> {
        let mut from = Cursor { bytes: state, at: 0 };
        let mut head = MAGIC.to_vec();
        from.expect(MAGIC, "it does not begin as a stream of version 3")?;
        if from.peek() == Some(CONFIGURATION) {
            configuration(&mut from, &mut head)?;
        }
        while from.peek() == Some(COMMAND) {
            let begin = from.at;
            from.take(1)?;
            let command = from.u16()?;
            let length = from.u16()?;
            from.take(length.into())?;
            if command != OPEN_RETURN_PATH && command != PING {
                head.extend_from_slice(from.since(begin));
            }
        }
        let begin = from.at;
        if from.take(1)? != [SECTION_START] {
            return Err(from.error("there is no beginning of a section"));
        }
        let section = from.u32()?;
        let name = from.short_text()?;
        let (instance, version) = (from.u32()?, from.u32()?);
        if (name, instance, version) != (b"ram", 0, RAM_VERSION) {
            return Err(from.error(&format!(
                "section {:?} of version {version} is where \"ram\" of version {RAM_VERSION} should be",
                String::from_utf8_lossy(name)
            )));
        }
        head.extend_from_slice(from.since(begin));
        let blocks = blocks(&mut from, &mut head)?;
        let has_footers = from.peek() == Some(FOOTER);
        if has_footers {
            let begin = from.at;
            from.take(1)?;
            if from.u32()? != section {
                return Err(from.error("the footer is of another section"));
            }
            head.extend_from_slice(from.since(begin));
        }
        Ok(Self {
            head,
            blocks,
            section,
            has_footers,
            rest: Cow::Borrowed(state.get(from.at..).unwrap_or_default()),
        })
    }

    /// A stream that begins as `state` does, with its capabilities, and that has other pages and devices: those that QEMU has saved without a
    /// migration ([`DeviceSave`](crate::DeviceSave)).
    ///
    /// # Errors
    ///
    /// One of the two has a form that is not known.
    pub fn with_devices(state: &'a [u8], devices: &[u8]) -> Result<Self, StreamError> {
        let stream = Self::of(state)?;
        let head = state.get(..state.len() - stream.rest.len()).unwrap_or_default();
        let at = head.len();
        if !matches!(stream.rest.first(), Some(&(SECTION_PART | SECTION_END))) {
            let what = "more than the memory is saved while the guest runs".to_owned();
            return Err(StreamError { at, what });
        }
        let mut from = Cursor { bytes: devices, at: 0 };
        from.expect(MAGIC, "the devices do not begin as a stream of version 3")?;
        if from.peek() != Some(SECTION_FULL) || devices.last() != Some(&END_OF_STREAM) {
            return Err(from.error("the devices do not begin with a section, or have no end"));
        }
        let section = stream.section.to_be_bytes();
        let mut rest = vec![SECTION_END];
        rest.extend_from_slice(&section);
        rest.extend_from_slice(&END.to_be_bytes());
        if stream.has_footers {
            rest.push(FOOTER);
            rest.extend_from_slice(&section);
        }
        rest.extend_from_slice(devices.get(MAGIC.len()..).unwrap_or_default());
        rest.push(DESCRIPTION);
        rest.extend_from_slice(&(NO_DESCRIPTION.len() as u32).to_be_bytes());
        rest.extend_from_slice(NO_DESCRIPTION);
        Ok(Self {
            head: head.to_vec(),
            rest: Cow::Owned(rest),
            ..stream
        })
    }

    /// The blocks of the guest's memory. Those that are not in shared files have their pages in the device state already.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The block of a memory backend, by the backend's id.
    #[must_use]
    pub fn block_of(&self, backend: &str) -> Option<(usize, &Block)> {
        let find = |name: &str| self.blocks.iter().enumerate().find(|(_, block)| block.name == name);
        find(backend).or_else(|| find(&format!("/objects/{backend}")))
    }

    /// Begins to write the stream. Pages follow, each once, and then [`Pages::finish`].
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write_to<W: Write>(&self, mut to: W) -> io::Result<Pages<'_, W>> {
        to.write_all(&self.head)?;
        to.write_all(&[SECTION_PART])?;
        to.write_all(&self.section.to_be_bytes())?;
        Ok(Pages {
            stream: self,
            to,
            current: None,
        })
    }
}

/// Writes the pages of a plain stream.
#[derive(Debug)]
pub struct Pages<'a, W> {
    stream: &'a PlainStream<'a>,
    to: W,
    /// The block of the page before.
    current: Option<usize>,
}

impl<W: Write> Pages<'_, W> {
    /// Writes a page: of a block by its number, at an offset in bytes.
    ///
    /// # Errors
    ///
    /// Those of the writer; [`io::ErrorKind::InvalidInput`] if the block does not have the page.
    pub fn page(&mut self, block: usize, offset: u64, contents: &[u8; PAGE_BYTES as usize]) -> io::Result<()> {
        self.begin(block, offset, PAGE)?;
        self.to.write_all(contents)
    }

    /// Writes that a page is zero: the QEMU that loads the stream may have something there, a ROM for example.
    ///
    /// # Errors
    ///
    /// As [`page`](Self::page).
    pub fn zero(&mut self, block: usize, offset: u64) -> io::Result<()> {
        self.begin(block, offset, ZERO)?;
        self.to.write_all(&[0])
    }

    fn begin(&mut self, block: usize, offset: u64, kind: u64) -> io::Result<()> {
        let known = self.stream.blocks.get(block);
        let known = known.filter(|known| offset % PAGE_BYTES == 0 && offset < known.bytes);
        let Block { name, .. } = known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such page"))?;
        if self.current == Some(block) {
            return self.to.write_all(&(offset | kind | CONTINUE).to_be_bytes());
        }
        self.current = Some(block);
        self.to.write_all(&(offset | kind).to_be_bytes())?;
        // The names were read with a length of one byte.
        self.to.write_all(&[name.len() as u8])?;
        self.to.write_all(name.as_bytes())
    }

    /// Writes what follows the pages, and returns the writer.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&END.to_be_bytes())?;
        if self.stream.has_footers {
            self.to.write_all(&[FOOTER])?;
            self.to.write_all(&self.stream.section.to_be_bytes())?;
        }
        self.to.write_all(&self.stream.rest)?;
        Ok(self.to)
    }
}

/// Copies the configuration without the capability that the plain stream does not need.
fn configuration(from: &mut Cursor<'_>, head: &mut Vec<u8>) -> Result<(), StreamError> {
    let begin = from.at;
    from.take(1)?;
    let length = from.u32()?;
    from.take(length as usize)?;
    head.extend_from_slice(from.since(begin));
    while from.peek() == Some(SUBSECTION) {
        let begin = from.at;
        from.take(1)?;
        let name = from.short_text()?;
        from.u32()?;
        let after_version = from.at;
        match name {
            b"configuration/capabilities" => {
                let count = from.u32()?;
                let mut kept = Vec::new();
                for _ in 0..count {
                    let begin = from.at;
                    if from.short_text()? != IGNORE_SHARED {
                        kept.push(from.since(begin));
                    }
                }
                if !kept.is_empty() {
                    head.extend_from_slice(&from.bytes[begin..after_version]);
                    head.extend_from_slice(&(kept.len() as u32).to_be_bytes());
                    kept.into_iter().for_each(|one| head.extend_from_slice(one));
                }
                continue;
            }
            b"configuration/target-page-bits" => {
                if 1_u64.checked_shl(from.u32()?) != Some(PAGE_BYTES) {
                    return Err(from.error("the guest's pages have another size than 4096 bytes"));
                }
            }
            b"configuration/uuid" => {
                from.take(16)?;
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(from.error(&format!("the configuration has {other:?}, which is not known")));
            }
        }
        head.extend_from_slice(from.since(begin));
    }
    Ok(())
}

/// Copies the list of blocks without the addresses that `x-ignore-shared` has added, up to the mark at its end.
fn blocks(from: &mut Cursor<'_>, head: &mut Vec<u8>) -> Result<Vec<Block>, StreamError> {
    let sizes = from.u64()?;
    if sizes % PAGE_BYTES != MEM_SIZE {
        return Err(from.error("the list of the memory's blocks is not where it should be"));
    }
    head.extend_from_slice(&sizes.to_be_bytes());
    let mut rest = sizes - MEM_SIZE;
    let mut blocks = Vec::new();
    while rest > 0 {
        let begin = from.at;
        let name = String::from_utf8(from.short_text()?.to_vec()).map_err(|_| from.error("a block's name is no text"))?;
        let bytes = from.u64()?;
        head.extend_from_slice(from.since(begin));
        rest = rest
            .checked_sub(bytes)
            .filter(|_| bytes > 0 && blocks.len() < MAX_BLOCKS)
            .ok_or_else(|| {
                from.error("the sizes of the blocks are not those of all memory: was the capability postcopy-ram on?")
            })?;
        blocks.push(Block { name, bytes });
        // The address in the guest, which a reader checks.
        from.u64()?;
    }
    if from.u64()? != END {
        return Err(from.error("something follows the list of the memory's blocks"));
    }
    head.extend_from_slice(&END.to_be_bytes());
    Ok(blocks)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn error(&self, what: &str) -> StreamError {
        StreamError {
            at: self.at,
            what: what.to_owned(),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// What was taken since it was there.
    fn since(&self, begin: usize) -> &'a [u8] {
        self.bytes.get(begin..self.at).unwrap_or_default()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], StreamError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.error("the state ends early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn expect(&mut self, wanted: &[u8], what: &str) -> Result<(), StreamError> {
        match self.take(wanted.len()) {
            Ok(found) if found == wanted => Ok(()),
            _ => Err(self.error(what)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, StreamError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, StreamError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, StreamError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Text with a length of one byte.
    fn short_text(&mut self) -> Result<&'a [u8], StreamError> {
        let [length] = self.array()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::BEGIN;

    /// The plain stream of the recorded one, with these pages.
    fn rewritten(state: &[u8]) -> Vec<u8> {
        let plain = PlainStream::of(state).expect("a known form");
        let (ram, block) = plain.block_of("ram").expect("the backend");
        assert_eq!(block.bytes, 32 << 20);
        let mut pages = plain.write_to(Vec::new()).expect("memory");
        pages.zero(ram, 0).expect("memory");
        pages.page(ram, 0x3000, &[7; 4096]).expect("memory");
        pages.page(ram + 1, 0, &[8; 4096]).expect("memory");
        pages.page(ram, 32 << 20, &[7; 4096]).expect_err("after the end");
        pages.page(ram, 5, &[7; 4096]).expect_err("no page");
        pages.finish().expect("memory")
    }

    #[test]
    fn recorded_stream_becomes_plain_and_has_the_pages() {
        let state = [BEGIN, b"rest"].concat();
        let stream = rewritten(&state);
        let has = |bytes: &[u8]| stream.windows(bytes.len()).any(|window| window == bytes);
        assert!(!has(IGNORE_SHARED) && !has(b"configuration/capabilities"));
        assert!(
            has(b"\x0epc-i440fx-10.0\x01\0\0\0\x01\x03ram"),
            "the section follows the machine at once"
        );
        // The block is followed by the next one, without an address.
        assert!(has(b"\x03ram\0\0\0\0\x02\0\0\0\x150000:00:02.0/vga.vram"));
        let pages = [
            &b"\0\0\0\0\0\0\0\x10~\0\0\0\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x30\x28"[..],
            &[7; 4096],
            b"\0\0\0\0\0\0\0\x08\x150000:00:02.0/vga.vram",
            &[8; 4096],
            b"\0\0\0\0\0\0\0\x10~\0\0\0\x01rest",
        ]
        .concat();
        assert!(stream.ends_with(&pages), "{stream:02x?}");
    }

    #[test]
    fn what_needs_a_return_path_is_left_out_and_other_commands_stay() {
        let at = BEGIN
            .windows(9)
            .position(|window| window == b"\x01\0\0\0\x01\x03ram")
            .expect("the section");
        let (before, after) = BEGIN.split_at(at);
        let with = [before, b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01", after, b"rest"].concat();
        let without = [before, after, b"rest"].concat();
        assert_eq!(rewritten(&with), rewritten(&without));
        let other = [before, b"\x08\0\x0b\0\0", after, b"rest"].concat();
        assert_eq!(rewritten(&other).len(), rewritten(&without).len() + 5);
    }

    #[test]
    fn devices_of_another_stream_follow_the_same_beginning() {
        let state = [BEGIN, b"\x02\0\0\0\x01pages and devices"].concat();
        let devices = [MAGIC, b"\x04devices\0"].concat();
        let stream = PlainStream::with_devices(&state, &devices).expect("a known form");
        let (vga, _) = stream.block_of("0000:00:02.0/vga.vram").expect("a block");
        let mut pages = stream.write_to(Vec::new()).expect("memory");
        pages.page(vga, 0, &[8; 4096]).expect("memory");
        let made = pages.finish().expect("memory");
        let rest = [
            b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x08\x150000:00:02.0/vga.vram",
            &[8; 4096][..],
            b"\0\0\0\0\0\0\0\x10~\0\0\0\x01",
            b"\x03\0\0\0\x01\0\0\0\0\0\0\0\x10~\0\0\0\x01",
            b"\x04devices\0\x06\0\0\0\x1f",
            NO_DESCRIPTION,
        ];
        assert_eq!(made, [BEGIN, &rest.concat()].concat());
        // What it makes can be taken apart again: a clone of a clone.
        PlainStream::with_devices(&made, &devices).expect("the same form");
        PlainStream::with_devices(&[BEGIN, b"\x01"].concat(), &devices).expect_err("another section begins");
        for bad in [&b"QEVM\0\0\0\x02\x04\0"[..], b"QEVM\0\0\0\x03\x04", b"QEVM\0\0\0\x03\0", b""] {
            PlainStream::with_devices(&state, bad).expect_err("no devices");
        }
    }

    #[test]
    fn stream_of_another_form_is_refused() {
        for end in 0..BEGIN.len() - 5 {
            PlainStream::of(&BEGIN[..end]).expect_err("it is too short");
        }
        for at in 0..BEGIN.len() {
            for bit in 0..8 {
                let mut changed = BEGIN.to_vec();
                changed[at] ^= 1 << bit;
                // A text may have changed, or an address: nothing panics.
                let _ = PlainStream::of(&changed);
            }
        }
        let refused = PlainStream::of(b"QEVM\0\0\0\x02").expect_err("version 2");
        assert!(refused.to_string().contains("version 3"), "{refused}");
    }
}
