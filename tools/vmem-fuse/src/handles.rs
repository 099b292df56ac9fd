// SPDX-License-Identifier: GPL-2.0-or-later
//! What is open, by the numbers that the kernel has for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Open things of one kind. The kernel closes each number once.
#[derive(Debug)]
pub(crate) struct Handles<T>(Mutex<(HashMap<u64, Arc<T>>, u64)>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(Mutex::new((HashMap::new(), 0)))
    }
}

impl<T> Handles<T> {
    fn lock(&self) -> MutexGuard<'_, (HashMap<u64, Arc<T>>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a thing, and returns its number.
    pub(crate) fn insert(&self, thing: T) -> u64 {
        let (things, last) = &mut *self.lock();
        *last += 1;
        things.insert(*last, Arc::new(thing));
        *last
    }

    /// The thing with a number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.lock().0.get(&number).cloned()
    }

    /// Takes out the thing with a number.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.lock().0.remove(&number)
    }

    /// Takes out all.
    pub(crate) fn remove_all(&self) -> Vec<Arc<T>> {
        self.lock().0.drain().map(|(_, thing)| thing).collect()
    }
}
