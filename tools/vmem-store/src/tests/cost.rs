// SPDX-License-Identifier: GPL-2.0-or-later
//! What checkpoints cost: bytes, objects and requests.

use std::sync::Arc;
use std::time::Duration;

use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::*;
use crate::objects::{Directory, Objects};
use crate::store::{InitOptions, Store};
use crate::{Compression, GcOptions, Image, Rewritten, WriteOptions};

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

/// `cargo test -p vmem-store --lib -- --ignored --nocapture figures`: the figures of the format's documentation. Takes a minute.
#[test]
#[ignore = "measures, for a minute"]
fn figures() {
    println!("bytes of an increment / bytes of its dirty pages, uncompressed");
    for (size, dirty, count) in [(65_536, 1556, 30), (65_536, 300, 30), (65_536, 50, 30)] {
        println!(
            "  {} MiB, {dirty} dirty pages: {:.4} over {count} increments",
            size / 256,
            increments(size, dirty, count)
        );
    }
    println!("restores, reads and bytes read / bytes of pages");
    for bytes in [0, u64::MAX] {
        let mut history = History::new();
        let (mut most, mut again) = (0, 0);
        for _ in 1..1000 {
            history.next();
            // The last ones go through all that a rewrite leaves.
            if history.last > 800 {
                most = most.max(restore(&history.place, history.last).0);
            }
            again += history.rewrite(bytes).map_or(0, |done| done.pages);
        }
        println!(
            "  rewrite of {bytes} bytes: from checkpoint 1 {:?}, from checkpoint 1000 {:?}, most from 800 on {most} reads; {again} pages \
             stored again of {} that were written",
            restore(&history.place, 1),
            restore(&history.place, 1000),
            history.written
        );
    }
}

/// Checkpoints of a guest of 16 MiB, each of 60 dirty pages.
struct History {
    place: Place,
    load: Load,
    last: u64,
    /// Pages, but for the first checkpoint's.
    written: u64,
}

impl History {
    fn new() -> Self {
        let place = place_with(&InitOptions {
            pack_bytes: 4 << 20,
            ..InitOptions::default()
        });
        let load = Load::new(4096);
        let last = next(&place.store, &load, &all(&load), None);
        Self {
            place,
            load,
            last,
            written: 0,
        }
    }

    fn next(&mut self) {
        let dirty = self.load.write(60);
        self.written += dirty.len() as u64;
        self.last = next(&self.place.store, &self.load, &dirty, Some(self.last));
    }

    fn rewrite(&self, bytes: u64) -> Option<Rewritten> {
        let store = &self.place.store;
        store
            .rewrite_scattered(&name(self.last), bytes, &WriteOptions::default(), &|| true)
            .unwrap()
    }
}

fn assert_pages(image: &Image, load: &Load) {
    let mut page = [0; PAGE_SIZE];
    for (at, seed) in load.guest.pages.iter().enumerate() {
        image.read_page(0, PageIndex::new(at as u64).unwrap(), &mut page).unwrap();
        assert!(page[..] == contents(*seed), "page {at}");
    }
}

#[test]
fn scattered_pages_are_stored_again_and_nothing_else_changes() {
    let mut history = History::new();
    let (mut again, mut most) = (0, 0);
    for _ in 1..300 {
        history.next();
        let held = history.place.store.hold(&name(history.last), "a restore").unwrap();
        let before = held.fragmentation().unwrap();
        most = most.max(before.packs);
        assert_eq!(history.rewrite(0), None);
        let before_it = history.place.store.manifest(&name(history.last)).unwrap();
        let Some(rewritten) = history.rewrite(u64::MAX) else {
            continue;
        };
        again += rewritten.pages;
        let image = history.place.store.image(&name(history.last)).unwrap();
        // It says how the checkpoint was made, as before.
        assert_eq!(image.manifest().statistics.stored, before_it.statistics.stored);
        assert_eq!(image.manifest().statistics.pack_bytes, before_it.statistics.pack_bytes);
        let after = image.fragmentation().unwrap();
        assert_eq!(before.pages, after.pages);
        assert!(rewritten.packs > 50 && after.packs < 80, "{rewritten:?} {after:?}");
        assert_pages(&image, &history.load);
        // Who began to read before goes on.
        assert_pages(&held, &history.load);
    }
    assert!((100..140).contains(&most), "{most} packs");
    assert!(
        again > 0 && again * 3 < history.written,
        "{again} pages stored again of {}",
        history.written
    );
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
    assert_pages(&image, &load);
    assert_ne!(before, load.guest);
    assert!(store.verify(&name(second), 100).unwrap().is_right());
}
