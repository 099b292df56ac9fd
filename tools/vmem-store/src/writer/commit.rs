// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of a checkpoint: its part of the index, and the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use super::{CommitOptions, Plan, Session, Target, Writer, overlay::Slot};
use crate::envelope::{Kind, Seal, wrap};
use crate::error::Error;
use crate::image::Image;
use crate::leaf::{Entry, LEAF_PAGES, Leaf};
use crate::manifest::{Backend, Manifest, Parent, Statistics};
use crate::names::{self, ManifestName};
use crate::objects::{ObjectError, Put};
use crate::record::{IndexWriter, RecordKind};
use crate::tree::{BRANCH_LEAVES, BRANCH_PAGES, Branch, MAX_PACK_PAGES, PackTable, RecordRef, TABLE_PACKS, encode_live};

/// Objects of the index that a new checkpoint refers to, at most. The leaves of those with the fewest are written again.
const KEPT_INDEXES: usize = 15;
/// Attempts to find a number that no other writer takes at the same time.
const ATTEMPTS: u32 = 1000;

/// The index of the new checkpoint as far as it is made.
struct Build<'a> {
    writer: &'a Writer,
    session: &'a Session,
    parent: Option<&'a Image>,
    out: IndexWriter,
    /// The ordinal of the new object.
    own: u32,
    /// Objects that the new checkpoint is not to refer to.
    evicted: BTreeSet<u32>,
    live: Vec<i64>,
    /// Objects that the new checkpoint refers to.
    used: BTreeSet<u32>,
}

impl Build<'_> {
    fn append(&mut self, kind: RecordKind, plain: Vec<u8>) -> Result<RecordRef, Error> {
        self.used.insert(self.own);
        self.out.append(kind, self.own, plain, &self.writer.base.crypto)
    }

    fn keep(&mut self, record: RecordRef) -> RecordRef {
        self.used.insert(record.index);
        record
    }

    fn count(&mut self, entry: Entry, change: i64) {
        if let Entry::Data { pack, .. } = entry {
            if let Some(live) = self.live.get_mut(pack as usize) {
                *live += change;
            }
        }
    }

    /// Pages of the parent's backend that pages of the new one can be.
    fn inherited(&self, plan: &Plan) -> (Option<usize>, u64) {
        let parent = plan.parent.filter(|_| plan.inherits);
        let pages = parent
            .and_then(|at| self.parent?.backends().get(at))
            .map_or(0, Backend::pages);
        (parent, pages)
    }

    fn leaf(&mut self, backend: usize, plan: &Plan, leaf: u64) -> Result<Option<RecordRef>, Error> {
        let (parent, inherited) = self.inherited(plan);
        let first = leaf * LEAF_PAGES;
        let old = match (parent, self.parent) {
            (Some(at), Some(image)) if first < inherited => Some(image.leaf(at, leaf)?),
            _ => None,
        };
        let mut entries = vec![Entry::Zero; LEAF_PAGES as usize];
        for (at, entry) in entries.iter_mut().enumerate() {
            let pgoff = first + at as u64;
            let known = old
                .as_ref()
                .filter(|_| pgoff < inherited)
                .and_then(|leaf| leaf.0.get(at).copied());
            if pgoff < plan.pages() {
                *entry = match (self.session.overlay.get(backend, pgoff), known) {
                    (Slot::Known(entry), _) => entry,
                    (Slot::Untouched, Some(entry)) => entry,
                    (Slot::Untouched, None) | (Slot::Pending, _) => {
                        return Err(Error::Incomplete {
                            backend: plan.name.clone(),
                            page: pgoff,
                        });
                    }
                };
                self.count(*entry, 1);
            }
            if let Some(known) = known {
                self.count(known, -1);
            }
        }
        let new = Leaf(entries);
        if new.is_zero() {
            Ok(None)
        } else {
            self.append(RecordKind::Leaf, new.encode()).map(Some)
        }
    }

    fn branch(&mut self, backend: usize, plan: &Plan, branch: u64) -> Result<Option<RecordRef>, Error> {
        let (parent, inherited) = self.inherited(plan);
        let leaves = branch * BRANCH_LEAVES..((branch + 1) * BRANCH_LEAVES).min(plan.pages().div_ceil(LEAF_PAGES));
        // A leaf can stay if no page of it was put, and the sizes of both backends cut it alike.
        let whole = |leaf: u64| {
            let end = (leaf + 1) * LEAF_PAGES;
            let is_cut_alike = end.min(plan.pages()) == end.min(inherited);
            parent.is_some() && is_cut_alike && !self.session.overlay.has(backend, leaf)
        };
        let stays: Vec<bool> = leaves.clone().map(whole).collect();
        let old = match (parent, self.parent) {
            (Some(at), Some(image)) if branch * BRANCH_PAGES < inherited => Some((at, image, image.branch(at, branch)?)),
            _ => None,
        };
        let old_leaf = |leaf: u64| {
            old.as_ref()
                .and_then(|(_, _, old)| old.0.get((leaf % BRANCH_LEAVES) as usize).copied().flatten())
        };
        if let Some((at, image, old_branch)) = &old {
            let record = image.backends()[*at].branches.get(branch as usize).copied().flatten();
            let is_evicted = record.is_some_and(|record| self.evicted.contains(&record.index))
                || old_branch.0.iter().flatten().any(|leaf| self.evicted.contains(&leaf.index));
            let is_cut_alike = old_branch.0.len() as u64 <= leaves.end - leaves.start;
            if stays.iter().all(|stays| *stays) && is_cut_alike && !is_evicted {
                old_branch.0.iter().flatten().for_each(|leaf| {
                    self.keep(*leaf);
                });
                return Ok(record.map(|record| self.keep(record)));
            }
        }
        let mut new = Vec::with_capacity(stays.len());
        for (leaf, stays) in leaves.zip(stays) {
            let record = match old_leaf(leaf) {
                record if stays && record.is_none_or(|record| !self.evicted.contains(&record.index)) => {
                    record.map(|record| self.keep(record))
                }
                _ => self.leaf(backend, plan, leaf)?,
            };
            new.push(record);
        }
        if new.iter().all(Option::is_none) {
            return Ok(None);
        }
        let branch = Branch(new);
        self.append(RecordKind::Branch, branch.encode()).map(Some)
    }

    /// What the parent has and the new checkpoint does not take over is not counted any more.
    fn forget_others(&mut self, plans: &[Arc<Plan>]) -> Result<(), Error> {
        let Some(parent) = self.parent else { return Ok(()) };
        for at in 0..parent.backends().len() {
            let heir = plans.iter().find(|plan| plan.inherits && plan.parent == Some(at));
            // Leaves that the heir has, too, were counted with it.
            let first = heir.map_or(0, |plan| plan.pages().div_ceil(LEAF_PAGES));
            for leaf in first..parent.leaves_of(at) {
                if parent.leaf_record(at, leaf)?.is_some() {
                    parent.leaf(at, leaf)?.0.iter().for_each(|entry| self.count(*entry, -1));
                }
            }
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<(Vec<RecordRef>, RecordRef), Error> {
        let crypto_error =
            |pack: usize| Error::damaged("the checkpoint that is written", format!("pack {pack} is counted wrongly"));
        let mut table = self.session.table.clone();
        let mut live = Vec::with_capacity(table.len());
        for (at, (pack, count)) in table.iter_mut().zip(&self.live).enumerate() {
            // A page can stand for several: there may be more references than pages.
            live.push(u32::try_from(*count).map_err(|_| crypto_error(at))?);
            if *count == 0 {
                *pack = None;
            } else if pack.is_none_or(|pack| pack.pages > MAX_PACK_PAGES) {
                return Err(crypto_error(at));
            }
        }
        while table.last().is_some_and(Option::is_none) {
            table.pop();
            live.pop();
        }
        let old = self.parent.map(|parent| (parent.all_packs(), &parent.manifest().packs));
        let old_packs = old.as_ref().and_then(|(packs, _)| packs.as_ref().ok());
        let mut parts = Vec::new();
        for (part, packs) in table.chunks(TABLE_PACKS).enumerate() {
            let known = old
                .as_ref()
                .and_then(|(_, records)| records.get(part))
                .filter(|record| !self.evicted.contains(&record.index));
            let is_same = old_packs.and_then(|old| old.chunks(TABLE_PACKS).nth(part)) == Some(packs);
            parts.push(match known {
                Some(record) if is_same => self.keep(*record),
                _ => self.append(RecordKind::PackTable, PackTable(packs.to_vec()).encode())?,
            });
        }
        let live = self.append(RecordKind::Live, encode_live(&live))?;
        Ok((parts, live))
    }
}

/// The parent's objects of the index that are not referred to any more: all but those with the most records.
fn evict(parent: &Image) -> Result<BTreeSet<u32>, Error> {
    let mut records: BTreeMap<u32, u64> = BTreeMap::new();
    let mut count = |record: &RecordRef| *records.entry(record.index).or_default() += 1;
    for (at, backend) in parent.backends().iter().enumerate() {
        for branch in 0..parent.branches_of(at) {
            parent.branch(at, branch)?.0.iter().flatten().for_each(&mut count);
        }
        backend.branches.iter().flatten().for_each(&mut count);
    }
    parent.manifest().packs.iter().for_each(&mut count);
    let mut order: Vec<(u64, u32)> = records.into_iter().map(|(index, count)| (count, index)).collect();
    order.sort_unstable();
    let evicted = order.len().saturating_sub(KEPT_INDEXES);
    Ok(order.into_iter().take(evicted).map(|(_, index)| index).collect())
}

impl Writer {
    /// Writes the new checkpoint's part of the index, and makes its manifest.
    pub(super) fn write_index(&mut self, options: CommitOptions) -> Result<Manifest, Error> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.check()?;
        let parent = self.parent.as_ref();
        let evicted = parent.map_or(Ok(BTreeSet::new()), evict)?;
        let mut indexes = parent.map_or(Vec::new(), |parent| parent.manifest().indexes.clone());
        let own = indexes.iter().position(Option::is_none).unwrap_or(indexes.len());
        if own == indexes.len() {
            indexes.push(None);
        }
        indexes[own] = Some(self.id);
        let mut build = Build {
            writer: self,
            session: &session,
            parent,
            out: IndexWriter::new(self.id, &self.base.crypto)?,
            own: own as u32,
            evicted,
            live: session.live.iter().map(|live| i64::from(*live)).collect(),
            used: BTreeSet::new(),
        };
        let mut backends = Vec::new();
        for (at, plan) in plans.iter().enumerate() {
            let branches = (0..plan.pages().div_ceil(BRANCH_PAGES)).map(|branch| build.branch(at, plan, branch));
            backends.push(Backend {
                name: plan.name.clone(),
                kind: plan.kind,
                bytes: plan.bytes,
                branches: branches.collect::<Result<_, _>>()?,
            });
        }
        build.forget_others(&plans)?;
        let (packs, live) = build.tables()?;
        let Build { out, used, .. } = build;
        for (at, index) in indexes.iter_mut().enumerate() {
            if !used.contains(&(at as u32)) {
                *index = None;
            }
        }
        while indexes.last().is_some_and(Option::is_none) {
            indexes.pop();
        }
        let mut statistics = session.statistics;
        statistics.index_bytes = out.bytes().len() as u64;
        let mut manifest = Manifest {
            id: self.id,
            checkpoint: self.target.name(0),
            revision: 0,
            created: 0,
            parent: parent.map(|parent| Parent {
                checkpoint: parent.manifest().checkpoint.clone(),
                root: parent.manifest().root,
            }),
            backends,
            indexes,
            packs,
            live,
            root: [0; 32],
            tags: options.tags,
            labels: options.labels,
            statistics,
        };
        if let Target::Revision { of, revision } = &self.target {
            manifest.checkpoint = of.checkpoint.clone();
            manifest.revision = *revision;
            manifest.created = of.created;
            manifest.parent = of.parent.clone();
            manifest.tags = of.tags.clone();
            manifest.labels = of.labels.clone();
            // How the checkpoint was made; the index is another one.
            manifest.statistics = Statistics {
                index_bytes: statistics.index_bytes,
                ..of.statistics
            };
        }
        manifest.root = manifest.compute_root(&self.base.crypto);
        // Limits are checked when a checkpoint is written, not when it is needed.
        manifest.check().map_err(Error::TooLarge)?;
        self.base.put(&names::index(self.id), out.bytes(), Put::New)?;
        Ok(manifest)
    }

    /// Writes the manifest: the commit.
    pub(super) fn write_manifest(&self, mut manifest: Manifest) -> Result<Manifest, Error> {
        if let Target::Revision { .. } = &self.target {
            self.lease.check()?;
            return match self.create(&mut manifest)? {
                true => Ok(manifest),
                false => Err(Error::Policy(format!(
                    "checkpoint {} was rewritten by another program at the same time",
                    manifest.checkpoint
                ))),
            };
        }
        let mut sequence = self.base.listing(self.target.guest())?.next();
        for _ in 0..ATTEMPTS {
            self.lease.check()?;
            manifest.checkpoint.sequence = sequence;
            manifest.created = self.base.now();
            manifest.statistics.milliseconds = manifest.created.saturating_sub(self.begun);
            if self.create(&mut manifest)? {
                return Ok(manifest);
            }
            // The number is taken: by a writer that was faster, or a listing did not show it yet.
            sequence = self.base.listing(self.target.guest())?.next().max(sequence + 1);
        }
        Err(Error::Policy(format!(
            "no number is free for a checkpoint of guest {}",
            self.target.guest()
        )))
    }

    /// Creates the manifest under its name; whether nobody else had the name.
    fn create(&self, manifest: &mut Manifest) -> Result<bool, Error> {
        let name = ManifestName {
            checkpoint: manifest.checkpoint.clone(),
            revision: manifest.revision,
        };
        let object_name = name.object();
        let object = wrap(
            Kind::Manifest,
            &object_name,
            &manifest.encode(),
            &Seal::Store(&self.base.crypto),
        )?;
        match self.base.put(&object_name, &object, Put::New) {
            Err(Error::Object {
                cause: ObjectError::AlreadyExists,
                ..
            }) => Ok(false),
            put => put.map(|()| true),
        }
    }
}
