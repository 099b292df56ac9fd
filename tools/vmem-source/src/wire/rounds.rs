// SPDX-License-Identifier: GPL-2.0-or-later
//! NEXT and BATCH: the questions and the ends of answers while the program runs at the source.

use super::ProtocolError;
use super::fields::Fields;
use crate::export::MAX_FETCH_PAGES;

pub(crate) const NEXT_SIZE: usize = 8;
pub(crate) const BATCH_SIZE: usize = 16;

/// A BATCH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchEnd {
    /// The round of the pages that were sent; the first is 1.
    pub(crate) round: u32,
    /// Whether the program has stopped and no more pages come in rounds.
    pub(crate) over: bool,
}

/// Encodes a NEXT of at most `max` pages.
pub(crate) fn encode_next(max: u64) -> [u8; NEXT_SIZE] {
    // `max` is at most MAX_FETCH_PAGES. The upper half is reserved.
    max.to_le_bytes()
}

/// Decodes a NEXT. Returns the most pages of its answer.
pub(crate) fn decode_next(payload: &[u8]) -> Result<u64, ProtocolError> {
    let mut fields = Fields::new("NEXT", payload);
    let max = fields.u32()?;
    fields.reserved()?;
    fields.end()?;
    if (1..=MAX_FETCH_PAGES).contains(&max.into()) {
        Ok(max.into())
    } else {
        Err(ProtocolError::MaxPages(max))
    }
}

pub(crate) fn encode_batch(batch: BatchEnd) -> [u8; BATCH_SIZE] {
    let mut payload = [0; BATCH_SIZE];
    payload[0..4].copy_from_slice(&batch.round.to_le_bytes());
    payload[4..8].copy_from_slice(&u32::from(batch.over).to_le_bytes());
    payload
}

pub(crate) fn decode_batch(payload: &[u8]) -> Result<BatchEnd, ProtocolError> {
    let mut fields = Fields::new("BATCH", payload);
    let (round, over) = (fields.u32()?, fields.u32()?);
    fields.reserved()?;
    fields.reserved()?;
    fields.end()?;
    let over = match over {
        0 => false,
        1 => true,
        other => return Err(ProtocolError::Over(other)),
    };
    if round == 0 {
        return Err(ProtocolError::Round { got: 0, least: 1 });
    }
    Ok(BatchEnd { round, over })
}
