// SPDX-License-Identifier: GPL-2.0
//! What checkpoints cost: bytes, objects and requests.

use std::sync::Arc;
use std::time::Duration;

use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::*;
use crate::objects::{Directory, Objects};
use crate::store::{InitOptions, Store};
use crate::{Compression, GcOptions, Policy, SquashOptions, WriteOptions};

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

/// A guest of `size` pages, of which about 36 % are not zero, and writes as they were measured: runs of 3.2 pages on average, two thirds of
/// them in a tenth of the memory.
struct Load {
    guest: Guest,
    numbers: Numbers,
    version: u64,
}

impl Load {
    fn new(size: usize) -> Self {
        let mut guest = Guest::new(size);
        guest
            .pages
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| at % 25 < 9)
            .for_each(|(at, seed)| *seed = at as u64 + 1);
        Self {
            guest,
            numbers: Numbers(0x1234_5678_9abc_def1),
            version: 1,
        }
    }

    /// Writes about so many pages, and gives them in order.
    fn write(&mut self, pages: usize) -> Vec<u64> {
        let size = self.guest.pages.len() as u64;
        let mut written = std::collections::BTreeSet::new();
        while written.len() < pages {
            let within = if self.numbers.next(3) > 0 { size / 10 } else { size };
            let first = self.numbers.next(within);
            let count = if self.numbers.next(2) == 0 {
                1
            } else {
                1 + self.numbers.next(9)
            };
            written.extend(first..(first + count).min(size));
        }
        self.version += 1;
        for at in &written {
            self.guest.pages[*at as usize] = (self.version << 32) | *at;
        }
        written.into_iter().collect()
    }
}

/// Writes the next checkpoint, and gives its number.
fn next(store: &Store, load: &Load, dirty: &[u64], parent: Option<u64>) -> u64 {
    let memories = [("ram".to_owned(), (load.guest.pages.len() * PAGE_SIZE) as u64)];
    let writer = store
        .begin(&guest(), parent.map(name).as_ref(), &memories, &WriteOptions::default())
        .unwrap();
    for at in dirty {
        writer
            .put_pages(0, PageIndex::new(*at).unwrap(), &contents(load.guest.pages[*at as usize]))
            .unwrap();
    }
    writer.commit(Default::default()).unwrap().checkpoint.sequence
}

fn all(load: &Load) -> Vec<u64> {
    (0..load.guest.pages.len() as u64).collect()
}

/// Bytes that all increments stored for each byte of their dirty pages.
fn increments(size: usize, dirty: usize, count: u64) -> f64 {
    let place = place_with(&InitOptions {
        compression: Compression::None,
        ..InitOptions::default()
    });
    let mut load = Load::new(size);
    let mut last = next(&place.store, &load, &all(&load), None);
    let before = place.memory.bytes("");
    let mut written = 0;
    for _ in 0..count {
        let pages = load.write(dirty);
        written += (pages.len() * PAGE_SIZE) as u64;
        last = next(&place.store, &load, &pages, Some(last));
    }
    (place.memory.bytes("") - before) as f64 / written as f64
}

#[test]
fn increment_takes_the_bytes_of_its_pages_and_two_percent() {
    let ratio = increments(16_384, 390, 20);
    assert!(ratio <= 1.02, "{ratio}");
}

#[test]
fn look_up_takes_as_many_requests_from_the_last_checkpoint_as_from_the_first() {
    let place = place();
    let mut load = Load::new(3000);
    let mut last = next(&place.store, &load, &all(&load), None);
    for _ in 1..60 {
        let dirty = load.write(20);
        last = next(&place.store, &load, &dirty, Some(last));
    }
    let requests = |sequence: u64, at: u64| {
        let before = place.memory.counts();
        let image = place.store.image(&name(sequence)).unwrap();
        image.lookup(0, PageIndex::new(at).unwrap()).unwrap();
        let looked = place.memory.counts();
        let mut page = [0; PAGE_SIZE];
        image.read_page(0, PageIndex::new(at).unwrap(), &mut page).unwrap();
        let read = place.memory.counts();
        (
            (looked.gets + looked.lists) - (before.gets + before.lists),
            read.gets - looked.gets,
        )
    };
    for at in [0, 1, 1007, 2999 - 2999 % 25] {
        let (lookup, read) = requests(1, at);
        let (lookup_last, read_last) = requests(last, at);
        // The listing, the manifest, and what holds the branch and the leaf; then the table of packs, the pack's tables and the frame.
        assert!(lookup <= 4 && lookup_last <= 4, "{lookup} {lookup_last}");
        assert!(read <= 3 && read_last <= 3, "{read} {read_last}");
    }
    let manifest = place.store.manifest(&name(last)).unwrap();
    assert!(
        manifest.indexes.iter().flatten().count() <= 16,
        "a checkpoint refers to few objects of the index"
    );
}

#[test]
fn small_checkpoint_is_four_objects() {
    let place = place_with(&InitOptions::default());
    let mut load = Load::new(2000);
    let first = next(&place.store, &load, &all(&load), None);
    let before = place.memory.counts();
    let dirty = load.write(30);
    next(&place.store, &load, &dirty, Some(first));
    let after = place.memory.counts();
    // One or two packs, the index and the manifest; and the lease with its copy of the parent's manifest, which are deleted.
    assert!(after.puts - before.puts <= 6, "{} puts", after.puts - before.puts);
    assert_eq!(after.deletes - before.deletes, 2);
}

#[test]
fn checkpoint_refers_to_few_objects_of_the_index_however_many_wrote_its_leaves() {
    let place = place();
    let memories = [("ram".to_owned(), (50 * 512 * PAGE_SIZE) as u64)];
    let mut last = None;
    for leaf in 0..50 {
        let writer = place
            .store
            .begin(&guest(), last.as_ref(), &memories, &WriteOptions::default())
            .unwrap();
        if last.is_none() {
            writer.put_zero(0, range(0, 50 * 512)).unwrap();
        } else {
            writer
                .put_pages(0, PageIndex::new(leaf * 512).unwrap(), &contents(leaf))
                .unwrap();
        }
        last = Some(writer.commit(Default::default()).unwrap().checkpoint);
    }
    let image = place.store.image(&last.unwrap()).unwrap();
    let indexes = image.manifest().indexes.iter().flatten().count();
    assert!(indexes <= 16, "{indexes}");
    let mut page = [0; PAGE_SIZE];
    for leaf in 1..50 {
        image.read_page(0, PageIndex::new(leaf * 512).unwrap(), &mut page).unwrap();
        assert!(page[..] == contents(leaf));
    }
}

/// Restores a checkpoint in the order that suits the store. Reads, and bytes for each byte of its pages.
fn restore(place: &Place, sequence: u64) -> (u64, f64) {
    let before = place.memory.counts();
    let image = place.store.image(&name(sequence)).unwrap();
    let mut page = [0; PAGE_SIZE];
    let mut pages = 0;
    for touch in image.plan(&[]).unwrap() {
        for at in touch.pages.iter() {
            image.read_page(touch.backend, at, &mut page).unwrap();
            pages += 1;
        }
    }
    let after = place.memory.counts();
    (
        after.gets - before.gets,
        (after.read - before.read) as f64 / (pages * PAGE_SIZE) as f64,
    )
}

/// `cargo test -p vmem-store --lib -- --ignored --nocapture figures`: the figures of the format's documentation. Takes minutes.
#[test]
#[ignore = "measures, for minutes"]
fn figures() {
    println!("bytes of an increment / bytes of its dirty pages, uncompressed");
    for (size, dirty, count) in [(65_536, 1556, 30), (65_536, 300, 30), (65_536, 50, 30)] {
        println!(
            "  {} MiB, {dirty} dirty pages: {:.4} over {count} increments",
            size / 256,
            increments(size, dirty, count)
        );
    }
    let place = place_with(&InitOptions {
        pack_bytes: 4 << 20,
        ..InitOptions::default()
    });
    let mut load = Load::new(4096);
    let mut guests = std::collections::BTreeMap::new();
    let mut last = next(&place.store, &load, &all(&load), None);
    guests.insert(last, load.guest.clone());
    for _ in 1..1000 {
        place.time.pass(Duration::from_secs(120));
        let dirty = load.write(60);
        last = next(&place.store, &load, &dirty, Some(last));
        guests.insert(last, load.guest.clone());
    }
    let whole = place.memory.bytes("");
    let manifest = place.store.manifest(&name(last)).unwrap();
    println!(
        "1000 checkpoints of 16 MiB, 60 dirty pages each: {whole} bytes; the last refers to {} objects of the index",
        manifest.indexes.iter().flatten().count()
    );
    println!(
        "restore, reads and bytes read / bytes of pages: from checkpoint 1 {:?}, from checkpoint 1000 {:?}",
        restore(&place, 1),
        restore(&place, 1000)
    );
    let policy = Policy {
        last: 10,
        hourly: 24,
        ..Policy::default()
    };
    let kept = place
        .store
        .prune(&guest(), &policy, false)
        .unwrap()
        .iter()
        .filter(|decision| decision.is_kept())
        .count();
    let now = GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    };
    println!("{:?}", place.store.gc(&now).unwrap());
    place.store.gc(&now).unwrap();
    let pruned = place.memory.bytes("");
    let alone = place_with(&InitOptions {
        pack_bytes: 4 << 20,
        ..InitOptions::default()
    });
    let mut before: Option<(Guest, u64)> = None;
    for listed in place.store.list().unwrap()[&guest()].iter() {
        let now = &guests[&listed.checkpoint.sequence];
        let changed: Vec<u64> = (0..4096)
            .filter(|at| {
                before
                    .as_ref()
                    .is_none_or(|(before, _)| before.pages[*at as usize] != now.pages[*at as usize])
            })
            .collect();
        load.guest = now.clone();
        let sequence = next(&alone.store, &load, &changed, before.map(|(_, at)| at));
        before = Some((now.clone(), sequence));
    }
    let least = alone.memory.bytes("");
    println!(
        "pruned to {kept}: {pruned} bytes; these checkpoints alone: {least} bytes; ratio {:.3}",
        pruned as f64 / least as f64
    );
    println!("restore of the last after it: {:?}", restore(&place, 1000));
    let squash = SquashOptions {
        rewrite: Some(u64::MAX),
        ..SquashOptions::default()
    };
    place.store.squash(&guest(), 1000, 1000, &squash).unwrap();
    println!("restore of the last after a squash: {:?}", restore(&place, 1000));
}

#[test]
fn store_in_a_directory_is_a_store_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    is_a_store(Arc::new(Directory::new(directory.path().join("store"))));
}

/// Makes a store in this place, and checkpoints, removes, collects and reads.
pub(crate) fn is_a_store(objects: Arc<dyn Objects>) {
    let time = Arc::new(Time::default());
    let store = Store::init(objects.clone(), &small(), options(&time)).unwrap();
    let mut load = Load::new(1500);
    let first = next(&store, &load, &all(&load), None);
    let before = load.guest.clone();
    let dirty = load.write(100);
    let second = next(&store, &load, &dirty, Some(first));
    store.remove(&name(first)).unwrap();
    let now = GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    };
    store.gc(&now).unwrap();
    store.gc(&now).unwrap();
    let store = Store::open(objects, options(&time)).unwrap();
    let image = store.image(&name(second)).unwrap();
    let mut page = [0; PAGE_SIZE];
    for (at, seed) in load.guest.pages.iter().enumerate() {
        image.read_page(0, PageIndex::new(at as u64).unwrap(), &mut page).unwrap();
        assert!(page[..] == contents(*seed), "page {at}");
    }
    assert_ne!(before, load.guest);
    assert!(store.verify(&name(second), 100).unwrap().is_right());
}
