// SPDX-License-Identifier: GPL-2.0-or-later
//! What is referred to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::base::{Base, Listing};
use crate::error::Error;
use crate::image::Image;
use crate::leaf::Entry;
use crate::lease;
use crate::manifest::Manifest;
use crate::names::{GuestName, INDEXES, PACKS, PackId, WriterId, parse_index};
use crate::objects::ObjectMeta;
use crate::pack::Live;
use crate::tree::PackInfo;

/// A pack that is referred to.
pub(super) struct Used {
    pub(super) info: PackInfo,
    /// A bit for each page.
    words: Vec<u64>,
}

impl Used {
    fn new(info: PackInfo) -> Self {
        Self {
            info,
            words: vec![0; info.pages.div_ceil(64) as usize],
        }
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.words
            .get(number as usize / 64)
            .is_some_and(|word| (word >> (number % 64)) & 1 == 1)
    }

    pub(super) fn live(&self) -> Live {
        Live::of(self.info.pages, |number| self.contains(number))
    }
}

/// All objects, and what of them is referred to.
pub(super) struct Marked {
    /// The generations of each pack that are there, with their sizes.
    pub(super) packs: BTreeMap<PackId, BTreeMap<u32, u64>>,
    pub(super) indexes: BTreeMap<WriterId, u64>,
    pub(super) used: HashMap<PackId, Used>,
    pub(super) used_indexes: HashSet<WriterId>,
    /// Who writes at the moment: what they wrote is referred to by nothing yet.
    pub(super) holders: BTreeSet<WriterId>,
    pub(super) ended_leases: BTreeSet<String>,
    pub(super) guests: BTreeMap<GuestName, Listing>,
    pub(super) roots: u64,
}

/// Reads everything that refers to something. The order matters: what is listed first existed before the leases were read, those before the
/// manifests, and the manifests before the leases were read again.
pub(super) fn mark(base: &Arc<Base>) -> Result<Marked, Error> {
    let mut packs: BTreeMap<PackId, BTreeMap<u32, u64>> = BTreeMap::new();
    for ObjectMeta { name, size, .. } in base.list(PACKS)? {
        if let Some((id, generation)) = PackId::parse(&name) {
            packs.entry(id).or_default().insert(generation, size);
        }
    }
    let listed = base.list(INDEXES)?;
    let indexes = listed
        .into_iter()
        .filter_map(|meta| parse_index(&meta.name).map(|writer| (writer, meta.size)))
        .collect();
    let before = lease::read(base)?;
    let guests = base.catalog(None)?;
    let mut roots = Vec::new();
    for listing in guests.values() {
        for name in listing.manifests.values().chain(&listing.replaced) {
            match base.read_manifest(name) {
                Err(error) if error.is_not_found() => {}
                manifest => roots.push(manifest?),
            }
        }
    }
    let after = lease::read(base)?;
    let mut marked = Marked {
        packs,
        indexes,
        used: HashMap::new(),
        used_indexes: HashSet::new(),
        holders: before.holders.into_iter().chain(after.holders).collect(),
        ended_leases: after.ended.into_iter().collect(),
        guests,
        roots: 0,
    };
    roots.extend(before.pinned);
    roots.extend(after.pinned);
    let mut seen = HashSet::new();
    for manifest in roots {
        marked.roots += 1;
        marked.add(base, manifest, &mut seen)?;
    }
    Ok(marked)
}

impl Marked {
    /// Marks what a checkpoint refers to. `seen` are records that other checkpoints share: those that share a record mean the same packs.
    fn add(&mut self, base: &Arc<Base>, manifest: Manifest, seen: &mut HashSet<(WriterId, u64)>) -> Result<(), Error> {
        self.used_indexes.extend(manifest.indexes.iter().flatten());
        let image = Image::new(base.clone(), manifest);
        for backend in 0..image.backends().len() {
            for branch in image.backends()[backend].branches.iter().flatten() {
                // The branch's object is in the manifest's list, as that of every record; a wrong ordinal is an error here.
                image.index(branch.index)?;
            }
            for leaf in 0..image.leaves_of(backend) {
                let Some(record) = image.leaf_record(backend, leaf)? else {
                    continue;
                };
                if !seen.insert((image.index(record.index)?, record.offset)) {
                    continue;
                }
                for entry in &image.leaf(backend, leaf)?.0 {
                    let Entry::Data { pack, number } = *entry else { continue };
                    let info = image.pack_info(pack)?;
                    let used = self.used.entry(info.id).or_insert_with(|| Used::new(info));
                    if number >= info.pages || used.info != info {
                        return Err(Error::damaged(
                            format!("checkpoint {}", image.manifest().checkpoint),
                            "it refers to a page that a pack never had",
                        ));
                    }
                    used.words[number as usize / 64] |= 1 << (number % 64);
                }
            }
        }
        Ok(())
    }
}
