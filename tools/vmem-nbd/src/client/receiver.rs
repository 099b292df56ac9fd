// SPDX-License-Identifier: GPL-2.0-or-later
//! Takes the replies of a server apart. What a header says is checked before anything is read because of it.

use std::time::Instant;

use crate::link::Link;
use crate::wire::{MAX_EXTENTS, MAX_STRING, Parser, SIMPLE_MAGIC, STRUCTURED_MAGIC, chunk};

use super::assembly::Assembly;
use super::description::Description;
use super::error::{Error, violation};

/// Bytes of an extent.
const EXTENT: u32 = 8;
/// Extents that are read at a time.
const BATCH: usize = 512;

/// The beginning of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    Simple {
        errno: u32,
        cookie: u64,
    },
    Chunk {
        flags: u16,
        kind: u16,
        cookie: u64,
        length: u32,
    },
}

impl Header {
    pub(super) fn cookie(&self) -> u64 {
        let (Self::Simple { cookie, .. } | Self::Chunk { cookie, .. }) = *self;
        cookie
    }
}

/// Reads replies from a link.
#[derive(Debug)]
pub(super) struct Receiver<'a> {
    pub(super) link: &'a Link,
    pub(super) description: Description,
}

impl Receiver<'_> {
    fn read_into(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let limit = self.link.timeout();
        let read = self.link.read_by(Instant::now() + limit, bytes);
        read.map_err(Error::of("send the rest of an answer", limit))
    }

    fn read<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&self) -> Result<u32, Error> {
        self.read().map(u32::from_be_bytes)
    }

    fn u64(&self) -> Result<u64, Error> {
        self.read().map(u64::from_be_bytes)
    }

    /// Reads the beginning of a reply.
    pub(super) fn header(&self) -> Result<Header, Error> {
        let bytes: [u8; 16] = self.read()?;
        let short = || violation("a reply that is cut off");
        let mut parser = Parser(&bytes);
        match parser.u32() {
            Some(SIMPLE_MAGIC) => Ok(Header::Simple {
                errno: parser.u32().ok_or_else(short)?,
                cookie: parser.u64().ok_or_else(short)?,
            }),
            Some(STRUCTURED_MAGIC) if self.description.structured => Ok(Header::Chunk {
                flags: parser.u16().ok_or_else(short)?,
                kind: parser.u16().ok_or_else(short)?,
                cookie: parser.u64().ok_or_else(short)?,
                length: self.u32()?,
            }),
            Some(STRUCTURED_MAGIC) => Err(violation("a structured reply that was not negotiated")),
            _ => Err(violation("a reply without its magic number")),
        }
    }

    /// Reads the rest of a reply. True if it is the last part.
    pub(super) fn body(&self, header: Header, assembly: &mut Assembly) -> Result<bool, Error> {
        match header {
            Header::Simple { errno, .. } => self.simple(errno, assembly).map(|()| true),
            Header::Chunk { flags, kind, length, .. } => {
                assembly.count(20 + u64::from(length));
                let is_last = flags & chunk::FLAG_DONE != 0;
                match kind {
                    chunk::NONE if length == 0 && is_last => {}
                    chunk::OFFSET_DATA => self.data(length, assembly)?,
                    chunk::OFFSET_HOLE if length == 12 => assembly.hole(self.u64()?, self.u32()?.into())?,
                    chunk::BLOCK_STATUS => self.extents(length, assembly)?,
                    kind if kind & chunk::ERROR_BIT != 0 => self.error(kind, length, assembly)?,
                    kind => return Err(violation(format!("a chunk of type {kind} with {length} bytes"))),
                }
                Ok(is_last)
            }
        }
    }

    fn simple(&self, errno: u32, assembly: &mut Assembly) -> Result<(), Error> {
        assembly.count(16);
        if assembly.is_read() && self.description.structured {
            return Err(violation("a simple reply to a read although structured ones were negotiated"));
        }
        if errno != 0 {
            assembly.fail(errno, b"");
        } else if assembly.is_read() {
            let range = assembly.range();
            let length = range.end - range.start;
            assembly.count(length);
            self.read_into(assembly.data(range.start, length)?)?;
        }
        Ok(())
    }

    fn data(&self, length: u32, assembly: &mut Assembly) -> Result<(), Error> {
        let Some(bytes) = length.checked_sub(8).filter(|bytes| *bytes > 0) else {
            return Err(violation(format!("a chunk of data with {length} bytes")));
        };
        let offset = self.u64()?;
        self.read_into(assembly.data(offset, bytes.into())?)
    }

    fn extents(&self, length: u32, assembly: &mut Assembly) -> Result<(), Error> {
        let extents = length
            .checked_sub(4)
            .filter(|bytes| bytes % EXTENT == 0)
            .map(|bytes| bytes / EXTENT);
        let Some(mut left) = extents.filter(|extents| (1..=MAX_EXTENTS).contains(extents)) else {
            return Err(violation(format!("a chunk of extents with {length} bytes")));
        };
        if Some(self.u32()?) != self.description.allocation {
            return Err(violation("extents of a metadata context that was not negotiated"));
        }
        assembly.begin_extents()?;
        let (mut covered, mut buffer) = (0, [0; BATCH * EXTENT as usize]);
        while left > 0 {
            let count = left.min(BATCH as u32);
            let bytes = buffer.get_mut(..(count * EXTENT) as usize).unwrap_or_default();
            self.read_into(bytes)?;
            let mut parser = Parser(bytes);
            while let (Some(bytes), Some(flags)) = (parser.u32(), parser.u32()) {
                covered = assembly.extent(covered, bytes, flags)?;
            }
            left -= count;
        }
        Ok(())
    }

    fn error(&self, kind: u16, length: u32, assembly: &mut Assembly) -> Result<(), Error> {
        // An error that the protocol gets later may have more after the message.
        const MORE: u32 = 64;
        let wrong = || violation(format!("an error chunk of type {kind:#x} with {length} bytes"));
        if !(6..=6 + MAX_STRING as u32 + MORE).contains(&length) {
            return Err(wrong());
        }
        let mut payload = vec![0; length as usize];
        self.read_into(&mut payload)?;
        let mut parser = Parser(&payload);
        let errno = parser.u32().filter(|errno| *errno != 0).ok_or_else(wrong)?;
        let text = parser.u16().ok_or_else(wrong)?;
        let text = parser.bytes(text.into()).ok_or_else(wrong)?;
        match kind {
            chunk::ERROR if !parser.0.is_empty() => return Err(wrong()),
            chunk::ERROR_OFFSET => {
                let offset = parser.u64().ok_or_else(wrong)?;
                if !assembly.range().contains(&offset) {
                    return Err(violation(format!("an error at {offset} of a read of {:?}", assembly.range())));
                }
            }
            _ => {}
        }
        assembly.fail(errno, text);
        Ok(())
    }
}
