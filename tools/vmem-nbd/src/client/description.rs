// SPDX-License-Identifier: GPL-2.0-or-later
//! What a server says about an export.

use crate::wire::{MAX_PAYLOAD, Parser, flag};

use super::error::{Error, violation};

/// The largest minimum block that the protocol allows, in bytes.
const MAX_MINIMUM: u32 = 1 << 16;
/// The smallest preferred block, which the maximum payload cannot be below.
const MIN_PREFERRED: u32 = 512;

/// An export, and how it can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Description {
    /// Bytes.
    pub size: u64,
    /// Whether several connections see the same contents.
    pub can_multi_conn: bool,
    /// Offsets and lengths are multiples of this, but for a length up to the end of an export that is no multiple: a power of two, 64 KiB at most.
    pub min_block: u32,
    /// The most bytes of one read, a multiple of `min_block`, 32 MiB at most.
    pub max_read: u32,
    /// Whether replies are structured: a part of one can be a hole or an error.
    pub structured: bool,
    /// The number of `base:allocation`, if the server has it.
    pub(crate) allocation: Option<u32>,
}

impl Description {
    /// An export of which nothing is known.
    pub(super) fn new(structured: bool, allocation: Option<u32>) -> Self {
        Self {
            size: 0,
            can_multi_conn: false,
            min_block: 1,
            max_read: MAX_PAYLOAD,
            structured,
            allocation,
        }
    }

    /// Whether the server can be asked which bytes are zero.
    #[must_use]
    pub fn has_extents(&self) -> bool {
        self.allocation.is_some()
    }

    /// Takes over size and flags (`NBD_INFO_EXPORT`, without the type). Returns whether they are as they should be.
    pub(super) fn set_export(&mut self, mut data: Parser<'_>) -> Option<()> {
        self.size = data.u64()?;
        let flags = data.u16()?;
        self.can_multi_conn = flags & flag::HAS_FLAGS != 0 && flags & flag::CAN_MULTI_CONN != 0;
        Some(())
    }

    /// Takes over the block sizes (`NBD_INFO_BLOCK_SIZE`, without the type).
    pub(super) fn set_block_sizes(&mut self, mut data: Parser<'_>) -> Result<(), Error> {
        let short = || violation("block sizes that are cut off");
        let minimum = data.u32().ok_or_else(short)?;
        let preferred = data.u32().ok_or_else(short)?;
        let maximum = data.u32().ok_or_else(short)?;
        let is_valid = minimum.is_power_of_two()
            && minimum <= MAX_MINIMUM
            && preferred >= minimum.max(MIN_PREFERRED)
            && maximum >= minimum.max(MIN_PREFERRED);
        if !is_valid {
            return Err(violation(format!(
                "block sizes of at least {minimum}, preferably {preferred} and at most {maximum} bytes"
            )));
        }
        self.min_block = minimum;
        self.max_read = maximum.min(MAX_PAYLOAD) / minimum * minimum;
        Ok(())
    }
}
