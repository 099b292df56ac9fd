// SPDX-License-Identifier: GPL-2.0-or-later
//! Garbage goes, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::*;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::holder::HolderProcess;
use crate::lease::LeaseBody;
use crate::objects::{Part, Put};
use crate::removal::{Kept, Outcome};
use crate::{CommitOptions, Error, GcOptions, Policy, SquashOptions, Touch, WriteOptions};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> GcOptions {
    GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    }
}

/// A guest that writes half of its pages again and again, and the others seldom.
fn history(place: &Place, count: u64) -> BTreeMap<u64, Guest> {
    let mut guest = Guest::new(800);
    guest
        .pages
        .iter_mut()
        .enumerate()
        .for_each(|(at, seed)| *seed = at as u64 + 1);
    let mut all = BTreeMap::new();
    for step in 0..count {
        let before = guest.clone();
        if step > 0 {
            for at in 0..40 {
                guest.pages[at * 3] = step * 10_000 + at as u64;
            }
            guest.pages[400 + (step as usize * 37) % 400] = step * 10_000 + 999;
        }
        place.time.pass(HOUR);
        checkpoint(&place.store, &guest, (step > 0).then_some((&before, step))).unwrap();
        all.insert(step + 1, guest.clone());
    }
    all
}

#[test]
fn nothing_is_deleted_before_the_grace_period_or_in_a_dry_run() {
    let place = place();
    let all = history(&place, 6);
    let before = objects(&place.memory, "packs/").len();
    (1..6).for_each(|sequence| place.store.remove(&name(sequence)).unwrap());
    let dry = GcOptions { dry_run: true, ..now() };
    let counts = place.memory.counts();
    let would = place.store.gc(&dry).unwrap();
    assert!(would.deleted > 0);
    assert_eq!(
        (counts.puts, counts.deletes),
        (place.memory.counts().puts, place.memory.counts().deletes)
    );
    let report = place.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.deleted, 0);
    assert!(report.waiting > 0);
    place.time.pass(23 * HOUR);
    assert_eq!(place.store.gc(&GcOptions::default()).unwrap().deleted, 0);
    assert!(objects(&place.memory, "packs/").len() >= before);
    place.time.pass(2 * HOUR);
    assert!(place.store.gc(&GcOptions::default()).unwrap().deleted > 0);
    assert_all(&place.store, &all, [6]);
}

#[test]
fn pruned_store_is_about_as_large_as_what_it_holds() {
    let place = place();
    let mut all = history(&place, 120);
    let policy = Policy {
        last: 4,
        daily: 3,
        ..Policy::default()
    };
    let decisions = place.store.prune(&guest(), &policy, true).unwrap();
    assert_eq!(place.store.list().unwrap()[&guest()].len(), 120);
    assert_eq!(place.store.prune(&guest(), &policy, false).unwrap(), decisions);
    let kept: Vec<u64> = decisions
        .iter()
        .filter(|decision| decision.is_kept())
        .map(|decision| decision.sequence)
        .collect();
    assert_eq!(kept.len(), 6);
    all.retain(|sequence, _| kept.contains(sequence));
    let before = place.memory.bytes("");
    let report = place.store.gc(&now()).unwrap();
    assert!(report.trimmed > 0 && report.problems.is_empty(), "{report:?}");
    place.store.gc(&now()).unwrap();
    assert_all(&place.store, &all, kept.clone());
    let after = place.memory.bytes("");
    assert!(after * 4 < before, "{before} -> {after}");
    // The same checkpoints alone, in a store of their own.
    let alone = super::model::place();
    let mut last: Option<(Guest, u64)> = None;
    for guest in all.values() {
        let sequence = checkpoint(&alone.store, guest, last.as_ref().map(|(guest, at)| (guest, *at)))
            .unwrap()
            .checkpoint
            .sequence;
        last = Some((guest.clone(), sequence));
    }
    let least = alone.memory.bytes("");
    assert!(after * 2 <= least * 3, "{after} bytes, and {least} are needed");
}

#[test]
fn reader_with_lease_keeps_its_checkpoint() {
    let place = place();
    let all = history(&place, 5);
    let held = place.store.hold(&name(2), "a restore").unwrap();
    let brief = place.store.image(&name(3)).unwrap();
    assert!(matches!(place.store.remove(&name(2)), Err(Error::BeingRead { checkpoint, .. }) if checkpoint == name(2)));
    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let decisions = place.store.prune(&guest(), &policy, false).unwrap();
    let kept: Vec<u64> = decisions.iter().filter(|one| one.is_kept()).map(|one| one.sequence).collect();
    assert_eq!(kept, [5, 2]);
    // A reader that starts again finds it.
    assert_is(&place.store.hold(&name(2), "a restore").unwrap(), &all[&2]);
    place.store.gc(&now()).unwrap();
    place.store.gc(&now()).unwrap();
    assert_is(&held, &all[&2]);
    let mut page = [0; PAGE_SIZE];
    let gone = (0..800)
        .filter(|at| brief.read_page(0, PageIndex::new(*at).unwrap(), &mut page).is_err())
        .count();
    assert!(gone > 0, "the checkpoint without a lease is gone");
    drop(held);
    place.store.remove(&name(2)).unwrap();
    let report = place.store.gc(&now()).unwrap();
    assert!(report.deleted > 0 || report.trimmed > 0);
    assert_all(&place.store, &all, [5]);
}

/// What the lease of the only reader is changed to.
fn change_lease(place: &Place, change: impl FnOnce(&mut LeaseBody)) {
    let name = objects(&place.memory, "leases/")
        .into_iter()
        .find(|name| name.ends_with(".lease"))
        .unwrap();
    let base = &place.store.base;
    let seal = Seal::Store(&base.crypto);
    let object = base.get(&name, Part::All(Kind::Lease.limit())).unwrap();
    let mut body = serde_json::from_slice(&unwrap(Kind::Lease, &name, &object.bytes, &seal).unwrap()).unwrap();
    change(&mut body);
    let object = wrap(Kind::Lease, &name, &serde_json::to_vec(&body).unwrap(), &seal).unwrap();
    base.put(&name, &object, Put::Replace).unwrap();
}

#[test]
fn reader_that_was_killed_on_this_host_keeps_its_checkpoint_from_prune_and_not_from_remove() {
    let place = place();
    let all = history(&place, 3);
    let held = place.store.hold(&name(2), "a restore").unwrap();
    place.time.pass(Duration::from_secs(30));
    let text = place.store.remove(&name(2)).unwrap_err().to_string();
    let said = [
        "guest0@2 is being read by a restore (process ".to_owned(),
        format!("process {} on host ", std::process::id()),
        "since 30 s ago; its lease ends in 570 s".to_owned(),
    ];
    assert!(said.iter().all(|part| text.contains(part)), "{text}");

    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let identity = vmem_process::Process::of_child(&child).unwrap().identity().unwrap();
    change_lease(&place, |body| body.process = Some(HolderProcess::of(identity.clone())));
    assert!(place.store.remove(&name(2)).is_err(), "it lives");
    child.kill().unwrap();
    child.wait().unwrap();
    // One of another boot, of which nothing is known.
    let mut other = identity.clone();
    other.boot = "another".to_owned();
    change_lease(&place, |body| body.process = Some(HolderProcess::of(other)));
    assert!(matches!(place.store.remove(&name(2)), Err(Error::BeingRead { .. })));
    // One of an earlier version.
    change_lease(&place, |body| body.process = None);
    assert!(matches!(place.store.remove(&name(2)), Err(Error::BeingRead { .. })));

    change_lease(&place, |body| body.process = Some(HolderProcess::of(identity)));
    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let decisions = place.store.prune(&guest(), &policy, false).unwrap();
    let kept: Vec<u64> = decisions.iter().filter(|one| one.is_kept()).map(|one| one.sequence).collect();
    assert_eq!(kept, [3, 2]);
    let by_rules = place.store.remove_all(&guest(), &[2], Kept::ByAll).unwrap();
    assert!(matches!(&by_rules[..], [(2, Outcome::Read(_))]));
    place.store.remove(&name(2)).unwrap();
    // What it refers to stays until the lease ends.
    place.store.gc(&now()).unwrap();
    place.store.gc(&now()).unwrap();
    assert_is(&held, &all[&2]);
}

#[test]
fn writer_goes_on_from_a_parent_that_is_removed_meanwhile() {
    let place = place();
    let mut all = history(&place, 3);
    let mut guest = all[&3].clone();
    let writer = place
        .store
        .begin(
            &super::model::guest(),
            Some(&name(3)),
            &[("ram".into(), 800 * 4096)],
            &WriteOptions::default(),
        )
        .unwrap();
    guest.pages[1] = 5555;
    writer.put_pages(0, PageIndex::new(1).unwrap(), &contents(5555)).unwrap();
    (1..4).for_each(|sequence| place.store.remove(&name(sequence)).unwrap());
    place.store.gc(&now()).unwrap();
    place.store.gc(&now()).unwrap();
    writer.put_blob("device-state", &mut guest.state.as_slice(), 100).unwrap();
    let sequence = writer.commit(CommitOptions::default()).unwrap().checkpoint.sequence;
    assert_eq!(sequence, 4);
    all.insert(4, guest);
    place.store.gc(&now()).unwrap();
    assert_all(&place.store, &all, [4]);
}

#[test]
fn writer_whose_lease_expired_gives_up() {
    let place = place();
    let guest = Guest::new(10);
    let writer = place
        .store
        .begin(
            &super::model::guest(),
            None,
            &[("ram".into(), 10 * 4096)],
            &WriteOptions::default(),
        )
        .unwrap();
    writer.put_zero(0, range(0, 10)).unwrap();
    place.time.pass(HOUR);
    assert!(matches!(writer.commit(CommitOptions::default()), Err(Error::LeaseLost(3600))));
    assert!(place.store.list().unwrap().is_empty());
    checkpoint(&place.store, &guest, None).unwrap();
}

#[test]
fn what_a_writer_has_written_so_far_is_no_garbage() {
    let place = place();
    let writer = place
        .store
        .begin(&guest(), None, &[("ram".into(), 200 * 4096)], &WriteOptions::default())
        .unwrap();
    let pages: Vec<u8> = (1..201).flat_map(contents).collect();
    writer.put_pages(0, PageIndex::new(0).unwrap(), &pages).unwrap();
    while objects(&place.memory, "packs/").is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let report = place.store.gc(&now()).unwrap();
    assert_eq!((report.deleted, report.waiting), (0, 0));
    writer.commit(CommitOptions::default()).unwrap();
    place.store.verify(&name(1), 100).unwrap();
}

#[test]
fn collection_stops_at_a_manifest_that_it_cannot_read() {
    let place = place();
    let all = history(&place, 3);
    place.store.remove(&name(1)).unwrap();
    let manifest = objects(&place.memory, "checkpoints/guest0/0000000002").remove(0);
    place.memory.tamper(&manifest, |bytes| bytes[60] ^= 1);
    assert!(matches!(place.store.gc(&now()), Err(Error::Damaged { name, .. }) if name == manifest));
    assert!(matches!(place.store.image(&name(2)), Err(Error::Damaged { .. })));
    assert_is(&place.store.image(&name(3)).unwrap(), &all[&3]);
    place.store.remove(&name(2)).unwrap();
    place.store.gc(&now()).unwrap();
    assert_is(&place.store.image(&name(3)).unwrap(), &all[&3]);
}

#[test]
fn second_collection_is_refused_until_the_first_has_been_killed_for_long() {
    let place = place();
    let body = LeaseBody {
        holder: "other".to_owned(),
        expires: place.store.base.now() + 1000,
        reads: false,
        since: None,
        process: None,
    };
    let seal = Seal::Store(&place.store.base.crypto);
    let object = wrap(Kind::Lease, "gc/running", &serde_json::to_vec(&body).unwrap(), &seal).unwrap();
    place.store.base.put("gc/running", &object, Put::New).unwrap();
    assert!(matches!(place.store.gc(&now()), Err(Error::Busy(holder)) if holder == "other"));
    place.time.pass(HOUR);
    place.store.gc(&now()).unwrap();
}

#[test]
fn protected_checkpoint_is_kept_by_remove_prune_and_squash() {
    let place = place();
    let all = history(&place, 6);
    place.store.protect(&name(2), true).unwrap();
    assert!(matches!(place.store.protect(&name(99), true), Err(Error::NoCheckpoint(_))));
    assert!(matches!(place.store.remove(&name(2)), Err(Error::Protected(_))));
    let policy = Policy {
        last: 2,
        ..Policy::default()
    };
    place.store.prune(&guest(), &policy, false).unwrap();
    let report = place.store.squash(&guest(), 1, 6, &SquashOptions::default()).unwrap();
    assert_eq!((report.removed, report.protected), (vec![5], vec![2]));
    place.store.gc(&now()).unwrap();
    assert_eq!(assert_all(&place.store, &all, [2, 6]), [2, 6]);
    place.store.protect(&name(2), false).unwrap();
    place.store.remove(&name(2)).unwrap();
}

#[test]
fn squash_by_access_makes_the_working_set_sequential_and_gives_hot_pages_back() {
    let place = place();
    let all = history(&place, 30);
    let image = place.store.image(&name(30)).unwrap();
    let touched: Vec<Touch> = (0..120)
        .rev()
        .map(|at| Touch {
            backend: 0,
            pages: range(at * 5, 1),
        })
        .collect();
    place.store.record_order(&image, &touched).unwrap();
    let order = place.store.order(&image).unwrap();
    assert_eq!(order, touched);
    let before = image.fragmentation().unwrap();
    let held = place.store.hold(&name(12), "a restore").unwrap();
    let squash = SquashOptions {
        rewrite: Some(u64::MAX),
        order: order.clone(),
        ..SquashOptions::default()
    };
    let dry = SquashOptions {
        dry_run: true,
        ..squash.clone()
    };
    let counts = place.memory.counts();
    let would = place.store.squash(&guest(), 1, 30, &dry).unwrap();
    assert_eq!(
        (would.removed.len(), place.memory.counts().puts),
        (28, counts.puts),
        "a dry run writes nothing"
    );
    let report = place.store.squash(&guest(), 1, 30, &squash).unwrap();
    assert_eq!((report.removed.len(), report.damaged), (28, 0));
    assert_eq!(report.rewritten, would.rewritten);
    assert_eq!(report.protected, [12]);
    place.store.gc(&now()).unwrap();
    assert_is(&held, &all[&12]);
    drop(held);
    place.store.remove(&name(12)).unwrap();
    place.store.gc(&now()).unwrap();
    let image = place.store.image(&name(30)).unwrap();
    assert_is(&image, &all[&30]);
    let after = image.fragmentation().unwrap();
    assert!(
        after.packs < before.packs && after.pack_pages < before.pack_pages,
        "{before:?} {after:?}"
    );
    // What was touched first lies first, in this order.
    let mut last = None;
    for touch in &order {
        let crate::leaf::Entry::Data { pack, number } = image.entry(0, touch.pages.first().get()).unwrap() else {
            panic!("data")
        };
        assert!(last.is_none_or(|(before, at)| pack != before || number == at + 1));
        last = Some((pack, number));
    }
    // The checkpoint that is left has one copy of each page.
    let stored = place.memory.bytes("packs/");
    let alone = super::model::place();
    checkpoint(&alone.store, &all[&30], None).unwrap();
    assert!(
        stored * 10 <= alone.memory.bytes("packs/") * 11,
        "{stored} {}",
        alone.memory.bytes("packs/")
    );
}

#[test]
fn order_of_the_nearest_checkpoint_or_the_last_written_pages_stand_in() {
    let place = place();
    history(&place, 3);
    let second = place.store.image(&name(2)).unwrap();
    let third = place.store.image(&name(3)).unwrap();
    let written: u64 = place
        .store
        .order(&third)
        .unwrap()
        .iter()
        .filter(|touch| touch.backend == 0)
        .map(|touch| touch.pages.count())
        .sum();
    assert_eq!(written, 41);
    let touched = [Touch {
        backend: 0,
        pages: range(790, 5),
    }];
    assert_eq!(place.store.access_order(&third).unwrap().recorded, None);
    place.store.record_order(&second, &touched).unwrap();
    assert_eq!(place.store.order(&third).unwrap(), touched);
    assert_eq!(place.store.access_order(&third).unwrap().recorded, Some(name(2)));
    let beyond = [Touch {
        backend: 0,
        pages: range(799, 5),
    }];
    assert!(place.store.record_order(&second, &beyond).is_err());
    let object = objects(&place.memory, "orders/").remove(0);
    place.memory.tamper(&object, |bytes| bytes[50] ^= 1);
    assert_eq!(
        place
            .store
            .order(&third)
            .unwrap()
            .iter()
            .filter(|touch| touch.backend == 0)
            .map(|touch| touch.pages.count())
            .sum::<u64>(),
        41
    );
}

#[test]
fn diff_finds_what_changed_also_after_a_squash() {
    let place = place();
    let all = history(&place, 5);
    let changed = |from: u64, to: u64| {
        let diffs = place.store.diff(&name(from), &name(to)).unwrap();
        let pages = diffs
            .iter()
            .filter(|diff| diff.name == "ram")
            .flat_map(|diff| &diff.changed)
            .flat_map(|range| range.iter());
        pages.map(|page| page.get() as usize).collect::<Vec<_>>()
    };
    let expected = |from: u64, to: u64| {
        (0..800)
            .filter(|at| all[&from].pages[*at] != all[&to].pages[*at])
            .collect::<Vec<_>>()
    };
    assert_eq!(changed(1, 5), expected(1, 5));
    assert_eq!(changed(4, 5), expected(4, 5));
    assert!(place.store.diff(&name(3), &name(3)).unwrap().is_empty());
    let squash = SquashOptions {
        rewrite: Some(u64::MAX),
        ..SquashOptions::default()
    };
    place.store.squash(&guest(), 5, 5, &squash).unwrap();
    assert_eq!(changed(2, 5), expected(2, 5));
}
