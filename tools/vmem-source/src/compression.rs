// SPDX-License-Identifier: GPL-2.0-or-later
//! How page contents are compressed on the network.

use std::fmt;
use std::str::FromStr;

/// How a source compresses the page contents of one connection.
///
/// Contents that do not become smaller are sent as they are, and pages of zeros have none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 blocks: about as fast as a copy, and for networks of several Gbit/s.
    Lz4,
    /// Zstandard, at a level from 1 to [`MAX_LEVEL`](Self::MAX_LEVEL): smaller, and slower with each level.
    Zstd(u8),
}

impl Compression {
    /// The highest level of Zstandard. A peer chooses what the source computes: a level above this costs ten times the time of level 3 for a
    /// few per cent.
    pub const MAX_LEVEL: u8 = 9;
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// A text is not the name of a compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not none, lz4, zstd or zstd:LEVEL, with a LEVEL from 1 to {}", Compression::MAX_LEVEL)]
pub struct ParseCompressionError;

impl FromStr for Compression {
    type Err = ParseCompressionError;

    fn from_str(text: &str) -> Result<Self, ParseCompressionError> {
        match text.split_once(':') {
            None => match text {
                "none" => Ok(Self::None),
                "lz4" => Ok(Self::Lz4),
                "zstd" => Ok(Self::Zstd(1)),
                _ => Err(ParseCompressionError),
            },
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ 1..=Self::MAX_LEVEL) => Ok(Self::Zstd(level)),
                _ => Err(ParseCompressionError),
            },
            Some(_) => Err(ParseCompressionError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for compression in [
            Compression::None,
            Compression::Lz4,
            Compression::Zstd(1),
            Compression::Zstd(9),
        ] {
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        for bad in [
            "", "LZ4", "lz4:1", "none:1", "zstd:", "zstd:0", "zstd:10", "zstd:-1", "zstd:300", "gzip",
        ] {
            assert_eq!(bad.parse::<Compression>(), Err(ParseCompressionError), "{bad}");
        }
    }
}
