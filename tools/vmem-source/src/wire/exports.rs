// SPDX-License-Identifier: GPL-2.0-or-later
//! EXPORTS: the list of exports of a source.

use std::collections::HashSet;

use vmem::{Name, PAGE_SIZE, PageRange};

use super::fields::Fields;
use super::version::Version;
use super::{MAX_EXPORTS, ProtocolError};
use crate::export::{Export, MAX_PAGES};

pub(crate) const HEAD_SIZE: usize = 8;
/// Size of the largest entry of any version.
pub(crate) const ENTRY_SIZE: usize = 64;

/// Size of a name, padded with at least one NUL byte.
const NAME_SIZE: usize = 32;

pub(crate) fn encode(exports: &[Export], version: Version) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HEAD_SIZE + exports.len() * ENTRY_SIZE);
    payload.extend((exports.len() as u32).to_le_bytes());
    payload.extend([0; 4]);
    for export in exports {
        payload.extend(export.size().to_le_bytes());
        payload.extend((PAGE_SIZE as u32).to_le_bytes());
        match version {
            Version::V3 => payload.extend(short(export.identity).to_le_bytes()),
            Version::V4 | Version::V5 => {
                let padding = if version >= Version::V5 { export.padding } else { 0 };
                payload.extend(u32::from(padding).to_le_bytes());
                payload.extend(export.identity.to_le_bytes());
            }
        }
        payload.extend(padded(&export.name));
    }
    payload
}

pub(crate) fn decode(payload: &[u8], version: Version) -> Result<Vec<Export>, ProtocolError> {
    let mut fields = Fields::new("EXPORTS", payload);
    let count = fields.count(MAX_EXPORTS)?;
    fields.reserved()?;
    let mut exports = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let size = fields.u64()?;
        let page_size = fields.u32()?;
        let (identity, padding) = match version {
            Version::V3 => (fields.u32()?.into(), 0),
            Version::V4 => {
                fields.reserved()?;
                (u128::from_le_bytes(fields.bytes()?), 0)
            }
            Version::V5 => {
                let padding = fields.u32()?;
                (u128::from_le_bytes(fields.bytes()?), padding)
            }
        };
        let name = name(&fields.bytes()?)?;
        if page_size as usize != PAGE_SIZE {
            return Err(ProtocolError::PageSize {
                name: name.to_string(),
                page_size,
            });
        }
        let whole = size % PAGE_SIZE as u64 == 0;
        let pages = PageRange::of_len(size).filter(|pages| whole && pages.count() <= MAX_PAGES);
        let pages = pages.ok_or_else(|| ProtocolError::Size {
            name: name.to_string(),
            size,
        })?;
        let padding = u16::try_from(padding)
            .ok()
            .filter(|padding| usize::from(*padding) < PAGE_SIZE);
        let padding = padding.ok_or_else(|| ProtocolError::Padding(name.to_string()))?;
        if !names.insert(name.clone()) {
            return Err(ProtocolError::DuplicateName(name.to_string()));
        }
        exports.push(Export {
            name,
            pages,
            padding,
            identity,
        });
    }
    fields.end()?;
    Ok(exports)
}

/// The identity in version 3.
fn short(identity: u128) -> u32 {
    crc32c::crc32c(&identity.to_le_bytes())
}

fn padded(name: &Name) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    for (to, from) in bytes.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    bytes
}

/// Decodes a name. The source may be hostile, and the name becomes that of a device node: a name that is not valid, has no NUL, or has bytes
/// after its NUL is refused.
fn name(bytes: &[u8; NAME_SIZE]) -> Result<Name, ProtocolError> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    Name::new(&text).map_err(|_| ProtocolError::Name(text.into_owned()))
}
