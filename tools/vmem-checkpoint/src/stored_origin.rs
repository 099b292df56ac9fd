// SPDX-License-Identifier: GPL-2.0-or-later
//! The checkpoint of the store from which memory is filled.

use std::collections::BTreeMap;

use vmem_store::{BackendKind, CheckpointName, Manifest, Store};
use vmem_store_source::Origin;

use crate::error::Error;

/// A memory that is tracked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory<'a> {
    /// Its name in the checkpoint that is made.
    pub(crate) name: &'a str,
    /// The number of its region.
    pub(crate) region: u64,
    pub(crate) pages: u64,
}

/// A checkpoint of the store from which memories are filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredOrigin {
    pub(crate) checkpoint: CheckpointName,
    /// The memories that are filled from it, each with its name there.
    pub(crate) names: BTreeMap<String, String>,
}

impl StoredOrigin {
    /// The checkpoint of this store from which one of these memories is filled, and all of them that are. A memory of which that is not proven
    /// is left out: a wrong checkpoint would be wrong pages.
    pub(crate) fn find(memories: &[Memory<'_>], store: &Store) -> Result<Option<Self>, Error> {
        Self::by(memories, store, &origins(memories))
    }

    fn by(memories: &[Memory<'_>], store: &Store, origins: &[Option<Origin>]) -> Result<Option<Self>, Error> {
        let of_store = |origin: &&Origin| origin.store == store.config().id;
        let Some(origin) = origins.iter().flatten().find(of_store) else {
            return Ok(None);
        };
        let manifest = match store.manifest(&origin.checkpoint) {
            Err(vmem_store::Error::NoCheckpoint(_)) => return Ok(None),
            manifest => manifest?,
        };
        let mut names = BTreeMap::new();
        for (memory, other) in memories.iter().zip(origins) {
            let of_it = other.as_ref().filter(|other| is_same(origin, other));
            let name = of_it.and_then(|other| other.memories.get(&memory.region));
            // Pages of one memory cannot be those of two.
            if let Some(name) =
                name.filter(|name| has(&manifest, name, memory.pages) && !names.values().any(|other| other == *name))
            {
                names.insert(memory.name.to_owned(), name.clone());
            }
        }
        let checkpoint = origin.checkpoint.clone();
        Ok((!names.is_empty()).then_some(Self { checkpoint, names }))
    }

    /// Which of these memories are filled from it now.
    pub(crate) fn fills(&self, memories: &[Memory<'_>], store: &Store) -> Vec<bool> {
        self.fills_by(memories, store, &origins(memories))
    }

    fn fills_by(&self, memories: &[Memory<'_>], store: &Store, origins: &[Option<Origin>]) -> Vec<bool> {
        let fills = |(memory, origin): (&Memory<'_>, &Option<Origin>)| {
            let origin = origin.as_ref().filter(|origin| origin.store == store.config().id);
            let origin = origin.filter(|origin| origin.checkpoint == self.checkpoint);
            let name = origin.and_then(|origin| origin.memories.get(&memory.region));
            name.is_some() && name == self.names.get(memory.name)
        };
        memories.iter().zip(origins).map(fills).collect()
    }

    /// Whether a checkpoint can refer to it that goes on from the one before, in which absent pages are those of `before`.
    pub(crate) fn goes_on(&self, before: Option<&Self>) -> bool {
        let has = |before: &Self, (name, other): (&String, &String)| before.names.get(name) == Some(other);
        before.is_some_and(|before| before.checkpoint == self.checkpoint && self.names.iter().all(|names| has(before, names)))
    }
}

/// What the processes say that serve the regions of these memories.
fn origins(memories: &[Memory<'_>]) -> Vec<Option<Origin>> {
    let regions: Vec<u64> = memories.iter().map(|memory| memory.region).collect();
    Origin::of_regions(&regions)
}

fn is_same(origin: &Origin, other: &Origin) -> bool {
    origin.store == other.store && origin.checkpoint == other.checkpoint
}

/// Whether the checkpoint has a memory of this name with so many pages.
fn has(manifest: &Manifest, name: &str, pages: u64) -> bool {
    let found = manifest.backend(name);
    found.is_some_and(|(_, backend)| backend.kind == BackendKind::Memory && backend.pages() == pages)
}

#[cfg(test)]
mod tests;
