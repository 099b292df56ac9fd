// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints that are open, each under one lease as long as a file of it is open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vmem_store::{CheckpointName, Image, PageError, Store};
use vmem_store_source::Location;

use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Images {
    store: Store,
    location: Location,
    /// Says to a person who holds the leases.
    holder: String,
    open: Mutex<HashMap<CheckpointName, Weak<Image>>>,
}

impl Images {
    pub(crate) fn new(store: Store, location: Location, holder: String) -> Self {
        Self {
            store,
            location,
            holder,
            open: Mutex::default(),
        }
    }

    /// A checkpoint under a lease. The last one that drops it gives the lease back, which takes a request to the store.
    pub(crate) fn hold(&self, checkpoint: &CheckpointName) -> Result<Arc<Image>, Error> {
        if let Some(image) = self.find(checkpoint) {
            return Ok(image);
        }
        // Without the lock: it may take long. Two leases on one checkpoint do no harm.
        let hold = || self.store.hold(checkpoint, &self.holder).map_err(PageError::from);
        let image = Arc::new(self.location.read_there(hold)?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, image| image.strong_count() > 0);
        open.insert(checkpoint.clone(), Arc::downgrade(&image));
        Ok(image)
    }

    fn find(&self, checkpoint: &CheckpointName) -> Option<Arc<Image>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(checkpoint).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestStore;

    #[test]
    fn checkpoint_cannot_be_removed_while_a_file_of_it_is_open() {
        let test = TestStore::new();
        let images = Images::new(test.store.clone(), test.location.clone(), "a test".to_owned());
        let image = images.hold(&test.name(1)).expect("a checkpoint");
        assert!(Arc::ptr_eq(&image, &images.hold(&test.name(1)).expect("a checkpoint")));
        let being_read = test.store.remove(&test.name(1));
        assert!(
            matches!(being_read, Err(vmem_store::Error::BeingRead { .. })),
            "{being_read:?}"
        );
        drop(image);
        test.store.remove(&test.name(1)).expect("nobody reads it");
        assert_eq!(images.hold(&test.name(1)).err(), Some(Error::NotFound));
    }
}
