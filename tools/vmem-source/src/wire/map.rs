// SPDX-License-Identifier: GPL-2.0-or-later
//! MAP and HOLES: which pages need not be asked for, because they are holes.

use vmem::PageRange;

use super::ProtocolError;
use super::fields::Fields;
use super::ranges::ENTRY_SIZE;
use crate::export::Export;
use crate::holes::{Holes, MAX_HOLES, MAX_MAP_PAGES};

pub(crate) const MAP_SIZE: usize = 24;
pub(crate) const HOLES_HEAD_SIZE: usize = 16;

/// A HOLES, as far as it can be understood without its MAP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HolesFrame {
    pub(crate) export: u32,
    /// The first page that it is not about.
    pub(crate) end: u64,
    /// In ascending order; they do not overlap.
    pub(crate) ranges: Vec<PageRange>,
}

/// Encodes a MAP of these pages.
pub(crate) fn encode_map(export: u32, pages: PageRange) -> [u8; MAP_SIZE] {
    let mut payload = [0; MAP_SIZE];
    payload[0..4].copy_from_slice(&export.to_le_bytes());
    payload[8..16].copy_from_slice(&pages.first().get().to_le_bytes());
    payload[16..24].copy_from_slice(&pages.count().to_le_bytes());
    payload
}

/// Decodes a MAP. Returns the number of the export, and its pages.
pub(crate) fn decode_map(payload: &[u8], exports: &[Export]) -> Result<(usize, PageRange), ProtocolError> {
    let mut fields = Fields::new("MAP", payload);
    let number = fields.u32()?;
    fields.reserved()?;
    let (pgoff, nr_pages) = (fields.u64()?, fields.u64()?);
    fields.end()?;
    let (index, export) = usize::try_from(number)
        .ok()
        .and_then(|index| exports.get(index).map(|export| (index, export)))
        .ok_or(ProtocolError::NoExport(number))?;
    let pages = PageRange::from_pgoff(pgoff, nr_pages)
        .filter(|pages| pages.end() <= export.pages.end())
        .ok_or(ProtocolError::Outside { pgoff, nr_pages })?;
    if pages.count() > MAX_MAP_PAGES {
        return Err(ProtocolError::TooMuch(pages.count()));
    }
    Ok((index, pages))
}

/// Encodes a HOLES, which has at most [`MAX_HOLES`] ranges.
pub(crate) fn encode_holes(export: u32, holes: &Holes) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HOLES_HEAD_SIZE + holes.ranges.len() * ENTRY_SIZE);
    payload.extend(export.to_le_bytes());
    payload.extend((holes.ranges.len() as u32).to_le_bytes());
    payload.extend(holes.pages.end().to_le_bytes());
    for range in &holes.ranges {
        payload.extend(range.first().get().to_le_bytes());
        payload.extend(range.count().to_le_bytes());
    }
    payload
}

/// Decodes a HOLES. Whether it answers a MAP, the caller finds out.
pub(crate) fn decode_holes(payload: &[u8]) -> Result<HolesFrame, ProtocolError> {
    let mut fields = Fields::new("HOLES", payload);
    let export = fields.u32()?;
    // None is as good an answer as any.
    let count = fields.u32()?;
    if count as usize > MAX_HOLES {
        let (what, limit) = ("HOLES", MAX_HOLES as u32);
        return Err(ProtocolError::Count { what, count, limit });
    }
    let end = fields.u64()?;
    let mut ranges: Vec<PageRange> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (pgoff, nr_pages) = (fields.u64()?, fields.u64()?);
        let least = ranges.last().map_or(0, |last| last.end());
        let hole = PageRange::from_pgoff(pgoff, nr_pages)
            .filter(|hole| hole.first().get() >= least && hole.end() <= end)
            .ok_or(ProtocolError::Hole { pgoff, nr_pages })?;
        ranges.push(hole);
    }
    fields.end()?;
    Ok(HolesFrame { export, end, ranges })
}
