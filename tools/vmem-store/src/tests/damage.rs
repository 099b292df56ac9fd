// SPDX-License-Identifier: GPL-2.0-or-later
//! Damaged, missing and swapped objects: each page is the right one or an error.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::*;
use crate::objects::{Faults, Objects, Part, Put};
use crate::store::{InitOptions, Store};
use crate::{Error, PageError, UserKey, WriteOptions};

fn history(place: &Place) -> BTreeMap<u64, Guest> {
    let mut guest = Guest::new(560);
    guest
        .pages
        .iter_mut()
        .step_by(3)
        .enumerate()
        .for_each(|(at, seed)| *seed = at as u64 % 150);
    let mut all = BTreeMap::new();
    for step in 1..4_u64 {
        let before = guest.clone();
        (0..25).for_each(|at| guest.pages[(step as usize * 101 + at * 7) % 560] = step * 1000 + at as u64);
        guest.state = vec![step as u8; 9000];
        checkpoint(&place.store, &guest, (step > 1).then_some((&before, step - 1))).unwrap();
        all.insert(step, guest.clone());
    }
    all
}

/// Reads everything that can be read. How many pages and checkpoints failed.
fn read_all(store: &Store, all: &BTreeMap<u64, Guest>) -> u64 {
    let mut failed = 0;
    for (sequence, guest) in all {
        let Ok(image) = store.image(&name(*sequence)) else {
            failed += 1;
            continue;
        };
        assert_eq!(image.manifest().checkpoint, name(*sequence));
        let mut page = [0xee; PAGE_SIZE];
        for (at, seed) in guest.pages.iter().enumerate() {
            let at = PageIndex::new(at as u64).unwrap();
            match image.read_page(0, at, &mut page) {
                Ok(()) => assert!(page[..] == contents(*seed), "checkpoint {sequence}: {at} is wrong"),
                Err(error) => {
                    failed += 1;
                    assert!(matches!(error, PageError::Damaged(_)), "{error}");
                }
            }
        }
        let mut state = Vec::new();
        match image
            .blob("device-state")
            .map(|mut blob| std::io::Read::read_to_end(&mut blob, &mut state))
        {
            Ok(Ok(_)) => assert_eq!(state, guest.state),
            _ => failed += 1,
        }
    }
    failed
}

fn init(sealed: bool) -> InitOptions {
    InitOptions {
        key: sealed.then(|| UserKey::generate().unwrap()),
        ..small()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_damage_to_any_object_is_noticed_and_costs_nothing_else(
        sealed: bool, object: prop::sample::Index, at: prop::sample::Index, change in 0..5_u8, bit in 0..8_u8,
    ) {
        let place = place_with(&init(sealed));
        let all = history(&place);
        let names: Vec<String> = ["packs/", "index/", "checkpoints/"].iter().flat_map(|prefix| objects(&place.memory, prefix)).collect();
        let victim = object.get(&names).clone();
        let other = place.memory.get(&names[(object.index(names.len()) + 1) % names.len()], Part::All(1 << 30)).unwrap().bytes;
        place.memory.tamper(&victim, |bytes| {
            let at = at.index(bytes.len());
            match change {
                0 | 1 => bytes[at] ^= 1 << bit,
                2 => bytes.truncate(at),
                3 => bytes.extend_from_slice(&[7; 100]),
                _ => *bytes = other,
            }
        });
        let failed = read_all(&place.store, &all);
        let bad = (1..4).filter(|sequence| !place.store.verify(&name(*sequence), 100).is_ok_and(|report| report.is_right())).count();
        // Bytes at the end of a part of the index, and reserved bytes of a pack's header, are read by nobody.
        prop_assert_eq!(failed > 0, bad > 0, "{}: {} pages, {} checkpoints", victim, failed, bad);
        if matches!(change, 2 | 4) && !victim.starts_with("index/") {
            prop_assert!(failed > 0, "{} is whole", victim);
        }
    }
}

#[test]
fn damaged_byte_costs_its_page_alone_and_until_it_is_right_again() {
    let place = place_with(&InitOptions {
        compression: crate::Compression::None,
        ..small()
    });
    let guest = Guest {
        pages: (1..9).collect(),
        state: Vec::new(),
    };
    checkpoint(&place.store, &guest, None).unwrap();
    let pack = objects(&place.memory, "packs/").remove(0);
    // The third page of the first frame, whose pages are behind a header of 16 bytes.
    let flip = || place.memory.tamper(&pack, |bytes| bytes[16 + 2 * PAGE_SIZE + 7] ^= 1);
    let image = place.store.image(&name(1)).unwrap();
    let mut found = vec![0xee; 8 * PAGE_SIZE];
    flip();
    let failed = image.read_pages(0, range(0, 8), &mut found).unwrap();
    assert!(
        matches!(&failed[..], [(at, PageError::Damaged(what))] if at.get() == 2 && what.to_string().contains("checksum")),
        "{failed:?}"
    );
    flip();
    assert_is(&image, &guest);
}

#[test]
fn lost_pack_costs_its_pages_and_verify_names_it() {
    let place = place();
    let all = history(&place);
    let pack = objects(&place.memory, "packs/").remove(0);
    place.memory.delete(&pack).unwrap();
    assert!(read_all(&place.store, &all) > 0);
    let reports: Vec<_> = (1..4)
        .map(|sequence| place.store.verify(&name(sequence), 0).unwrap())
        .collect();
    assert!(
        reports
            .iter()
            .any(|report| report.problems.keys().any(|problem| problem.contains(&pack)) && report.bad_pages > 0),
        "{reports:?}"
    );
    // The collection says so, and takes nothing more.
    let gc = place.store.gc(&crate::GcOptions::default()).unwrap();
    assert!(gc.problems.iter().any(|problem| problem.contains(&pack)), "{gc:?}");
}

#[test]
fn object_of_another_store_is_refused() {
    let (one, other) = (place_with(&init(true)), place_with(&init(true)));
    let all = history(&one);
    history(&other);
    for prefix in ["packs/", "index/"] {
        for name in objects(&one.memory, prefix) {
            let copy = one.memory.get(&name, Part::All(1 << 30)).unwrap().bytes;
            other.memory.put(&name, &copy, Put::New).unwrap();
        }
    }
    let manifest = objects(&one.memory, "checkpoints/").remove(2);
    let copy = one.memory.get(&manifest, Part::All(1 << 30)).unwrap().bytes;
    other.memory.put(&manifest, &copy, Put::Replace).unwrap();
    assert!(matches!(other.store.image(&name(3)), Err(Error::Damaged { .. })));
    assert_eq!(read_all(&one.store, &all), 0);
}

#[test]
fn newer_manifest_is_said_to_be_newer_and_the_others_are_read() {
    let place = place();
    let all = history(&place);
    let manifest = objects(&place.memory, "checkpoints/").remove(1);
    place.memory.tamper(&manifest, |bytes| bytes[8] = 9);
    assert!(matches!(
        place.store.image(&name(2)),
        Err(Error::NewerVersion { version: 9, .. })
    ));
    assert_is(&place.store.image(&name(1)).unwrap(), &all[&1]);
    assert_is(&place.store.image(&name(3)).unwrap(), &all[&3]);
    assert!(place.store.gc(&crate::GcOptions::default()).is_err());
}

#[test]
fn full_place_fails_the_checkpoint_and_nothing_else() {
    let place = place();
    let all = history(&place);
    let held = place.memory.bytes("");
    for space in [0, 3000, 60_000, 200_000] {
        place.memory.set_faults(Faults {
            space: Some(held + space),
            ..Faults::default()
        });
        let mut guest = all[&3].clone();
        (0..200).for_each(|at| guest.pages[at] = 70_000 + at as u64);
        let error = checkpoint(&place.store, &guest, Some((&all[&3], 3))).unwrap_err();
        assert!(error.to_string().contains("no space is left"), "{error}");
        assert_all(&place.store, &all, [1, 2, 3]);
        assert_eq!(place.memory.bytes(""), held, "nothing is left of it");
    }
    place.memory.set_faults(Faults::default());
    checkpoint(&place.store, &all[&3], Some((&all[&3], 3))).unwrap();
}

#[test]
fn overloaded_place_with_short_bodies_and_lost_answers_loses_nothing() {
    let place = place();
    place.memory.set_faults(Faults {
        overloaded_every: Some(5),
        short_every: Some(7),
        answer_lost_every: Some(3),
        ..Faults::default()
    });
    let all = history(&place);
    assert_all(&place.store, &all, [1, 2, 3]);
}

#[test]
fn place_that_is_away_is_an_error_that_passes() {
    let place = place();
    let all = history(&place);
    let image = place.store.image(&name(3)).unwrap();
    place.memory.set_faults(Faults {
        overloaded_every: Some(1),
        ..Faults::default()
    });
    let at = all[&3].pages.iter().position(|seed| *seed > 0).unwrap() as u64;
    let mut page = [0xee; PAGE_SIZE];
    let error = image.read_page(0, PageIndex::new(at).unwrap(), &mut page).unwrap_err();
    assert!(matches!(error, PageError::Away(_)), "{error}");
    assert!(page.iter().all(|byte| *byte == 0xee));
    assert!(place.store.verify(&name(3), 100).unwrap_err().is_transient());
    place.memory.set_faults(Faults::default());
    assert_is(&image, &all[&3]);
}

#[test]
fn stale_listing_hides_checkpoints_and_never_gives_a_number_twice() {
    let place = place();
    let all = history(&place);
    place.memory.set_faults(Faults {
        stale: 12,
        ..Faults::default()
    });
    let mut guest = all[&3].clone();
    guest.pages[0] = 31_337;
    let manifest = checkpoint(&place.store, &guest, None).unwrap();
    assert_eq!(manifest.checkpoint, name(4));
    place.memory.set_faults(Faults::default());
    assert_is(&place.store.image(&name(4)).unwrap(), &guest);
    assert_all(&place.store, &all.into_iter().chain([(4, guest)]).collect(), [1, 2, 3, 4]);
}

#[test]
fn server_that_ignores_conditional_creates_is_refused() {
    let memory = std::sync::Arc::new(crate::objects::Memory::new());
    memory.set_faults(Faults {
        ignores_create: true,
        ..Faults::default()
    });
    let made = Store::init(memory, &small(), options(&place().time));
    assert!(matches!(made, Err(Error::NoConditionalCreate)));
}

#[test]
fn two_writers_at_once_get_two_numbers() {
    let Place { store, .. } = place();
    let sequences: Vec<u64> = std::thread::scope(|scope| {
        let begin = |seed| {
            let store = store.clone();
            scope.spawn(move || {
                let writer = store
                    .begin(&guest(), None, &[("ram".into(), 4096)], &WriteOptions::default())
                    .unwrap();
                writer.put_pages(0, PageIndex::new(0).unwrap(), &contents(seed)).unwrap();
                writer.put_blob("device-state", &mut &b"device state"[..], 100).unwrap();
                (writer.commit(Default::default()).unwrap().checkpoint.sequence, seed)
            })
        };
        let threads: Vec<_> = (1..9).map(begin).collect();
        let mut sequences = Vec::new();
        for thread in threads {
            let (sequence, seed) = thread.join().unwrap();
            let mut expected = Guest::new(1);
            expected.pages[0] = seed;
            assert_is(&store.image(&name(sequence)).unwrap(), &expected);
            sequences.push(sequence);
        }
        sequences
    });
    let mut sorted = sequences.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 8, "{sequences:?}");
}

#[test]
fn store_is_made_once_and_in_an_empty_place() {
    let place = place();
    assert!(matches!(
        Store::init(place.memory.clone(), &small(), options(&place.time)),
        Err(Error::StoreExists)
    ));
    let memory = std::sync::Arc::new(crate::objects::Memory::new());
    assert!(matches!(
        Store::open(memory.clone(), options(&place.time)),
        Err(Error::NoStore)
    ));
    memory.put("holiday/photo.jpg", b"x", Put::New).unwrap();
    assert!(
        matches!(Store::init(memory, &small(), options(&place.time)), Err(Error::NotEmpty(name)) if name == "holiday/photo.jpg")
    );
}

#[test]
fn page_that_is_not_the_one_of_its_hash_is_an_error_also_with_right_checksums() {
    for sealed in [false, true] {
        let place = place_with(&init(sealed));
        let guest = Guest {
            pages: (1..9).collect(),
            state: Vec::new(),
        };
        checkpoint(&place.store, &guest, None).unwrap();
        let image = place.store.image(&name(1)).unwrap();
        let info = image.pack_info(0).unwrap();
        let crypto = &place.store.base.crypto;
        let pack = crate::image::open_generation(&place.store.base, &info, 0).unwrap();
        // The same pack with the second page in the place of the first, made by somebody who has the key.
        let mut forged = crate::pack::PackBuilder::trimmed(&pack, 0, crypto).unwrap();
        for seed in [2, 2, 3, 4, 5, 6, 7, 8] {
            forged.append_frame(crate::codec::Codec::Raw, contents(seed), 1);
        }
        let (forged, again) = forged.finish(None, crypto);
        assert_eq!(again, info);
        place.memory.put(&info.id.object(0), &forged, Put::Replace).unwrap();
        let image = place.store.image(&name(1)).unwrap();
        let mut found = vec![0xee; 8 * PAGE_SIZE];
        let failed = image.read_pages(0, range(0, 8), &mut found).unwrap();
        assert!(
            matches!(&failed[..], [(at, PageError::Damaged(_))] if at.get() == 0),
            "{failed:?}"
        );
        assert!(found[..PAGE_SIZE].iter().all(|byte| *byte == 0xee));
        assert_eq!(place.store.verify(&name(1), 100).unwrap().bad_pages, 1);
    }
}
