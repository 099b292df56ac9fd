// SPDX-License-Identifier: GPL-2.0-or-later
//! What differs between two checkpoints, without reading their pages.

use std::collections::BTreeSet;

use vmem_pages::PageRange;

use crate::error::Error;
use crate::image::Image;
use crate::leaf::{Entry, LEAF_PAGES};
use crate::names::CheckpointName;
use crate::store::Store;

/// What differs of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendDiff {
    /// Its name.
    pub name: String,
    /// Its bytes in the first checkpoint, if that has it.
    pub before: Option<u64>,
    /// Its bytes in the second one.
    pub after: Option<u64>,
    /// Pages that differ, of those that both have.
    pub changed: Vec<PageRange>,
}

impl BackendDiff {
    /// How many pages differ, of those that both have.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.changed.iter().map(|range| range.count()).sum()
    }
}

impl Store {
    /// What differs between two checkpoints, of the same guest or not. Backends that do not differ are left out. Pages are compared by their
    /// hashes, and parts of the index that both share are not looked at.
    pub fn diff(&self, before: &CheckpointName, after: &CheckpointName) -> Result<Vec<BackendDiff>, Error> {
        let (before, after) = (self.image(before)?, self.image(after)?);
        let names: BTreeSet<&String> = before
            .backends()
            .iter()
            .chain(after.backends())
            .map(|backend| &backend.name)
            .collect();
        let mut diffs = Vec::new();
        for name in names {
            let (old, new) = (before.manifest().backend(name), after.manifest().backend(name));
            let mut diff = BackendDiff {
                name: name.clone(),
                before: old.map(|(_, backend)| backend.bytes),
                after: new.map(|(_, backend)| backend.bytes),
                changed: Vec::new(),
            };
            if let (Some((old, one)), Some((new, other))) = (old, new) {
                changed(&before, old, &after, new, one.pages().min(other.pages()), &mut diff.changed)?;
            }
            if diff.before != diff.after || !diff.changed.is_empty() {
                diffs.push(diff);
            }
        }
        Ok(diffs)
    }
}

fn changed(before: &Image, old: usize, after: &Image, new: usize, pages: u64, found: &mut Vec<PageRange>) -> Result<(), Error> {
    for leaf in 0..pages.div_ceil(LEAF_PAGES) {
        let place = |image: &Image, backend| -> Result<_, Error> {
            let record = image.leaf_record(backend, leaf)?;
            record
                .map(|record| Ok((image.index(record.index)?, record.offset)))
                .transpose()
        };
        if place(before, old)? == place(after, new)? {
            continue;
        }
        let (one, other) = (before.leaf(old, leaf)?, after.leaf(new, leaf)?);
        for (pgoff, (one, other)) in (leaf * LEAF_PAGES..pages).zip(one.0.iter().zip(&other.0)) {
            if !is_same(before, *one, after, *other)? {
                if let Some(page) = PageRange::from_pgoff(pgoff, 1) {
                    page.append_to(found);
                }
            }
        }
    }
    Ok(())
}

fn is_same(before: &Image, one: Entry, after: &Image, other: Entry) -> Result<bool, Error> {
    let (
        Entry::Data { pack, number },
        Entry::Data {
            pack: in_pack,
            number: at,
        },
    ) = (one, other)
    else {
        return Ok(one == other);
    };
    if before.pack_info(pack)?.id == after.pack_info(in_pack)?.id && number == at {
        return Ok(true);
    }
    Ok(before.page_hash(pack, number)? == after.page_hash(in_pack, at)?)
}
