// SPDX-License-Identifier: GPL-2.0-or-later
//! COMPRESS, and the compressed contents of PAGES frames.

use std::fmt;

use super::ProtocolError;
use super::fields::Fields;
use crate::compression::Compression;

pub(crate) const COMPRESS_SIZE: usize = 8;

/// The most bytes of contents in a frame once they are decompressed: no more than a frame without compression can have.
pub(crate) const MAX_CONTENTS: u32 = 1 << 20;

/// How the contents in a PAGES frame are coded: a field of its header.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Coding {
    /// As they are.
    #[default]
    Plain = 0,
    /// One LZ4 block.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

impl Coding {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Plain, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|coding| *coding as u8 == number)
    }

    fn of(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::Plain,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd(_) => Self::Zstd,
        }
    }
}

pub(crate) fn encode_compress(compression: Compression) -> [u8; COMPRESS_SIZE] {
    let level = match compression {
        Compression::Zstd(level) => level,
        _ => 0,
    };
    let mut payload = [0; COMPRESS_SIZE];
    payload[0..4].copy_from_slice(&u32::from(Coding::of(compression) as u8).to_le_bytes());
    payload[4..8].copy_from_slice(&u32::from(level).to_le_bytes());
    payload
}

pub(crate) fn decode_compress(payload: &[u8]) -> Result<Compression, ProtocolError> {
    let mut fields = Fields::new("COMPRESS", payload);
    let (coding, level) = (fields.u32()?, fields.u32()?);
    fields.end()?;
    match (u8::try_from(coding).ok().and_then(Coding::from_number), u8::try_from(level)) {
        (Some(Coding::Plain), Ok(0)) => Ok(Compression::None),
        (Some(Coding::Lz4), Ok(0)) => Ok(Compression::Lz4),
        (Some(Coding::Zstd), Ok(level @ 1..=Compression::MAX_LEVEL)) => Ok(Compression::Zstd(level)),
        _ => Err(ProtocolError::Compression { coding, level }),
    }
}

/// Compresses the contents of frames.
#[derive(Default)]
pub(crate) struct Compressor {
    compression: Compression,
    /// Of Zstandard, kept because it is large.
    context: Option<zstd::bulk::Compressor<'static>>,
    buffer: Vec<u8>,
    /// Frames in a row that did not become smaller, and how many are not tried now.
    failures: u32,
    skipped: u32,
}

impl Compressor {
    /// The most frames in a row that are not tried: memory that does not compress costs a sixteenth of the time that memory which does costs.
    const MAX_SKIPPED: u32 = 15;

    pub(crate) fn new(compression: Compression) -> std::io::Result<Self> {
        let context = match compression {
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level.into())?),
            Compression::None | Compression::Lz4 => None,
        };
        Ok(Self {
            compression,
            context,
            ..Self::default()
        })
    }

    /// Compresses `data`. `None` if it does not become smaller by a sixteenth, which is not worth the time to decompress it.
    pub(crate) fn compress(&mut self, data: &[u8]) -> Option<(Coding, &[u8])> {
        // No contents say nothing of those that follow.
        if data.is_empty() {
            return None;
        }
        if self.skipped > 0 {
            self.skipped -= 1;
            return None;
        }
        let limit = data.len() - data.len() / 16;
        let length = match (self.compression, &mut self.context) {
            (Compression::Lz4, _) => {
                // The compressor needs room for the worst case.
                let room = lz4_flex::block::get_maximum_output_size(data.len());
                let buffer = buffer(&mut self.buffer, room);
                lz4_flex::block::compress_into(data, buffer).ok()
            }
            // It ends early if there is not enough room.
            (Compression::Zstd(_), Some(context)) => context.compress_to_buffer(data, buffer(&mut self.buffer, limit)).ok(),
            _ => return None,
        };
        match length.filter(|length| *length < limit) {
            Some(length) => {
                self.failures = 0;
                Some((Coding::of(self.compression), self.buffer.get(..length)?))
            }
            None => {
                self.failures = (self.failures + 1).min(5);
                self.skipped = ((1 << self.failures) / 2 - 1).min(Self::MAX_SKIPPED);
                None
            }
        }
    }
}

/// The first `length` bytes of a buffer that grows.
fn buffer(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

/// Decompresses the contents of frames.
#[derive(Default)]
pub(crate) struct Decompressor {
    compression: Compression,
    context: Option<zstd::bulk::Decompressor<'static>>,
    buffer: Vec<u8>,
}

impl Decompressor {
    /// For a connection whose source was asked for `compression`.
    pub(crate) fn new(compression: Compression) -> std::io::Result<Self> {
        let context = match compression {
            Compression::Zstd(_) => Some(zstd::bulk::Decompressor::new()?),
            Compression::None | Compression::Lz4 => None,
        };
        Ok(Self {
            compression,
            context,
            buffer: Vec::new(),
        })
    }

    /// Decompresses contents that have `length` bytes, as the runs of the frame say, and keeps them. No more than that is ever written or
    /// allocated, and `length` is no more than a frame may have.
    pub(crate) fn decompress(&mut self, coding: Coding, data: &[u8], length: Option<usize>) -> Result<(), ProtocolError> {
        if coding == Coding::Plain || coding != Coding::of(self.compression) {
            return Err(ProtocolError::Coding(coding as u8));
        }
        let length = length.filter(|length| *length <= MAX_CONTENTS as usize);
        let length = length.ok_or(ProtocolError::Inflated { limit: MAX_CONTENTS })?;
        let buffer = buffer(&mut self.buffer, length);
        let found = match (coding, &mut self.context) {
            (Coding::Lz4, _) => lz4_flex::block::decompress_into(data, buffer).ok(),
            (Coding::Zstd, Some(context)) => context.decompress_to_buffer(data, buffer).ok(),
            _ => None,
        };
        match found {
            Some(found) if found == length && length > 0 => Ok(()),
            _ => Err(ProtocolError::Decompress),
        }
    }

    /// The first `length` bytes of what was decompressed last.
    pub(crate) fn contents(&self, length: usize) -> &[u8] {
        self.buffer.get(..length).unwrap_or_default()
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}
