// SPDX-License-Identifier: GPL-2.0-or-later
//! Deletes what has had no reference for long enough.

use std::collections::{BTreeMap, BTreeSet};

use super::{GcOptions, GcReport, RUNNING, Tombstones, mark::Marked, tombstones_prefix};
use crate::base::Base;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::names::{self, CHECKPOINTS, CheckpointName, LEASES, ORDERS, WriterId, parse_marker};
use crate::objects::{Part, Put};
use crate::order;

/// Names of a list, at most: a list stays far below the limit of an object.
const MAX_NAMES: usize = 100_000;

/// The objects that nothing refers to, with their sizes.
fn garbage(marked: &Marked) -> BTreeMap<String, u64> {
    let mut garbage = BTreeMap::new();
    for (id, generations) in &marked.packs {
        let newest = generations.last_key_value().map(|(generation, _)| *generation);
        let is_used = marked.used.contains_key(id) || marked.holders.contains(&id.writer);
        for (generation, size) in generations {
            if !is_used || Some(*generation) != newest {
                garbage.insert(id.object(*generation), *size);
            }
        }
    }
    for (writer, size) in &marked.indexes {
        if !marked.used_indexes.contains(writer) && !marked.holders.contains(writer) {
            garbage.insert(names::index(*writer), *size);
        }
    }
    for name in &marked.ended_leases {
        garbage.insert(name.clone(), 0);
    }
    garbage
}

/// What is of no use at once, and was never anybody's data.
fn useless(base: &Base, marked: &Marked) -> Result<Vec<String>, Error> {
    let replaced = marked.guests.values().flat_map(|listing| &listing.replaced);
    let mut useless: Vec<String> = replaced.map(names::ManifestName::object).collect();
    // The markers and orders first: whose checkpoint is not there after them has none. `marked` is too old for that.
    let markers = base.list(CHECKPOINTS)?;
    let orders = base.list(ORDERS)?;
    let guests = base.catalog(None)?;
    let exists = |name: &CheckpointName| {
        guests
            .get(&name.guest)
            .is_some_and(|listing| listing.manifests.contains_key(&name.sequence))
    };
    for meta in markers {
        let used = parse_marker(&meta.name, ".used");
        let is_old = |name: CheckpointName| {
            guests
                .get(&name.guest)
                .is_some_and(|listing| name.sequence + 1 < listing.next())
        };
        let is_protection_of_none = parse_marker(&meta.name, ".protected").is_some_and(|name| !exists(&name));
        if used.is_some_and(is_old) || is_protection_of_none {
            useless.push(meta.name);
        }
    }
    for meta in orders {
        if order::parse(&meta.name).is_some_and(|name| !exists(&name)) {
            useless.push(meta.name);
        }
    }
    useless.extend(base.list("probe/")?.into_iter().map(|meta| meta.name));
    Ok(useless)
}

pub(super) fn sweep(base: &Base, options: &GcOptions, marked: &Marked, report: &mut GcReport) -> Result<(), Error> {
    let garbage = garbage(marked);
    let now = base.now();
    let grace = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
    let mut known = BTreeSet::new();
    let mut due = Vec::new();
    let mut old_lists = Vec::new();
    for meta in base
        .list(tombstones_prefix())?
        .into_iter()
        .filter(|meta| meta.name != RUNNING)
    {
        let object = match base.get(&meta.name, Part::All(Kind::Tombstones.limit())) {
            Err(error) if error.is_not_found() => continue,
            object => object?,
        };
        let list = unwrap(Kind::Tombstones, &meta.name, &object.bytes, &Seal::Store(&base.crypto));
        let list = list.and_then(|body| {
            serde_json::from_slice::<Tombstones>(&body).map_err(|error| Error::damaged(&meta.name, error.to_string()))
        });
        match list {
            Ok(list) if now >= list.created.saturating_add(grace) => {
                due.extend(list.names);
                old_lists.push(meta.name);
            }
            Ok(list) => known.extend(list.names),
            // What a damaged list named is found again, and waits once more.
            Err(Error::Damaged { name, what }) => {
                report.problems.push(format!("{name} is damaged: {what}"));
                old_lists.push(meta.name);
            }
            Err(error) => return Err(error),
        }
    }
    let mut fresh: Vec<String> = garbage
        .keys()
        .filter(|name| !known.contains(*name) && !due.contains(name))
        .cloned()
        .collect();
    if grace == 0 {
        due.append(&mut fresh);
    }
    due.sort_unstable();
    due.dedup();
    // Only what nothing refers to now, too; and never anything but packs, parts of indexes and leases.
    due.retain(|name| garbage.contains_key(name));
    debug_assert!(due.iter().all(|name| {
        [names::PACKS, names::INDEXES, LEASES]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    }));
    for name in garbage.keys().filter(|name| due.binary_search(name).is_err()) {
        report.waiting += 1;
        report.waiting_bytes += garbage.get(name).copied().unwrap_or(0);
    }
    report.deleted = due.len() as u64;
    report.deleted_bytes = due.iter().filter_map(|name| garbage.get(name)).sum();
    if options.dry_run {
        return Ok(());
    }
    for names in fresh.chunks(MAX_NAMES) {
        let list = Tombstones {
            created: now,
            names: names.to_vec(),
        };
        let name = format!("{}{now:013}-{}.tomb", tombstones_prefix(), WriterId::new()?);
        let object = wrap(
            Kind::Tombstones,
            &name,
            &serde_json::to_vec(&list).unwrap_or_default(),
            &Seal::Store(&base.crypto),
        )?;
        base.put(&name, &object, Put::New)?;
    }
    for name in due.iter().chain(&useless(base, marked)?).chain(&old_lists) {
        base.delete(name)?;
    }
    let swept = base.objects.sweep(options.grace);
    swept.map(drop).map_err(|cause| Error::Object {
        action: "delete",
        name: "unfinished files".to_owned(),
        cause,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::super::mark::mark;
    use super::*;
    use crate::objects::Memory;
    use crate::{CommitOptions, InitOptions, OpenOptions, Store, WriteOptions};

    #[test]
    fn protection_of_a_checkpoint_that_came_after_the_marking_stays() {
        let store = Store::init(Arc::new(Memory::new()), &InitOptions::default(), OpenOptions::default()).unwrap();
        let marked = mark(&store.base).unwrap();
        let guest = "guest0".parse().unwrap();
        let writer = store
            .begin(&guest, None, &[("ram".to_owned(), 4096)], &WriteOptions::default())
            .unwrap();
        writer.put_zero(0, vmem_pages::PageRange::from_pgoff(0, 1).unwrap()).unwrap();
        let checkpoint = writer.commit(CommitOptions::default()).unwrap().checkpoint;
        store.protect(&checkpoint, true).unwrap();
        sweep(&store.base, &GcOptions::default(), &marked, &mut GcReport::default()).unwrap();
        assert!(matches!(store.remove(&checkpoint), Err(Error::Protected(_))));
    }
}
