// SPDX-License-Identifier: GPL-2.0-or-later
//! A removal and a reader that begin at the same time, at every order of their operations.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::model::*;
use crate::objects::{Faults, Fetched, Memory, ObjectError, ObjectMeta, Objects, Part, Put};
use crate::{Error, GcOptions, Image, OpenOptions, Policy, SquashOptions, Store};

/// Who may execute how many operations before the other one may.
#[derive(Debug)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    turn: usize,
    left: u64,
    /// What both have after their first turns.
    later: [Option<u64>; 2],
    ended: [bool; 2],
}

impl Turns {
    /// First so many operations of number 0, then so many of number 1, then one after the other.
    fn new(first: u64, second: u64) -> Arc<Self> {
        let mut later = [None, Some(second)];
        let (turn, left) = match (first, second) {
            (0, 0) => {
                later[1] = None;
                (0, 1)
            }
            (0, second) => {
                later[1] = None;
                (1, second)
            }
            (first, 0) => {
                later[1] = None;
                (0, first)
            }
            (first, _) => (0, first),
        };
        Arc::new(Self {
            state: Mutex::new(State {
                turn,
                left,
                later,
                ended: [false; 2],
            }),
            changed: Condvar::new(),
        })
    }

    fn pass(&self, state: &mut State) {
        let other = 1 - state.turn;
        if !state.ended[other] {
            state.turn = other;
        }
        state.left = state.later[state.turn].take().unwrap_or(1);
        self.changed.notify_all();
    }

    fn operate<T>(&self, own: usize, operation: impl FnOnce() -> T) -> T {
        let mut state = self.state.lock().unwrap();
        // What a checkpoint that was opened does at its end is in nobody's way.
        if state.ended[own] {
            return operation();
        }
        while state.turn != own {
            state = self.changed.wait(state).unwrap();
        }
        let done = operation();
        state.left -= 1;
        if state.left == 0 {
            self.pass(&mut state);
        }
        done
    }

    fn end(&self, own: usize) {
        let mut state = self.state.lock().unwrap();
        state.ended[own] = true;
        if state.turn == own {
            self.pass(&mut state);
        }
    }
}

/// The objects, for one of the two.
#[derive(Debug)]
struct InTurn {
    memory: Arc<Memory>,
    turns: Arc<Turns>,
    own: usize,
}

impl Objects for InTurn {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        self.turns.operate(self.own, || self.memory.put(name, bytes, put))
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        self.turns.operate(self.own, || self.memory.get(name, part))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.turns.operate(self.own, || self.memory.list(prefix))
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.turns.operate(self.own, || self.memory.delete(name))
    }
}

fn now() -> GcOptions {
    GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    }
}

/// Three checkpoints.
fn three() -> (Place, Guest) {
    let place = place();
    let mut guest = Guest::new(20);
    guest.pages[3] = 7;
    checkpoint(&place.store, &guest, None).unwrap();
    let first = guest.clone();
    for sequence in 1..3 {
        let before = guest.clone();
        guest.pages[5] = sequence + 100;
        checkpoint(&place.store, &guest, Some((&before, sequence))).unwrap();
    }
    (place, first)
}

/// A place of its own with the same objects.
fn copy(place: &Place) -> Place {
    let (memory, time) = (Arc::new(place.memory.copy()), Arc::new(Time::default()));
    let store = Store::open(memory.clone(), options(&time)).unwrap();
    Place { memory, time, store }
}

/// Removes checkpoint 1, or says that it stays.
type Remove = fn(&Store) -> Result<bool, Error>;

fn remove(store: &Store) -> Result<bool, Error> {
    match store.remove(&name(1)) {
        Err(Error::BeingRead { .. }) => Ok(false),
        removed => removed.map(|()| true),
    }
}

fn prune(store: &Store) -> Result<bool, Error> {
    let policy = Policy {
        last: 2,
        ..Policy::default()
    };
    let decisions = store.prune(&guest(), &policy, false)?;
    let first = decisions.iter().find(|decision| decision.sequence == 1);
    Ok(first.is_some_and(|first| !first.is_kept()))
}

fn squash(store: &Store) -> Result<bool, Error> {
    let report = store.squash(&guest(), 1, 2, &SquashOptions::default())?;
    Ok(report.removed.contains(&1))
}

/// Both, in these turns. Whether it was removed, and what the reader got; and how many operations they took.
fn both(place: &Place, remove: Remove, swap: bool, first: u64, second: u64) -> (bool, Result<Image, Error>) {
    let turns = Turns::new(first, second);
    let [remover, reader] = if swap { [1, 0] } else { [0, 1] };
    let store = |own: usize| {
        let objects = InTurn {
            memory: place.memory.clone(),
            turns: turns.clone(),
            own,
        };
        move |options: OpenOptions| Store::open(Arc::new(objects), options).unwrap()
    };
    let (removes, reads) = (store(remover), store(reader));
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| {
            let removed = remove(&removes(options(&place.time)));
            turns.end(remover);
            removed.unwrap()
        });
        let read = reads(options(&place.time)).hold(&name(1), "a restore");
        turns.end(reader);
        (removed.join().unwrap(), read)
    })
}

/// Operations of each, more than there are.
const STEPS: u64 = 14;

#[test]
fn checkpoint_is_removed_or_read_and_never_both_whatever_the_order_of_operations() {
    let (mut kept, mut gone) = (0, 0);
    let (before, guest) = three();
    for remove in [remove as Remove, prune, squash] {
        for (swap, first, second) in
            (0..2 * STEPS * STEPS).map(|number| (number % 2 == 1, number / 2 / STEPS, number / 2 % STEPS))
        {
            let place = copy(&before);
            let (removed, read) = both(&place, remove, swap, first, second);
            let what = format!("swap {swap}, {first}, {second}: removed {removed}, {:?}", read.as_ref().err());
            match read {
                Ok(image) => {
                    assert!(!removed, "{what}");
                    assert_is(&image, &guest);
                    // A vmemd that is started again opens it by its name.
                    drop(place.store.hold(&name(1), "again").unwrap());
                    kept += 1;
                }
                Err(Error::NoCheckpoint(_)) => {
                    assert!(removed, "{what}");
                    gone += 1;
                }
                Err(error) => panic!("{what}: {error}"),
            }
            assert_eq!(objects(&place.memory, "leases/"), [""; 0], "{what}");
        }
    }
    assert!(kept > 100 && gone > 100, "{kept} {gone}");
}

#[test]
fn checkpoint_is_removed_or_protected_and_never_both() {
    let (before, _) = three();
    for (first, second) in (0..STEPS * STEPS).map(|number| (number / STEPS, number % STEPS)) {
        let place = copy(&before);
        let turns = Turns::new(first, second);
        let store = |own: usize| {
            let objects = InTurn {
                memory: place.memory.clone(),
                turns: turns.clone(),
                own,
            };
            Store::open(Arc::new(objects), options(&place.time))
        };
        let (removed, protected) = std::thread::scope(|scope| {
            let removed = scope.spawn(|| {
                let removed = store(0).unwrap().remove(&name(1));
                turns.end(0);
                removed
            });
            let protected = store(1).unwrap().protect(&name(1), true);
            turns.end(1);
            (removed.join().unwrap(), protected)
        });
        match (removed, protected) {
            (Ok(()), Err(Error::NoCheckpoint(_))) | (Err(Error::Protected(_)), Ok(())) => {}
            other => panic!("{first}, {second}: {other:?}"),
        }
        let markers = objects(&place.memory, "checkpoints/guest0/0000000001").len();
        assert!(markers == 0 || markers == 2, "{first}, {second}: {markers}");
    }
}

#[test]
fn killed_removal_holds_readers_up_for_a_time_and_no_longer() {
    let mut was_held_up = false;
    for stop in 0..6 {
        let (place, guest) = three();
        place.memory.set_faults(Faults {
            stop_after: Some(stop),
            ..Faults::default()
        });
        let removed = place.store.remove(&name(1)).is_ok();
        let left = Arc::new(place.memory.copy());
        let mut quick = options(&place.time);
        quick.lease_time = Duration::from_secs(1);
        let store = Store::open(left.clone(), quick).unwrap();
        let is_there = store.manifest(&name(1)).is_ok();
        match store.hold(&name(1), "a restore") {
            Err(Error::BeingRemoved { seconds, .. }) => {
                assert!((1..=600).contains(&seconds));
                was_held_up = true;
            }
            Err(Error::NoCheckpoint(_)) => assert!(!is_there),
            held => assert!(!removed && held.is_ok(), "{stop}: {held:?}"),
        }
        place.time.pass(Duration::from_secs(11 * 60));
        match store.hold(&name(1), "a restore") {
            Ok(image) => assert_is(&image, &guest),
            Err(error) => assert!(!is_there && matches!(error, Error::NoCheckpoint(_)), "{stop}: {error}"),
        }
        // The next one does not mind the mark.
        assert_eq!(store.remove(&name(1)).is_ok(), is_there, "{stop}");
        store.gc(&now()).unwrap();
        assert_eq!(objects(&left, "leases/"), [""; 0], "{stop}");
    }
    assert!(was_held_up, "no removal was killed with a mark");
}

#[test]
fn removal_that_stands_still_removes_nothing_more() {
    /// Lets time pass when leases are listed.
    #[derive(Debug)]
    struct Still(Arc<Memory>, Arc<Time>);

    impl Objects for Still {
        fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
            self.0.put(name, bytes, put)
        }

        fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
            self.0.get(name, part)
        }

        fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
            let listed = self.0.list(prefix);
            if prefix == "leases/" {
                self.1.pass(Duration::from_secs(200));
            }
            listed
        }

        fn delete(&self, name: &str) -> Result<(), ObjectError> {
            self.0.delete(name)
        }
    }

    let (place, _) = three();
    let still = Still(place.memory.clone(), place.time.clone());
    let store = Store::open(Arc::new(still), options(&place.time)).unwrap();
    assert!(matches!(store.remove(&name(1)), Err(Error::RemovalLate(200))));
    assert_eq!(objects(&place.memory, "leases/"), [""; 0]);
    place.store.manifest(&name(1)).unwrap();
}

#[test]
fn mark_that_cannot_be_read_is_respected_until_it_is_old() {
    let (place, _) = three();
    let mut quick = options(&place.time);
    quick.lease_time = Duration::from_millis(200);
    // It is as old as the clock of this host says.
    quick.clock = OpenOptions::default().clock;
    let store = Store::open(place.memory.clone(), quick).unwrap();
    let mark = format!("leases/{}.removing", "5".repeat(32));
    place.memory.put(&mark, b"damaged", Put::New).unwrap();
    assert!(matches!(store.hold(&name(1), "a restore"), Err(Error::BeingRemoved { .. })));
    std::thread::sleep(Duration::from_millis(450));
    store.hold(&name(1), "a restore").unwrap();
    store.gc(&now()).unwrap();
    assert_eq!(objects(&place.memory, "leases/"), [""; 0]);
}
