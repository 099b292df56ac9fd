// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the page contents of a received frame are.

use crate::answer::{Run, data_len};
use crate::wire::compression::{Coding, Decompressor};
use crate::wire::{ProtocolError, pages};

/// The contents of the frame that was received last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    coding: Coding,
    /// Offset in the payload.
    offset: usize,
}

impl Received {
    /// Decodes the runs of a payload. Returns the number of the export as well.
    pub(super) fn decode(coding: Coding, payload: &[u8], runs: &mut Vec<Run>) -> Result<(u32, Self), ProtocolError> {
        let (export, data) = match coding {
            Coding::Plain => pages::decode(payload, runs)?,
            Coding::Lz4 | Coding::Zstd => pages::decode_head(payload, runs)?,
        };
        let offset = payload.len() - data.len();
        Ok((export, Self { coding, offset }))
    }

    /// Decompresses the contents, if they are compressed.
    pub(super) fn decompress(self, payload: &[u8], runs: &[Run], decompressor: &mut Decompressor) -> Result<(), ProtocolError> {
        match self.coding {
            Coding::Plain => Ok(()),
            coding => decompressor.decompress(coding, &payload[self.offset..], data_len(runs)),
        }
    }

    /// The contents.
    pub(super) fn bytes<'a>(self, payload: &'a [u8], runs: &[Run], decompressor: &'a Decompressor) -> &'a [u8] {
        match self.coding {
            Coding::Plain => &payload[self.offset..],
            Coding::Lz4 | Coding::Zstd => decompressor.contents(data_len(runs).unwrap_or_default()),
        }
    }
}
