// SPDX-License-Identifier: GPL-2.0-or-later
//! Which checkpoint has the absent pages of a memory, and what is proof of it.

use std::sync::Arc;

use tempfile::TempDir;
use vmem::PageRange;
use vmem_store::objects::Directory;
use vmem_store::{CommitOptions, InitOptions, OpenOptions, WriteOptions, WriterId};

use super::*;

const PAGES: u64 = 10;

/// A store with checkpoint guest0@1, which has memories ram and vga.
fn store() -> (TempDir, Store, CheckpointName) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Arc::new(Directory::new(directory.path().join("store")));
    let store = Store::init(place, &InitOptions::default(), OpenOptions::default()).expect("a store");
    let memories = ["ram", "vga"].map(|name| (name.to_owned(), PAGES * 4096));
    let guest = "guest0".parse().expect("a name");
    let writer = store
        .begin(&guest, None, &memories, &WriteOptions::default())
        .expect("a writer");
    for backend in 0..2 {
        let pages = PageRange::of_pages(PAGES).expect("pages");
        writer.put_zero(backend, pages).expect("room");
    }
    let made = writer.commit(CommitOptions::default()).expect("a checkpoint");
    (directory, store, made.checkpoint)
}

fn memory(name: &str, region: u64) -> Memory<'_> {
    Memory {
        name,
        region,
        pages: PAGES,
    }
}

fn origin(store: WriterId, checkpoint: &CheckpointName) -> Origin {
    Origin {
        store,
        checkpoint: checkpoint.clone(),
        memories: BTreeMap::from([(3, "ram".to_owned()), (4, "vga".to_owned())]),
    }
}

fn names(names: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, other): &(&str, &str)| ((*name).to_owned(), (*other).to_owned());
    names.iter().map(owned).collect()
}

fn gone(checkpoint: &CheckpointName) -> CheckpointName {
    CheckpointName {
        sequence: checkpoint.sequence + 1,
        ..checkpoint.clone()
    }
}

#[test]
fn origin_has_each_memory_that_is_filled_from_it_by_the_number_of_its_region() {
    let (_directory, store, checkpoint) = store();
    let said = Some(origin(store.config().id, &checkpoint));
    let found = |memories: &[Memory<'_>]| {
        let said = vec![said.clone(); memories.len()];
        let found = StoredOrigin::by(memories, &store, &said).expect("no error");
        found.map(|found| {
            assert_eq!(found.checkpoint, checkpoint);
            found.names
        })
    };
    let both = [memory("ram", 3), memory("vga", 4)];
    assert_eq!(found(&both), Some(names(&[("ram", "ram"), ("vga", "vga")])));
    assert_eq!(found(&[memory("guest0.ram", 3)]), Some(names(&[("guest0.ram", "ram")])));
    // The number says which memory it is, and not the name.
    assert_eq!(found(&[memory("ram", 4)]), Some(names(&[("ram", "vga")])));
    // Another memory is waited for, and so is one that claims the pages of the first.
    assert_eq!(found(&[memory("ram", 3), memory("other", 5)]), Some(names(&[("ram", "ram")])));
    assert_eq!(found(&[memory("ram", 3), memory("twin", 3)]), Some(names(&[("ram", "ram")])));
    assert_eq!(found(&[memory("ram", 5)]), None);
    assert_eq!(found(&[]), None);
}

#[test]
fn memory_without_proof_has_no_origin() {
    let (_directory, store, checkpoint) = store();
    let memories = [memory("ram", 3), memory("vga", 4)];
    let said = origin(store.config().id, &checkpoint);
    let by = |said: &[Option<Origin>]| StoredOrigin::by(&memories, &store, said).expect("no error");
    assert_eq!(by(&[None, None]), None);
    let other_store = "000102030405060708090a0b0c0d0e0f".parse().expect("an ID");
    let other = Some(origin(other_store, &checkpoint));
    assert_eq!(by(&[other.clone(), None]), None);
    let removed = Some(origin(store.config().id, &gone(&checkpoint)));
    assert_eq!(by(&[removed.clone(), None]), None);
    let of = |said: &[Option<Origin>]| by(said).map(|found| found.names);
    for elsewhere in [None, other, removed] {
        assert_eq!(of(&[Some(said.clone()), elsewhere]), Some(names(&[("ram", "ram")])));
    }
    let larger = Memory {
        pages: PAGES + 1,
        ..memories[0]
    };
    assert_eq!(StoredOrigin::by(&[larger], &store, &[Some(said)]).expect("no error"), None);
}

#[test]
fn after_the_instant_only_the_same_origin_fills_a_memory() {
    let (_directory, store, checkpoint) = store();
    let memories = [memory("ram", 3), memory("vga", 4)];
    let said = Some(origin(store.config().id, &checkpoint));
    let of_both = vec![said.clone(); 2];
    let found = StoredOrigin::by(&memories, &store, &of_both).expect("no error").expect("one");
    let fills = |said: &[Option<Origin>]| found.fills_by(&memories, &store, said);
    assert_eq!(fills(&of_both), [true, true]);
    assert_eq!(fills(&[None, said.clone()]), [false, true]);
    let other_store = "000102030405060708090a0b0c0d0e0f".parse().expect("an ID");
    let others = [
        origin(other_store, &checkpoint),
        origin(store.config().id, &gone(&checkpoint)),
        Origin {
            memories: BTreeMap::from([(3, "vga".to_owned()), (4, "ram".to_owned())]),
            ..origin(store.config().id, &checkpoint)
        },
    ];
    for other in others {
        assert_eq!(fills(&[Some(other), said.clone()]), [false, true]);
    }
    // A memory that was not found before.
    let mut less = found.clone();
    less.names.remove("vga");
    assert_eq!(less.fills_by(&memories, &store, &of_both), [true, false]);
}

#[test]
fn next_checkpoint_refers_to_the_origin_of_the_one_before_and_to_no_other() {
    let (_directory, _store, checkpoint) = store();
    let origin = |checkpoint: &CheckpointName, pairs: &[(&str, &str)]| StoredOrigin {
        checkpoint: checkpoint.clone(),
        names: names(pairs),
    };
    let before = origin(&checkpoint, &[("ram", "ram"), ("vga", "vga")]);
    assert!(before.goes_on(Some(&before)));
    // One of them is complete meanwhile.
    assert!(origin(&checkpoint, &[("ram", "ram")]).goes_on(Some(&before)));
    assert!(!before.goes_on(Some(&origin(&checkpoint, &[("ram", "ram")]))));
    assert!(!origin(&checkpoint, &[("ram", "vga")]).goes_on(Some(&before)));
    assert!(!origin(&gone(&checkpoint), &[("ram", "ram")]).goes_on(Some(&before)));
    assert!(!before.goes_on(None));
}
