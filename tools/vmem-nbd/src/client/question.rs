// SPDX-License-Identifier: GPL-2.0-or-later
//! What is asked of a server.

use std::ops::Range;

use crate::wire::{Request, command};

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Bytes of the export.
    Read {
        /// Offset of the first one, a multiple of the minimum block.
        offset: u64,
        /// How many, at least one and at most [`max_read`](super::Description::max_read).
        length: u32,
    },
    /// Which bytes of the export are zero. Only if the export [`has_extents`](super::Description::has_extents).
    Extents {
        /// Offset of the first one, a multiple of the minimum block.
        offset: u64,
        /// How many, at least one.
        length: u32,
    },
}

impl Question {
    /// The bytes.
    pub(super) fn range(&self) -> Range<u64> {
        let (Self::Read { offset, length } | Self::Extents { offset, length }) = *self;
        offset..offset + u64::from(length)
    }

    /// How many bytes the reply has, about.
    pub(super) fn payload(&self) -> u64 {
        match self {
            Self::Read { length, .. } => u64::from(*length),
            Self::Extents { .. } => 0,
        }
    }

    pub(super) fn encode(&self, cookie: u64) -> [u8; Request::SIZE] {
        let (command, offset, length) = match *self {
            Self::Read { offset, length } => (command::READ, offset, length),
            Self::Extents { offset, length } => (command::BLOCK_STATUS, offset, length),
        };
        let request = Request {
            flags: 0,
            command,
            cookie,
            offset,
            length,
        };
        request.encode()
    }
}
