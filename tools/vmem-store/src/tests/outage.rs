// SPDX-License-Identifier: GPL-2.0-or-later
//! A place that is away while a checkpoint is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmem_pages::{PAGE_SIZE, PageIndex};

use super::model::*;
use crate::objects::{Faults, Outage, Retry, Waiting};
use crate::{CommitOptions, Error, Manifest, OpenOptions, Store, WriteOptions};

/// Counts outages, and may have enough.
#[derive(Default)]
struct Ear {
    begun: AtomicUsize,
    ended: AtomicUsize,
    is_over: AtomicBool,
}

impl Waiting for Ear {
    fn notice(&self, outage: Outage<'_>) {
        let count = match outage {
            Outage::Begins(_) => &self.begun,
            Outage::Ends(_) => &self.ended,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

/// The store, for somebody with this patience.
fn patient(place: &Place, patience: Duration) -> (Store, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let options = OpenOptions {
        retry: Retry {
            attempts: 2,
            pause: Duration::from_millis(1),
            longest: Duration::from_millis(20),
            patience,
        },
        waiting: Some(ear.clone()),
        ..options(&place.time)
    };
    (Store::open(place.memory.clone(), options).unwrap(), ear)
}

fn is_away(place: &Place, away: bool) {
    place.memory.set_faults(Faults {
        overloaded_every: away.then_some(1),
        ..Faults::default()
    });
}

/// Makes a checkpoint of 200 pages, for which the place is away when the first of them are put, until `during` returns.
fn made(place: &Place, store: &Store, during: impl FnOnce()) -> Result<Manifest, Error> {
    let memories = [("ram".to_owned(), 200 * PAGE_SIZE as u64)];
    let writer = store.begin(&guest(), None, &memories, &WriteOptions::default())?;
    is_away(place, true);
    std::thread::scope(|scope| {
        let made = scope.spawn(move || {
            for page in 0..200 {
                writer.put_pages(0, PageIndex::new(page).unwrap(), &contents(page + 1))?;
            }
            writer.put_blob("device-state", &mut &b"device state"[..], 100)?;
            writer.commit(CommitOptions::default())
        });
        during();
        made.join().unwrap()
    })
}

#[test]
fn checkpoint_is_made_when_a_place_that_was_away_for_long_is_back() {
    let place = place();
    let (store, ear) = patient(&place, Duration::from_secs(100));
    let made = made(&place, &store, || {
        while ear.begun.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        is_away(&place, false);
    });
    assert_eq!(made.unwrap().checkpoint, name(1));
    assert_eq!((ear.begun.load(Ordering::SeqCst), ear.ended.load(Ordering::SeqCst)), (1, 1));
    let mut guest = Guest::new(200);
    guest.pages.iter_mut().zip(1..).for_each(|(page, seed)| *page = seed);
    assert_is(&place.store.image(&name(1)).unwrap(), &guest);
}

#[test]
fn checkpoint_whose_place_stays_away_fails_once_the_patience_is_over() {
    let place = place();
    let (store, ear) = patient(&place, Duration::from_millis(500));
    let began = Instant::now();
    let failed = made(&place, &store, || {}).unwrap_err();
    assert!(failed.is_transient(), "{failed}");
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!((ear.begun.load(Ordering::SeqCst), ear.ended.load(Ordering::SeqCst)), (1, 0));
    is_away(&place, false);
    assert!(place.store.list().unwrap().is_empty());
}

#[test]
fn checkpoint_is_given_up_at_once_when_the_wait_is_over() {
    let place = place();
    let (store, ear) = patient(&place, Duration::from_secs(60));
    let began = Instant::now();
    let failed = made(&place, &store, || {
        std::thread::sleep(Duration::from_millis(200));
        ear.is_over.store(true, Ordering::SeqCst);
    });
    assert!(failed.unwrap_err().is_transient());
    assert!(began.elapsed() < Duration::from_secs(30));
    is_away(&place, false);
    assert!(place.store.list().unwrap().is_empty());
}
