// SPDX-License-Identifier: GPL-2.0-or-later
//! Compression of frames and of records of the index.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::encoding::Malformed;
use crate::error::Error;

/// How new contents are compressed. What is stored says itself how it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: the fastest to read.
    Lz4,
    /// Zstandard with this level, 1 to 19.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(1)
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let level = |level: &str| level.parse().ok().filter(|level| (1..=19).contains(level));
        match (text, text.strip_prefix("zstd:").and_then(level)) {
            ("none", _) => Ok(Self::None),
            ("lz4", _) => Ok(Self::Lz4),
            ("zstd", _) => Ok(Self::default()),
            (_, Some(level)) => Ok(Self::Zstd(level)),
            _ => Err(Error::Name(format!(
                "{text:?} is no compression: none, lz4, zstd or zstd:LEVEL with a level of 1 to 19"
            ))),
        }
    }
}

/// How bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Codec {
    Raw = 0,
    Lz4 = 1,
    Zstd = 2,
}

impl Codec {
    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(Malformed("it has an unknown compression")),
        }
    }
}

/// The bytes as they are stored: as they are, unless compression makes them at least 3 % shorter.
pub(crate) fn compress(compression: Compression, plain: Vec<u8>) -> (Codec, Vec<u8>) {
    let (codec, stored) = match compression {
        Compression::None => return (Codec::Raw, plain),
        Compression::Lz4 => (Codec::Lz4, lz4_flex::block::compress(&plain)),
        Compression::Zstd(level) => match zstd::bulk::compress(&plain, level) {
            Ok(stored) => (Codec::Zstd, stored),
            Err(_) => return (Codec::Raw, plain),
        },
    };
    if stored.len() + plain.len() * 3 / 100 < plain.len() {
        (codec, stored)
    } else {
        (Codec::Raw, plain)
    }
}

/// The `length` bytes that were compressed. Takes no more memory than these, whatever `stored` says.
pub(crate) fn decompress(codec: Codec, stored: Vec<u8>, length: usize) -> Result<Vec<u8>, Malformed> {
    let plain = match codec {
        Codec::Raw => stored,
        Codec::Lz4 => {
            let mut plain = vec![0; length];
            let got =
                lz4_flex::block::decompress_into(&stored, &mut plain).map_err(|_| Malformed("it cannot be decompressed"))?;
            plain.truncate(got);
            plain
        }
        Codec::Zstd => zstd::bulk::decompress(&stored, length).map_err(|_| Malformed("it cannot be decompressed"))?,
    };
    if plain.len() == length {
        Ok(plain)
    } else {
        Err(Malformed("it does not have as many bytes as it should"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_back(seed in proptest::collection::vec(any::<u8>(), 1..300), times in 1..40_usize) {
            let plain = seed.repeat(times);
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
                let (codec, stored) = compress(compression, plain.clone());
                prop_assert!(stored.len() <= plain.len());
                let back = decompress(codec, stored.clone(), plain.len());
                prop_assert_eq!(back.as_ref(), Ok(&plain));
                prop_assert!(decompress(codec, stored.clone(), plain.len() + 1).is_err());
                prop_assert!(decompress(codec, stored, plain.len() - 1).is_err());
            }
        }

        #[test]
        fn any_bytes_decompress_to_the_length_or_not_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..300), length in 0..5000_usize) {
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                if let Ok(plain) = decompress(codec, bytes.clone(), length) {
                    prop_assert_eq!(plain.len(), length);
                }
            }
        }
    }
}
