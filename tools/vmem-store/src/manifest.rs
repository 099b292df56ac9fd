// SPDX-License-Identifier: GPL-2.0-or-later
//! Manifests: the object that makes a checkpoint one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::crypto::Crypto;
use crate::error::Error;
use crate::hex;
use crate::names::{CheckpointName, WriterId};
use crate::tree::{BRANCH_PAGES, MAX_INDEXES, MAX_PACKS, RecordRef, TABLE_PACKS};
use vmem_pages::PAGE_SIZE;

/// What the pages of a backend are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Memory of the guest.
    Memory,
    /// Other bytes: the device state, for example.
    Blob,
}

/// A memory of the guest, or other bytes that belong to the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its name: 1 to 255 bytes of text.
    pub name: String,
    /// What it is.
    pub kind: BackendKind,
    /// Its bytes; the last page of a blob may be a part.
    pub bytes: u64,
    /// Its branches, each 1 GiB; `None` is one of zeros.
    pub(crate) branches: Vec<Option<RecordRef>>,
}

impl Backend {
    /// Pages, the last of which may be a part.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE as u64)
    }
}

/// The checkpoint that another one was compared with when it was written. It need not exist any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub checkpoint: CheckpointName,
    /// Its root.
    #[serde(with = "hex")]
    pub root: [u8; 32],
}

/// What the writer of a checkpoint counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Statistics {
    /// Pages that were put with contents.
    pub put: u64,
    /// Of them: zeros.
    pub zero: u64,
    /// Of them: the same as the parent's, so not stored again.
    pub unchanged: u64,
    /// Of them: the same as another page of this checkpoint, so not stored again.
    pub duplicate: u64,
    /// Of them: stored.
    pub stored: u64,
    /// Of those stored: written in the parent, too.
    pub hot: u64,
    /// Bytes of the packs that this checkpoint wrote.
    pub pack_bytes: u64,
    /// Packs that it wrote.
    pub packs: u64,
    /// Bytes of its part of the index.
    pub index_bytes: u64,
    /// Milliseconds from the beginning to the manifest.
    pub milliseconds: u64,
}

/// Everything about a checkpoint but the contents of its pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Who wrote it.
    pub id: WriterId,
    /// The checkpoint.
    pub checkpoint: CheckpointName,
    /// 0, or how often it was rewritten.
    pub revision: u32,
    /// When the manifest was written, in milliseconds since 1970.
    pub created: u64,
    /// What it was compared with.
    pub parent: Option<Parent>,
    /// Its memories and blobs.
    pub backends: Vec<Backend>,
    /// Objects of the index, by the ordinals that records use; `None` is one that is not used any more.
    pub(crate) indexes: Vec<Option<WriterId>>,
    /// The parts of the table of packs.
    pub(crate) packs: Vec<RecordRef>,
    /// How many pages of each pack the checkpoint refers to.
    pub(crate) live: RecordRef,
    /// The hash that covers all of its contents.
    #[serde(with = "hex")]
    pub root: [u8; 32],
    /// Words by which retention can keep it.
    pub tags: BTreeSet<String>,
    /// What else the maker wants to keep with it: the names of disk snapshots of the same instant, how long the guest stood still, where
    /// absent pages are.
    pub labels: BTreeMap<String, String>,
    /// What its writer counted.
    pub statistics: Statistics,
}

/// Most backends of a checkpoint.
pub(crate) const MAX_BACKENDS: usize = 1024;
/// Most bytes of a name, a tag, or a label's key.
pub(crate) const MAX_TEXT: usize = 255;
/// Most tags, and most labels.
const MAX_WORDS: usize = 1024;

impl Manifest {
    /// The hash over the structure: backends with the hashes of their branches, and the tables of packs.
    pub(crate) fn compute_root(&self, crypto: &Crypto) -> [u8; 32] {
        let mut bytes = b"vmem checkpoint root 1\0".to_vec();
        bytes.extend_from_slice(&(self.backends.len() as u64).to_le_bytes());
        for backend in &self.backends {
            bytes.extend_from_slice(&(backend.name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(backend.name.as_bytes());
            bytes.push(match backend.kind {
                BackendKind::Memory => 0,
                BackendKind::Blob => 1,
            });
            bytes.extend_from_slice(&backend.bytes.to_le_bytes());
            for branch in &backend.branches {
                bytes.extend_from_slice(&branch.map_or([0; 16], |branch| branch.hash));
            }
        }
        bytes.extend_from_slice(&(self.packs.len() as u64).to_le_bytes());
        self.packs.iter().for_each(|part| bytes.extend_from_slice(&part.hash));
        crypto.hash32(&bytes)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Maps with text keys, numbers and text: JSON has all of them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Parses a manifest, and checks what readers rely on.
    pub(crate) fn decode(name: &str, bytes: &[u8], crypto: &Crypto) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| Error::damaged(name, error.to_string()))?;
        manifest.check().map_err(|what| Error::damaged(name, what))?;
        if manifest.compute_root(crypto) != manifest.root {
            return Err(Error::damaged(name, "its root is not that of its contents"));
        }
        Ok(manifest)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.backends.len() > MAX_BACKENDS {
            return Err(format!("it has more than {MAX_BACKENDS} backends"));
        }
        let mut names = BTreeSet::new();
        for backend in &self.backends {
            if backend.name.is_empty() || backend.name.len() > MAX_TEXT || !names.insert(&backend.name) {
                return Err(format!(
                    "a backend's name is empty, longer than {MAX_TEXT} bytes, or there twice"
                ));
            }
            if backend.bytes > 1 << 56 || backend.branches.len() as u64 != backend.pages().div_ceil(BRANCH_PAGES) {
                return Err(format!("backend {} has other branches than its size needs", backend.name));
            }
        }
        if self.indexes.len() > MAX_INDEXES {
            return Err(format!("it refers to more than {MAX_INDEXES} objects of the index"));
        }
        if self.packs.len() > MAX_PACKS as usize / TABLE_PACKS {
            return Err(format!("it refers to more than {MAX_PACKS} packs"));
        }
        let text = |text: &String| text.is_empty() || text.len() > MAX_TEXT;
        if self.tags.len() > MAX_WORDS
            || self.labels.len() > MAX_WORDS
            || self.tags.iter().any(text)
            || self.labels.keys().any(text)
        {
            return Err(format!(
                "it has more than {MAX_WORDS} tags or labels, or one is empty or longer than {MAX_TEXT} bytes"
            ));
        }
        if self.labels.values().any(|value| value.len() > 1 << 16) {
            return Err("a label is longer than 64 KiB".to_owned());
        }
        Ok(())
    }

    /// A backend by its name.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<(usize, &Backend)> {
        self.backends.iter().enumerate().find(|(_, backend)| backend.name == name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let record = |offset| RecordRef {
            index: 0,
            offset,
            length: 9,
            hash: [offset as u8; 16],
        };
        let mut manifest = Manifest {
            id: WriterId([1; 16]),
            checkpoint: CheckpointName {
                guest: "g".parse().unwrap(),
                sequence: 3,
            },
            revision: 0,
            created: 5,
            parent: None,
            backends: vec![Backend {
                name: "ram".to_owned(),
                kind: BackendKind::Memory,
                bytes: 3 << 30,
                branches: vec![Some(record(1)), None, Some(record(2))],
            }],
            indexes: vec![None, Some(WriterId([1; 16]))],
            packs: vec![record(3)],
            live: record(4),
            root: [0; 32],
            tags: BTreeSet::new(),
            labels: BTreeMap::new(),
            statistics: Statistics::default(),
        };
        manifest.root = manifest.compute_root(&Crypto::new(None));
        manifest
    }

    #[test]
    fn manifest_comes_back_and_its_root_covers_the_contents() {
        let crypto = Crypto::new(None);
        let whole = manifest();
        assert_eq!(Manifest::decode("m", &whole.encode(), &crypto).unwrap(), whole);
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut changed = whole.clone();
            change(&mut changed);
            Manifest::decode("m", &changed.encode(), &crypto).unwrap_err();
        };
        refused(&|manifest| manifest.backends[0].branches[0] = None);
        refused(&|manifest| manifest.backends[0].branches.swap(0, 2));
        refused(&|manifest| manifest.backends[0].bytes += 4096);
        refused(&|manifest| manifest.backends[0].name.clear());
        refused(&|manifest| manifest.packs.clear());
        refused(&|manifest| manifest.backends.push(manifest.backends[0].clone()));
    }

    proptest! {
        #[test]
        fn changed_text_is_a_manifest_or_an_error(at: prop::sample::Index, to: u8) {
            let mut bytes = manifest().encode();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = Manifest::decode("m", &bytes, &Crypto::new(None));
        }
    }
}
