// SPDX-License-Identifier: GPL-2.0-or-later
//! PAGES: contents of pages.

use vmem::PageRange;

use super::ProtocolError;
use super::fields::Fields;
use crate::answer::{Chunk, Kind, Run, data_len};

const HEAD_SIZE: usize = 8;
const ENTRY_SIZE: usize = 16;

/// Encodes the payload up to the contents of the data runs.
pub(crate) fn encode_head(export: u32, runs: &[Run], head: &mut Vec<u8>) {
    head.clear();
    head.reserve(HEAD_SIZE + runs.len() * ENTRY_SIZE);
    head.extend(export.to_le_bytes());
    head.extend((runs.len() as u32).to_le_bytes());
    for run in runs {
        head.extend(run.range.first().get().to_le_bytes());
        // A run is no longer than a READ: MAX_FETCH_PAGES.
        head.extend((run.range.count() as u32).to_le_bytes());
        head.extend(number(run.kind).to_le_bytes());
    }
}

/// The number of a kind.
pub(crate) fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Data => 0,
        Kind::Zero => 1,
        Kind::Unreadable => 2,
        Kind::Known => 3,
        Kind::Same => 4,
    }
}

/// Decodes a payload whose contents are not compressed. Returns the number of the export and the pages and digests of the runs, which are exactly as
/// long as the runs say. Which kinds the connection may have, the caller finds out.
pub(crate) fn decode<'a>(payload: &'a [u8], runs: &mut Vec<Run>) -> Result<(u32, &'a [u8]), ProtocolError> {
    let (export, data) = decode_head(payload, runs)?;
    match data_len(runs) {
        Some(length) if length == data.len() => Ok((export, data)),
        Some(length) if length < data.len() => Err(ProtocolError::Trailing {
            what: "PAGES",
            extra: data.len() - length,
        }),
        _ => Err(ProtocolError::Short("PAGES")),
    }
}

/// Decodes the runs. Returns the number of the export and what follows the runs.
pub(crate) fn decode_head<'a>(payload: &'a [u8], runs: &mut Vec<Run>) -> Result<(u32, &'a [u8]), ProtocolError> {
    runs.clear();
    let mut fields = Fields::new("PAGES", payload);
    let export = fields.u32()?;
    let count = fields.count(Chunk::MAX_RUNS)?;
    for _ in 0..count {
        let pgoff = fields.u64()?;
        let nr_pages = u64::from(fields.u32()?);
        let kind = match fields.u32()? {
            0 => Kind::Data,
            1 => Kind::Zero,
            2 => Kind::Unreadable,
            3 => Kind::Known,
            4 => Kind::Same,
            other => return Err(ProtocolError::Kind(other)),
        };
        let range = PageRange::from_pgoff(pgoff, nr_pages).ok_or(ProtocolError::Outside { pgoff, nr_pages })?;
        runs.push(Run { range, kind });
    }
    Ok((export, fields.rest()))
}
