// SPDX-License-Identifier: GPL-2.0-or-later
//! The backends of a checkpoint that is written: their names and sizes, and what they have from the parent.

use std::collections::{BTreeMap, BTreeSet};

use vmem_pages::PAGE_SIZE;

use crate::error::Error;
use crate::manifest::{BackendKind, MAX_TEXT, Manifest};

/// A backend of the checkpoint that is written.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) kind: BackendKind,
    pub(super) bytes: u64,
    /// The parent's backend whose pages those are compared with that are put. No two backends have the same one.
    pub(super) parent: Option<usize>,
    /// Whether pages that are not put are the parent's.
    pub(super) inherits: bool,
}

impl Plan {
    /// Its pages; the last one may be there in part.
    pub(super) fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE as u64)
    }

    /// Memories, each with its name and bytes, and what they are called in the parent if that is another name.
    pub(super) fn of_memories(
        memories: &[(String, u64)],
        parent: Option<&Manifest>,
        parent_names: &BTreeMap<String, String>,
    ) -> Vec<Self> {
        let mut taken = BTreeSet::new();
        let mut plans = Vec::new();
        for (name, bytes) in memories {
            let is_renamed = parent_names.contains_key(name);
            let of_parent = parent_names.get(name).unwrap_or(name);
            let known = parent
                .and_then(|parent| parent.backend(of_parent))
                .filter(|(_, known)| known.kind == BackendKind::Memory)
                .map(|(at, _)| at)
                // One that has the name by chance gives way to the one that the caller says.
                .filter(|at| (is_renamed || !parent_names.values().any(|other| other == name)) && taken.insert(*at));
            plans.push(Self {
                name: name.clone(),
                kind: BackendKind::Memory,
                bytes: *bytes,
                parent: known,
                inherits: known.is_some(),
            });
        }
        plans
    }

    /// Those of a checkpoint that is written again: what is not put stays as it is.
    pub(super) fn again(of: &Manifest) -> Vec<Self> {
        let plans = of.backends.iter().enumerate().map(|(at, backend)| Self {
            name: backend.name.clone(),
            kind: backend.kind,
            bytes: backend.bytes,
            parent: Some(at),
            inherits: true,
        });
        plans.collect()
    }
}

/// Checks the names, of which none is there twice, and the sizes.
pub(super) fn check(plans: &[Plan]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    for plan in plans {
        check_name(&plan.name)?;
        if !names.insert(&plan.name) {
            return Err(Error::Name(format!("backend {} is there twice", plan.name)));
        }
        if plan.kind == BackendKind::Memory && (plan.bytes == 0 || plan.bytes % PAGE_SIZE as u64 != 0 || plan.bytes > 1 << 56) {
            return Err(Error::Range {
                backend: plan.name.clone(),
                what: format!("{} bytes are not whole pages, none, or more than 64 PiB", plan.bytes),
            });
        }
    }
    Ok(())
}

/// Checks the name of a backend.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty()
        || name.len() > MAX_TEXT
        || name.contains('/')
        || name.chars().any(char::is_control)
        || name.starts_with('.')
    {
        return Err(Error::Name(format!(
            "{name:?} is no name of a backend: 1 to {MAX_TEXT} bytes without '/' and control characters, not beginning with '.'"
        )));
    }
    Ok(())
}
