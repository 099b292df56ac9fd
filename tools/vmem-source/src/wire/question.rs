// SPDX-License-Identifier: GPL-2.0
//! READ and RELEASE: pages that are asked for, and pages that have come for good.

use vmem::PageRange;
use vmem_pages::{end, range};

use super::WireError;
use super::fields::Fields;
use crate::export::{Export, MAX_ASK_PAGES, MAX_ASK_RANGES, MAX_RELEASE_PAGES};

pub(crate) const HEAD_SIZE: usize = 8;
pub(crate) const ENTRY_SIZE: usize = 16;

/// Pages of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Question {
    /// Number of the export.
    pub(crate) export: usize,
    /// At least one, all inside of the export.
    pub(crate) ranges: Vec<PageRange>,
}

pub(crate) fn encode(export: u32, ranges: &[PageRange]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HEAD_SIZE + ranges.len() * ENTRY_SIZE);
    payload.extend(export.to_le_bytes());
    payload.extend((ranges.len() as u32).to_le_bytes());
    for range in ranges {
        payload.extend(range.first().get().to_le_bytes());
        payload.extend(range.count().to_le_bytes());
    }
    payload
}

/// Takes a READ.
pub(crate) fn decode(payload: &[u8], exports: &[Export]) -> Result<Question, WireError> {
    take("READ", payload, exports, MAX_ASK_PAGES)
}

/// Takes a RELEASE. What one costs its receiver is bounded: it names each page once, and not too many.
pub(crate) fn decode_release(payload: &[u8], exports: &[Export]) -> Result<Question, WireError> {
    let mut released = take("RELEASE", payload, exports, MAX_RELEASE_PAGES)?;
    released.ranges.sort_unstable_by_key(|range| range.first().get());
    let mut pairs = released.ranges.iter().zip(released.ranges.iter().skip(1));
    match pairs.find(|(before, next)| end(**before) > next.first().get()) {
        Some((_, next)) => Err(WireError::Overlap(next.first().get())),
        None => Ok(released),
    }
}

fn take(what: &'static str, payload: &[u8], exports: &[Export], most: u64) -> Result<Question, WireError> {
    let mut fields = Fields::new(what, payload);
    let number = fields.u32()?;
    let count = fields.count(MAX_ASK_RANGES)?;
    let (index, export) = usize::try_from(number)
        .ok()
        .and_then(|index| exports.get(index).map(|export| (index, export)))
        .ok_or(WireError::NoExport(number))?;
    let mut ranges = Vec::with_capacity(count);
    let mut total = 0_u64;
    for _ in 0..count {
        let (pgoff, nr_pages) = (fields.u64()?, fields.u64()?);
        let range = range(pgoff, nr_pages)
            .filter(|range| end(*range) <= export.pages)
            .ok_or(WireError::Outside { pgoff, nr_pages })?;
        // No overflow: MAX_ASK_RANGES times MAX_PAGES at most.
        total += range.count();
        if total > most {
            return Err(WireError::TooMuch(total));
        }
        ranges.push(range);
    }
    fields.end()?;
    Ok(Question { export: index, ranges })
}
