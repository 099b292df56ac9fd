// SPDX-License-Identifier: GPL-2.0
//! EXPORTS: what a source offers.

use std::collections::HashSet;

use vmem::{Name, PAGE_SIZE};

use super::fields::Fields;
use super::version::Version;
use super::{MAX_EXPORTS, WireError};
use crate::export::{Export, MAX_PAGES};

pub(crate) const HEAD_SIZE: usize = 8;
/// Size of the largest entry of any version.
pub(crate) const ENTRY_SIZE: usize = 64;

/// Size of a name with its padding of NUL bytes, of which there is one at least.
const NAME_SIZE: usize = 32;

pub(crate) fn encode(exports: &[Export], version: Version) -> Vec<u8> {
    let mut payload = Vec::with_capacity(HEAD_SIZE + exports.len() * ENTRY_SIZE);
    payload.extend((exports.len() as u32).to_le_bytes());
    payload.extend([0; 4]);
    for export in exports {
        payload.extend((export.pages * PAGE_SIZE as u64).to_le_bytes());
        payload.extend((PAGE_SIZE as u32).to_le_bytes());
        match version {
            Version::V3 => payload.extend(short(export.identity).to_le_bytes()),
            Version::V4 => {
                payload.extend([0; 4]);
                payload.extend(export.identity.to_le_bytes());
            }
        }
        payload.extend(padded(&export.name));
    }
    payload
}

pub(crate) fn decode(payload: &[u8], version: Version) -> Result<Vec<Export>, WireError> {
    let mut fields = Fields::new("EXPORTS", payload);
    let count = fields.count(MAX_EXPORTS)?;
    fields.reserved()?;
    let mut exports = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let size = fields.u64()?;
        let page_size = fields.u32()?;
        let identity = match version {
            Version::V3 => fields.u32()?.into(),
            Version::V4 => {
                fields.reserved()?;
                u128::from_le_bytes(fields.bytes()?)
            }
        };
        let name = name(&fields.bytes()?)?;
        if page_size as usize != PAGE_SIZE {
            return Err(WireError::PageSize {
                name: name.to_string(),
                page_size,
            });
        }
        let pages = size / PAGE_SIZE as u64;
        if size % PAGE_SIZE as u64 != 0 || !(1..=MAX_PAGES).contains(&pages) {
            return Err(WireError::Size {
                name: name.to_string(),
                size,
            });
        }
        if !names.insert(name.clone()) {
            return Err(WireError::DuplicateName(name.to_string()));
        }
        exports.push(Export { name, pages, identity });
    }
    fields.end()?;
    Ok(exports)
}

/// What version 3 has of an identity.
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

/// A source may be hostile, and its names become names of device nodes: none is taken that breaks the rule, does not end, or has
/// something behind its end.
fn name(bytes: &[u8; NAME_SIZE]) -> Result<Name, WireError> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    Name::new(&text).map_err(|_| WireError::Name(text.into_owned()))
}
