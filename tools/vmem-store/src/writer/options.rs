// SPDX-License-Identifier: GPL-2.0-or-later
//! What a caller chooses for a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::Compression;

/// How a checkpoint is written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteOptions {
    /// How its pages are compressed; as the store says, if not given.
    pub compression: Option<Compression>,
    /// Packs that are on their way at once. Each takes memory: a store's `pack_bytes`, and as much again for one more that waits.
    pub uploads: usize,
    /// Whether pages with the same contents in this checkpoint are stored once.
    pub share: bool,
    /// Who writes, for the lease: a person reads it.
    pub holder: String,
    /// The parent's names of memories that have another name in this checkpoint.
    pub parent_names: BTreeMap<String, String>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: None,
            uploads: 2,
            share: true,
            holder: format!("writer, process {}", std::process::id()),
            parent_names: BTreeMap::new(),
        }
    }
}

/// What a checkpoint gets when it is committed.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Words by which retention can keep it.
    pub tags: BTreeSet<String>,
    /// What else belongs to it: see [`Manifest::labels`](crate::Manifest::labels).
    pub labels: BTreeMap<String, String>,
}
