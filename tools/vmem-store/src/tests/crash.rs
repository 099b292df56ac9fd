// SPDX-License-Identifier: GPL-2.0-or-later
//! Whatever a manifest names can be restored, at every point at which a program may be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::model::*;
use crate::objects::{Faults, Memory};
use crate::store::{InitOptions, Store};
use crate::{Compression, Error, GcOptions, Policy, SquashOptions, Touch, UserKey};

/// Two leaves, the second a small part.
const PAGES: usize = 530;

/// What should be there: checkpoints that may be, with their contents, and those that must be.
#[derive(Default)]
struct Expected {
    guests: BTreeMap<u64, Guest>,
    must: BTreeSet<u64>,
}

fn now() -> GcOptions {
    GcOptions {
        grace: Duration::ZERO,
        trim_below: 90,
        ..GcOptions::default()
    }
}

/// Checkpoints, prunes, squashes and collects, until the store ends. `expected` is what holds while the operation runs that is under way.
fn live(store: &Store, time: &Time, expected: &mut Expected) -> Result<(), Error> {
    let mut guest = Guest::new(PAGES);
    guest
        .pages
        .iter_mut()
        .step_by(9)
        .enumerate()
        .for_each(|(at, seed)| *seed = at as u64);
    let mut add = |store: &Store, expected: &mut Expected, change: u64| {
        let newest = expected.must.last().copied();
        let before = guest.clone();
        for at in 0..12 {
            guest.pages[(change * 57 + at * 5) as usize % PAGES] = change * 1000 + at;
        }
        guest.state = vec![change as u8; 5000];
        time.pass(Duration::from_secs(3600));
        // If the very last step fails, the checkpoint may be there or not.
        expected.guests.insert(newest.map_or(1, |newest| newest + 1), guest.clone());
        let sequence = checkpoint(store, &guest, newest.map(|newest| (&before, newest)))?
            .checkpoint
            .sequence;
        expected.must.insert(sequence);
        Ok::<_, Error>(())
    };
    for change in 1..6 {
        add(store, expected, change)?;
    }
    let policy = Policy {
        last: 3,
        ..Policy::default()
    };
    expected.must.retain(|sequence| *sequence > 2);
    store.prune(&guest0(), &policy, false)?;
    expected.guests.retain(|sequence, _| *sequence > 2);
    store.gc(&now())?;
    add(store, expected, 6)?;
    expected.must.retain(|sequence| *sequence != 3 && *sequence != 4);
    let squash = SquashOptions {
        rewrite: Some(u64::MAX),
        order: vec![Touch {
            backend: 0,
            pages: range(100, 50),
        }],
        ..SquashOptions::default()
    };
    store.squash(&guest0(), 3, 5, &squash)?;
    expected.guests.retain(|sequence, _| *sequence > 4);
    store.gc(&now())?;
    add(store, expected, 7)?;
    let image = store.hold(&name(6), "a restore")?;
    assert!(store.remove(&name(6)).is_err(), "it is being read");
    store.gc(&now())?;
    drop(image);
    expected.must.remove(&6);
    store.remove(&name(6))?;
    expected.guests.remove(&6);
    store.gc(&now())?;
    Ok(())
}

fn guest0() -> crate::GuestName {
    guest()
}

/// Kills the program after each number of writing operations, or after every `step`-th, and looks at what it left.
fn kill_everywhere(init: &InitOptions, faults: &Faults, step: usize) {
    let mut kills = 0;
    for stop in (0..).step_by(step) {
        let memory = Arc::new(Memory::new());
        let time = Arc::new(Time::default());
        let store = Store::init(memory.clone(), init, options(&time)).unwrap();
        memory.set_faults(Faults {
            stop_after: Some(stop),
            ..faults.clone()
        });
        let mut expected = Expected::default();
        let ended = live(&store, &time, &mut expected);
        let open = |memory: &Arc<Memory>| {
            let mut options = options(&time);
            options.key = init.key.clone();
            Store::open(memory.clone(), options).unwrap()
        };
        let left = Arc::new(memory.copy());
        let store = open(&left);
        assert_all(&store, &expected.guests, expected.must.clone());
        // The leases of the killed program end, and the garbage goes; nothing else does.
        time.pass(Duration::from_secs(2 * 3600));
        let there = assert_all(&store, &expected.guests, expected.must.clone());
        let report = store
            .gc(&now())
            .unwrap_or_else(|error| panic!("stopped after {stop}: {error}"));
        assert!(report.problems.is_empty(), "stopped after {stop}: {report:?}");
        store.gc(&now()).unwrap();
        assert_eq!(assert_all(&store, &expected.guests, expected.must.clone()), there);
        let last = store.gc(&now()).unwrap();
        assert_eq!((last.deleted, last.waiting, last.trimmed), (0, 0, 0), "stopped after {stop}");
        assert!(
            objects(&left, "leases/").is_empty() && objects(&left, "gc/").is_empty(),
            "stopped after {stop}: {:?}",
            objects(&left, "")
        );
        // And the next checkpoint succeeds.
        let newest = there
            .last()
            .map(|newest| (expected.guests.get(newest).unwrap().clone(), *newest));
        let mut next = newest.as_ref().map_or_else(|| Guest::new(PAGES), |(guest, _)| guest.clone());
        next.pages[5] = 987_654;
        let sequence = checkpoint(&store, &next, newest.as_ref().map(|(guest, at)| (guest, *at)))
            .unwrap()
            .checkpoint
            .sequence;
        expected.guests.insert(sequence, next);
        assert_all(&store, &expected.guests, [sequence]);
        if ended.is_ok() {
            break;
        }
        kills += 1;
    }
    assert!(kills * step > 60, "only {kills} operations write");
}

fn init(key: Option<UserKey>) -> InitOptions {
    InitOptions {
        key,
        compression: Compression::None,
        ..small()
    }
}

#[test]
fn kill_after_any_operation_leaves_whole_checkpoints_only() {
    kill_everywhere(&init(None), &Faults::default(), 1);
}

#[test]
fn kill_after_any_operation_of_an_encrypted_store() {
    kill_everywhere(&init(Some(UserKey::generate().unwrap())), &Faults::default(), 3);
}

#[test]
fn kill_after_any_operation_of_an_overloaded_store() {
    let faults = Faults {
        overloaded_every: Some(7),
        answer_lost_every: Some(11),
        ..Faults::default()
    };
    kill_everywhere(&init(None), &faults, 3);
}
