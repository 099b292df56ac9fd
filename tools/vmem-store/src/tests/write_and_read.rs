// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints come back as they were written.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::{guest as guest0, *};
use crate::store::{InitOptions, OpenOptions, Store};
use crate::{Compression, Error, Extent, PageError, PageState, Touch, UserKey, WriteOptions};

fn page(pgoff: u64) -> PageIndex {
    PageIndex::new(pgoff).unwrap()
}

fn mixed(pages: usize) -> Guest {
    let mut guest = Guest::new(pages);
    for (at, seed) in guest.pages.iter_mut().enumerate() {
        *seed = match at % 7 {
            0 | 1 => 0,
            2 => 5,
            _ => 1000 + at as u64,
        };
    }
    guest
}

#[test]
fn full_checkpoint_comes_back_in_every_compression_and_encrypted() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
        for key in [None, Some(UserKey::generate().unwrap())] {
            let place = place_with(&InitOptions {
                compression,
                key,
                ..small()
            });
            let guest = mixed(1500);
            let manifest = checkpoint(&place.store, &guest, None).unwrap();
            assert_eq!(manifest.checkpoint, name(1));
            assert_is(&place.store.image(&name(1)).unwrap(), &guest);
        }
    }
}

#[test]
fn increment_stores_what_changed_and_no_zeros_duplicates_or_unchanged_pages() {
    let place = place();
    let mut guest = mixed(1200);
    let first = checkpoint(&place.store, &guest, None).unwrap().statistics;
    let zero = guest.pages.iter().filter(|seed| **seed == 0).count() as u64;
    assert_eq!((first.put, first.zero), (1201, zero));
    let same = guest.pages.iter().filter(|seed| **seed == 5).count() as u64;
    // A duplicate is found when the frame of the first one is complete.
    assert!(first.duplicate >= same - 4 && first.duplicate < same, "{first:?}");
    let before = guest.clone();
    guest.pages[3] = 77;
    guest.pages[900] = 0;
    let writer = place
        .store
        .begin(
            &guest0(),
            Some(&name(1)),
            &[("ram".into(), 1200 * 4096)],
            &WriteOptions::default(),
        )
        .unwrap();
    for at in [3, 4, 5, 900] {
        writer.put_pages(0, page(at), &contents(guest.pages[at as usize])).unwrap();
    }
    writer.put_blob("device-state", &mut guest.state.as_slice(), 100).unwrap();
    let second = writer.commit(Default::default()).unwrap().statistics;
    assert_eq!((second.put, second.zero, second.unchanged, second.stored), (5, 1, 3, 1));
    assert_is(&place.store.image(&name(1)).unwrap(), &before);
    assert_is(&place.store.image(&name(2)).unwrap(), &guest);
}

#[test]
fn memory_with_another_name_has_the_parents_pages_and_no_second_one_has_them() {
    let place = place();
    let guest = mixed(600);
    checkpoint(&place.store, &guest, None).unwrap();
    let options = |names: &[(&str, &str)]| WriteOptions {
        parent_names: names
            .iter()
            .map(|(own, parents)| ((*own).into(), (*parents).into()))
            .collect(),
        ..WriteOptions::default()
    };
    let begin = |memories: &[&str], names: &[(&str, &str)]| {
        let memories: Vec<_> = memories.iter().map(|name| ((*name).to_owned(), 600 * 4096)).collect();
        let parent = name(1);
        place
            .store
            .begin(&guest0(), Some(&parent), &memories, &options(names))
            .unwrap()
    };
    let missing = |writer: crate::Writer| match writer.commit(Default::default()) {
        Err(Error::Incomplete { backend, .. }) => backend,
        other => panic!("{other:?}"),
    };
    // The one that is named so by chance has none of them, and neither has the second one that the caller names.
    assert_eq!(missing(begin(&["ram", "main"], &[("main", "ram")])), "ram");
    assert_eq!(
        missing(begin(&["main", "other"], &[("main", "ram"), ("other", "ram")])),
        "other"
    );
    assert_eq!(missing(begin(&["main"], &[("main", "vga")])), "main");
    let writer = begin(&["main"], &[("main", "ram")]);
    writer.put_pages(0, page(4), &contents(77)).unwrap();
    writer.put_pages(0, page(5), &contents(guest.pages[5])).unwrap();
    let made = writer.commit(Default::default()).unwrap();
    assert_eq!((made.statistics.unchanged, made.statistics.stored), (1, 1));
    // What it refers to stays.
    place.store.remove(&name(1)).unwrap();
    let image = place.store.image(&made.checkpoint).unwrap();
    let (backend, _) = image.manifest().backend("main").unwrap();
    for (at, seed) in guest.pages.iter().enumerate() {
        let mut found = [0; PAGE_SIZE];
        image.read_page(backend, page(at as u64), &mut found).unwrap();
        assert_eq!(found[..], contents(if at == 4 { 77 } else { *seed })[..], "page {at}");
    }
}

#[test]
fn every_checkpoint_is_complete_without_those_before() {
    let place = place();
    let mut guest = mixed(600);
    let mut expected = BTreeMap::new();
    checkpoint(&place.store, &guest, None).unwrap();
    expected.insert(1, guest.clone());
    for sequence in 2..12_u64 {
        let before = guest.clone();
        for at in 0..20 {
            guest.pages[(sequence as usize * 31 + at * 17) % 600] = sequence * 1000 + at as u64;
        }
        guest.state = vec![sequence as u8; 5000 + sequence as usize];
        checkpoint(&place.store, &guest, Some((&before, sequence - 1))).unwrap();
        expected.insert(sequence, guest.clone());
    }
    for sequence in 1..11 {
        place.store.remove(&name(sequence)).unwrap();
    }
    assert_all(&place.store, &expected, [11]);
    assert_eq!(place.store.latest(&guest0()).unwrap(), name(11));
    place.store.remove(&name(11)).unwrap();
    assert!(matches!(place.store.latest(&guest0()), Err(Error::NoCheckpoints(_))));
    // Numbers are not used again.
    assert_eq!(checkpoint(&place.store, &guest, None).unwrap().checkpoint, name(12));
}

#[test]
fn page_that_was_not_put_put_twice_or_beyond_the_end_is_an_error() {
    let place = place();
    let begin = || {
        place
            .store
            .begin(&guest0(), None, &[("ram".into(), 8 * 4096)], &WriteOptions::default())
            .unwrap()
    };
    let writer = begin();
    writer.put_zero(0, range(0, 7)).unwrap();
    assert!(matches!(
        writer.commit(Default::default()),
        Err(Error::Incomplete { page: 7, .. })
    ));
    let writer = begin();
    writer.put_pages(0, page(1), &contents(3)).unwrap();
    assert!(matches!(
        writer.put_pages(0, page(1), &contents(4)),
        Err(Error::PutTwice { page: 1, .. })
    ));
    assert!(matches!(writer.put_zero(0, range(2, 1)), Err(Error::Failed(_))));
    assert!(writer.commit(Default::default()).is_err());
    let writer = begin();
    assert!(matches!(writer.put_pages(0, page(8), &contents(3)), Err(Error::Range { .. })));
    assert!(matches!(writer.put_pages(1, page(0), &contents(3)), Err(Error::Range { .. })));
    assert!(matches!(writer.put_pages(0, page(0), &[1; 100]), Err(Error::Range { .. })));
    drop(writer);
    // Nothing is left of those that failed.
    assert!(place.store.list().unwrap().is_empty());
    assert_eq!(objects(&place.memory, ""), ["config"]);
}

#[test]
fn unreadable_and_absent_pages_stay_so_and_are_never_zeros() {
    let place = place();
    let writer = place
        .store
        .begin(&guest0(), None, &[("ram".into(), 8 * 4096)], &WriteOptions::default())
        .unwrap();
    writer.put_zero(0, range(0, 5)).unwrap();
    writer.put_unreadable(0, range(5, 1)).unwrap();
    writer.put_absent(0, range(6, 2)).unwrap();
    writer.commit(Default::default()).unwrap();
    let image = place.store.image(&name(1)).unwrap();
    let mut found = vec![0xee; 8 * PAGE_SIZE];
    let failed = image.read_pages(0, range(0, 8), &mut found).unwrap();
    assert!(
        matches!(
            failed[..],
            [(_, PageError::Unreadable), (_, PageError::Absent), (_, PageError::Absent)]
        ),
        "{failed:?}"
    );
    assert!(found[..5 * PAGE_SIZE].iter().all(|byte| *byte == 0));
    assert!(found[5 * PAGE_SIZE..].iter().all(|byte| *byte == 0xee));
    let states: Vec<_> = image
        .extents(0, range(1, 7))
        .unwrap()
        .iter()
        .map(|extent| (extent.pages.first().get(), extent.pages.count(), extent.state))
        .collect();
    assert_eq!(
        states,
        [
            (1, 4, PageState::Zero),
            (5, 1, PageState::Unreadable),
            (6, 2, PageState::Absent)
        ]
    );
    assert!(image.read_pages(0, range(1, 8), &mut found).is_err());
}

#[test]
fn pages_of_a_frame_are_neighbours_and_the_plan_has_each_page_once() {
    let place = place();
    let mut guest = mixed(700);
    checkpoint(&place.store, &guest, None).unwrap();
    let before = guest.clone();
    (0..50).for_each(|at| guest.pages[at * 13] = 9000 + at as u64);
    checkpoint(&place.store, &guest, Some((&before, 1))).unwrap();
    let image = place.store.image(&name(2)).unwrap();
    // Four pages are in a frame: what was written at the same time, and is not written again since.
    let neighbours = |at| -> Vec<u64> {
        let found = image.neighbours(0, page(at)).unwrap();
        assert!(found.iter().all(|(backend, _)| *backend == 0));
        found.iter().flat_map(|(_, pages)| pages.iter()).map(PageIndex::get).collect()
    };
    let (of_13, of_100) = (neighbours(13), neighbours(100));
    assert!(
        !of_13.is_empty() && of_13.len() < 4 && of_13.iter().all(|at| at % 13 == 0 && *at != 13),
        "{of_13:?}"
    );
    assert!(
        !of_100.is_empty() && of_100.len() < 4 && of_100.iter().all(|at| at % 13 != 0),
        "{of_100:?}"
    );
    let order = [
        Touch {
            backend: 0,
            pages: range(600, 50),
        },
        Touch {
            backend: 0,
            pages: range(0, 20),
        },
    ];
    let plan = image.plan(&order).unwrap();
    let pages: Vec<_> = plan
        .iter()
        .filter(|touch| touch.backend == 0)
        .flat_map(|touch| touch.pages.iter())
        .map(PageIndex::get)
        .collect();
    let mut sorted = pages.clone();
    sorted.sort_unstable();
    let data: Vec<u64> = (0..700).filter(|at| guest.pages[*at as usize] != 0).collect();
    assert_eq!(sorted, data);
    assert!(pages[0] >= 600 && pages[..20].iter().all(|at| *at >= 600));
}

#[test]
fn zeros_of_large_memory_are_one_extent_and_take_no_memory() {
    const PAGES: u64 = 1 << 20;
    let place = place();
    let memories = [("ram".to_owned(), PAGES * PAGE_SIZE as u64)];
    let begun = place.store.begin(&guest0(), None, &memories, &WriteOptions::default());
    let writer = begun.unwrap();
    writer.put_zero(0, range(0, PAGES)).unwrap();
    writer.put_blob("device-state", &mut &b"devices"[..], 100).unwrap();
    let image = place
        .store
        .image(&writer.commit(Default::default()).unwrap().checkpoint)
        .unwrap();
    let zeros = Extent {
        pages: range(7, PAGES - 9),
        state: PageState::Zero,
    };
    assert_eq!(image.extents(0, zeros.pages).unwrap(), [zeros]);
    assert_eq!(image.leaves_kept(), 0);
}

#[test]
fn clone_goes_on_from_another_guests_checkpoint() {
    let place = place();
    let mut guest = mixed(300);
    checkpoint(&place.store, &guest, None).unwrap();
    let clone = "clone".parse().unwrap();
    let writer = place
        .store
        .begin(
            &clone,
            Some(&name(1)),
            &[("ram".into(), 300 * 4096)],
            &WriteOptions::default(),
        )
        .unwrap();
    guest.pages[7] = 4711;
    writer.put_pages(0, page(7), &contents(4711)).unwrap();
    writer.put_blob("device-state", &mut guest.state.as_slice(), 100).unwrap();
    let manifest = writer.commit(Default::default()).unwrap();
    assert_eq!(manifest.statistics.stored, 1);
    assert_is(&place.store.image(&manifest.checkpoint).unwrap(), &guest);
}

#[test]
fn backend_that_grows_needs_its_new_pages_and_one_that_shrinks_loses_its_last() {
    let place = place();
    let guest = mixed(700);
    checkpoint(&place.store, &guest, None).unwrap();
    let mut larger = guest.clone();
    larger.pages.extend((0..900).map(|at| 50_000 + at));
    let writer = place
        .store
        .begin(
            &guest0(),
            Some(&name(1)),
            &[("ram".into(), 1600 * 4096)],
            &WriteOptions::default(),
        )
        .unwrap();
    assert!(matches!(
        writer.commit(Default::default()),
        Err(Error::Incomplete { page: 700, .. })
    ));
    checkpoint(&place.store, &larger, Some((&guest, 1))).unwrap();
    let mut smaller = larger.clone();
    smaller.pages.truncate(550);
    checkpoint(&place.store, &smaller, Some((&larger, 2))).unwrap();
    let expected = BTreeMap::from([(1, guest), (2, larger), (3, smaller)]);
    assert_all(&place.store, &expected, [1, 2, 3]);
}

#[test]
fn threads_put_pages_in_any_order() {
    let place = place();
    let mut guest = Guest::new(2000);
    guest
        .pages
        .iter_mut()
        .enumerate()
        .for_each(|(at, seed)| *seed = at as u64 % 1500);
    let writer = place
        .store
        .begin(&guest0(), None, &[("ram".into(), 2000 * 4096)], &WriteOptions::default())
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (writer, guest) = (&writer, &guest);
            scope.spawn(move || {
                for at in (0..2000_u64).rev().filter(|at| at % 4 == thread) {
                    writer.put_pages(0, page(at), &contents(guest.pages[at as usize])).unwrap();
                }
            });
        }
    });
    writer.put_blob("device-state", &mut guest.state.as_slice(), 100).unwrap();
    writer.commit(Default::default()).unwrap();
    let image = place.store.image(&name(1)).unwrap();
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| assert_is(&image, &guest)))));
}

#[test]
fn wrong_key_no_key_and_a_key_too_many_are_told_apart() {
    let key = UserKey::generate().unwrap();
    let place = place_with(&InitOptions {
        key: Some(key.clone()),
        ..small()
    });
    let guest = mixed(100);
    checkpoint(&place.store, &guest, None).unwrap();
    let open = |key: Option<&UserKey>| {
        let options = OpenOptions {
            key: key.cloned(),
            ..options(&place.time)
        };
        Store::open(place.memory.clone(), options)
    };
    let other = UserKey::generate().unwrap();
    assert!(matches!(open(None), Err(Error::KeyNeeded)));
    assert!(matches!(open(Some(&other)), Err(Error::WrongKey)));
    open(Some(&key)).unwrap();
    // Rotated with a new generation: old checkpoints stay readable, the old key opens nothing.
    place.store.rotate_key(&key, &other, true).unwrap();
    assert!(matches!(open(Some(&key)), Err(Error::WrongKey)));
    let store = open(Some(&other)).unwrap();
    assert_is(&store.image(&name(1)).unwrap(), &guest);
    let mut after = guest.clone();
    after.pages[50] = 12345;
    let manifest = checkpoint(&store, &after, Some((&guest, 1))).unwrap();
    assert_eq!(manifest.statistics.stored, 1);
    assert_is(&store.image(&name(2)).unwrap(), &after);
    // The store that was open before knows only the first generation, and says so.
    assert!(place.store.image(&name(2)).is_err());
    store.add_key(&key).unwrap();
    assert_is(&open(Some(&key)).unwrap().image(&name(2)).unwrap(), &after);
    assert!(store.rotate_key(&other, &other, true).is_err());
    store.remove_key(&key).unwrap();
    assert!(store.remove_key(&other).is_err());
    store.add_key(&key).unwrap();
    let keys = store.keys(&other).unwrap();
    assert_eq!(keys.iter().map(|(_, given)| given).filter(|given| **given).count(), 1);
    assert_eq!(keys.len(), 2);
    for (id, given) in &keys {
        assert_eq!(store.remove_key_with_id(&other, id).is_ok(), !given, "{id}");
    }
    assert!(store.remove_key_with_id(&other, "../config").is_err());
    assert!(matches!(open(Some(&key)), Err(Error::WrongKey)));
    assert!(matches!(store.keys(&key), Err(Error::WrongKey)));
    open(Some(&other)).unwrap();
    let plain = super::model::place();
    let with_key = OpenOptions {
        key: Some(key),
        ..options(&plain.time)
    };
    assert!(matches!(
        Store::open(plain.memory.clone(), with_key),
        Err(Error::NotEncrypted)
    ));
}

#[test]
fn encrypted_store_shows_no_contents() {
    let place = place_with(&InitOptions {
        key: Some(UserKey::generate().unwrap()),
        compression: Compression::None,
        ..small()
    });
    let mut guest = Guest::new(20);
    guest
        .pages
        .iter_mut()
        .enumerate()
        .for_each(|(at, seed)| *seed = at as u64 + 1);
    checkpoint(&place.store, &guest, None).unwrap();
    let hash = blake3::hash(&contents(3));
    for object in objects(&place.memory, "") {
        let bytes = crate::objects::Objects::get(&*place.memory, &object, crate::objects::Part::All(1 << 30))
            .unwrap()
            .bytes;
        for secret in [
            &contents(3)[..16],
            &contents(3)[4000..4016],
            &hash.as_bytes()[..16],
            b"device state",
            b"device-state",
        ] {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret),
                "{object} shows {secret:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_history_comes_back(
        size in 1..1400_usize,
        steps in proptest::collection::vec(proptest::collection::vec((any::<prop::sample::Index>(), 0..40_u64), 0..60), 1..8),
        parents in proptest::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let place = place();
        let mut expected: BTreeMap<u64, Guest> = BTreeMap::new();
        for (step, (writes, parent)) in steps.iter().zip(parents).enumerate() {
            let before = if step == 0 { None } else { expected.iter().nth(parent.index(step)).map(|(at, guest)| (*at, guest.clone())) };
            let mut guest = before.as_ref().map_or_else(|| Guest::new(size), |(_, guest)| guest.clone());
            for (at, seed) in writes {
                guest.pages[at.index(size)] = *seed;
            }
            let manifest = checkpoint(&place.store, &guest, before.as_ref().map(|(at, guest)| (guest, *at))).unwrap();
            expected.insert(manifest.checkpoint.sequence, guest);
        }
        assert_all(&place.store, &expected, 1..=steps.len() as u64);
    }
}
