// SPDX-License-Identifier: GPL-2.0-or-later
//! READ, RELEASE and REMAINDER: ranges of pages of an export.

use vmem::PageRange;

use super::ProtocolError;
use super::fields::Fields;
use crate::export::{Export, ExportRanges, MAX_FETCH_PAGES, MAX_FETCH_RANGES, MAX_RELEASE_PAGES};

pub(crate) const HEAD_SIZE: usize = 8;
pub(crate) const ENTRY_SIZE: usize = 16;

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

/// Decodes a READ: at least one range; all are inside of the export.
pub(crate) fn decode(payload: &[u8], exports: &[Export]) -> Result<ExportRanges, ProtocolError> {
    decode_ranges("READ", payload, exports, MAX_FETCH_PAGES)
}

/// Decodes a RELEASE. It names each page once, and a bounded number of pages, which bounds what it costs the receiver.
pub(crate) fn decode_release(payload: &[u8], exports: &[Export]) -> Result<ExportRanges, ProtocolError> {
    let mut released = decode_ranges("RELEASE", payload, exports, MAX_RELEASE_PAGES)?;
    released.ranges.sort_unstable_by_key(|range| range.first().get());
    let mut pairs = released.ranges.iter().zip(released.ranges.iter().skip(1));
    match pairs.find(|(before, next)| before.end() > next.first().get()) {
        Some((_, next)) => Err(ProtocolError::Overlap(next.first().get())),
        None => Ok(released),
    }
}

/// Decodes a REMAINDER; `None` is the end of the list. A range may be as long as its export: the receiver sees to it that no page comes
/// twice, which bounds the whole list.
pub(crate) fn decode_remainder(payload: &[u8], exports: &[Export]) -> Result<Option<ExportRanges>, ProtocolError> {
    const WHAT: &str = "REMAINDER";
    if payload.get(4..HEAD_SIZE).is_some_and(|count| count == [0; 4]) {
        let mut fields = Fields::new(WHAT, payload);
        fields.reserved()?;
        fields.reserved()?;
        return fields.end().map(|()| None);
    }
    decode_ranges(WHAT, payload, exports, u64::MAX).map(Some)
}

fn decode_ranges(what: &'static str, payload: &[u8], exports: &[Export], max_pages: u64) -> Result<ExportRanges, ProtocolError> {
    let mut fields = Fields::new(what, payload);
    let number = fields.u32()?;
    let count = fields.count(MAX_FETCH_RANGES)?;
    let (index, export) = usize::try_from(number)
        .ok()
        .and_then(|index| exports.get(index).map(|export| (index, export)))
        .ok_or(ProtocolError::NoExport(number))?;
    let mut ranges = Vec::with_capacity(count);
    let mut total = 0_u64;
    for _ in 0..count {
        let (pgoff, nr_pages) = (fields.u64()?, fields.u64()?);
        let range = PageRange::from_pgoff(pgoff, nr_pages)
            .filter(|range| range.end() <= export.pages.end())
            .ok_or(ProtocolError::Outside { pgoff, nr_pages })?;
        // No overflow: MAX_FETCH_RANGES times MAX_PAGES at most.
        total += range.count();
        if total > max_pages {
            return Err(ProtocolError::TooMuch(total));
        }
        ranges.push(range);
    }
    fields.end()?;
    Ok(ExportRanges { export: index, ranges })
}
