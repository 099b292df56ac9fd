// SPDX-License-Identifier: GPL-2.0-or-later
//! Which checkpoints the store has, as of a second ago at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use vmem_store::{GuestName, PageError, Store};
use vmem_store_source::Location;

use crate::error::Error;

/// How long a listing of the store is used, and how long the kernel may use what it was told of a directory.
pub(crate) const FRESH: Duration = Duration::from_secs(1);

/// The checkpoints of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    /// How often each has been rewritten, by its number.
    pub(crate) checkpoints: BTreeMap<u64, u32>,
    /// When this was seen to change.
    pub(crate) changed: SystemTime,
}

/// The checkpoints of all guests.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) guests: BTreeMap<GuestName, Guest>,
    /// When guests were seen to come or go.
    pub(crate) changed: SystemTime,
}

#[derive(Debug)]
pub(crate) struct Catalog {
    store: Store,
    location: Location,
    known: RwLock<Arc<Listing>>,
    /// When the store was listed. Held by the thread that lists it.
    listed: Mutex<Option<Instant>>,
}

impl Catalog {
    pub(crate) fn new(store: Store, location: Location) -> Self {
        let guests = BTreeMap::new();
        let changed = SystemTime::now();
        Self {
            store,
            location,
            known: RwLock::new(Arc::new(Listing { guests, changed })),
            listed: Mutex::new(None),
        }
    }

    /// The latest listing, however old it is. Waits for nothing.
    pub(crate) fn known(&self) -> Arc<Listing> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A listing that is not older than [`FRESH`].
    pub(crate) fn fresh(&self) -> Result<Arc<Listing>, Error> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if listed.is_some_and(|at| now.duration_since(at) < FRESH) {
            return Ok(self.known());
        }
        let found = self.store.list().map_err(PageError::from)?;
        if found.is_empty() {
            // A directory that is not mounted is empty, too.
            self.location.is_there().map_err(PageError::Away)?;
        }
        let known = self.known();
        let today = SystemTime::now();
        let guests = found.into_iter().map(|(name, checkpoints)| {
            let checkpoints = checkpoints.into_iter();
            let checkpoints = checkpoints.map(|one| (one.checkpoint.sequence, one.revision)).collect();
            let before = known.guests.get(&name).filter(|before| before.checkpoints == checkpoints);
            let changed = before.map_or(today, |before| before.changed);
            (name, Guest { checkpoints, changed })
        });
        let guests: BTreeMap<_, _> = guests.collect();
        let same = guests.keys().eq(known.guests.keys());
        let changed = if same { known.changed } else { today };
        let listing = Arc::new(Listing { guests, changed });
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = listing.clone();
        *listed = Some(now);
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestStore;

    #[test]
    fn checkpoints_come_and_go_within_the_time_of_a_listing() {
        let test = TestStore::new();
        let catalog = Catalog::new(test.store.clone(), test.location.clone());
        let numbers = || -> Vec<u64> {
            let listing = catalog.fresh().expect("a listing");
            let guest = listing.guests.values().next().map(|guest| guest.checkpoints.keys().copied());
            guest.into_iter().flatten().collect()
        };
        assert_eq!(numbers(), [1]);
        let changed = catalog.known().changed;
        test.checkpoint();
        assert_eq!(numbers(), [1], "the listing is used again");
        std::thread::sleep(FRESH);
        assert_eq!(numbers(), [1, 2]);
        assert_eq!(catalog.known().changed, changed, "the guests are the same");
        test.store.remove(&test.name(1)).expect("a checkpoint");
        std::thread::sleep(FRESH);
        assert_eq!(numbers(), [2]);
    }

    #[test]
    fn store_that_is_away_is_not_an_empty_one() {
        let test = TestStore::new();
        let catalog = Catalog::new(test.store.clone(), test.location.clone());
        let away = test.directory.path().join("away");
        std::fs::rename(test.path(), &away).expect("a directory");
        assert!(matches!(catalog.fresh(), Err(Error::Away(_))));
        std::fs::rename(&away, test.path()).expect("a directory");
        assert_eq!(catalog.fresh().expect("a listing").guests.len(), 1);
    }
}
