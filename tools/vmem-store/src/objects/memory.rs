// SPDX-License-Identifier: GPL-2.0-or-later
//! Objects in memory, for tests: with faults at chosen operations, and a count of all operations.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};

/// Operations so far, by kind, and bytes that moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects written.
    pub puts: u64,
    /// Reads, of whole objects or parts.
    pub gets: u64,
    /// Listings.
    pub lists: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// What a [`Memory`] does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// After so many more writing operations (puts, deletes) the place is gone for good, as for a process that was killed: they fail and
    /// change nothing.
    pub stop_after: Option<u64>,
    /// Every n-th operation fails as an overloaded server does, before it has done anything.
    pub overloaded_every: Option<u64>,
    /// Every n-th put succeeds, and its answer is lost.
    pub answer_lost_every: Option<u64>,
    /// Every n-th read gives half of the bytes.
    pub short_every: Option<u64>,
    /// Puts of objects fail for want of space once the place holds so many bytes.
    pub space: Option<u64>,
    /// `Put::New` replaces, as on servers that ignore If-None-Match.
    pub ignores_create: bool,
    /// Listings do not show the newest so many objects.
    pub stale: usize,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, SystemTime, u64)>,
    faults: Faults,
    counts: Counts,
    operations: u64,
}

/// A place that keeps objects in memory.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

impl Memory {
    /// An empty place without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, these faults.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The operations since the place was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Operations since the place was made, those that failed among them.
    #[cfg(test)]
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Bytes of all objects whose names begin with `prefix`.
    #[must_use]
    pub fn bytes(&self, prefix: &str) -> u64 {
        let state = self.lock();
        state
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, object)| object.0.len() as u64)
            .sum()
    }

    /// Changes the bytes of an object behind the store's back. Whether there is such an object.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.lock()
            .objects
            .get_mut(name)
            .map(|object| change(&mut object.0))
            .is_some()
    }

    /// A copy of what is there now, without faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::default();
        let state = self.lock();
        *copy.lock() = State {
            objects: state.objects.clone(),
            operations: state.operations,
            ..State::default()
        };
        drop(state);
        copy
    }
}

fn overloaded() -> ObjectError {
    ObjectError::transient("503 Slow Down")
}

fn is_due(every: Option<u64>, operation: u64) -> bool {
    every.is_some_and(|every| operation % every == 0)
}

impl State {
    fn begin(&mut self) -> Result<u64, ObjectError> {
        self.operations += 1;
        if is_due(self.faults.overloaded_every, self.operations) {
            return Err(overloaded());
        }
        Ok(self.operations)
    }

    fn may_write(&mut self) -> Result<(), ObjectError> {
        match &mut self.faults.stop_after {
            Some(0) => Err(ObjectError::other("the process was killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Objects for Memory {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        let mut state = self.lock();
        let operation = state.begin()?;
        if put == Put::New && !state.faults.ignores_create && state.objects.contains_key(name) {
            return Err(ObjectError::AlreadyExists);
        }
        let held: u64 = state.objects.values().map(|object| object.0.len() as u64).sum();
        if state.faults.space.is_some_and(|space| held + bytes.len() as u64 > space) {
            return Err(ObjectError::NoSpace);
        }
        state.may_write()?;
        state.counts.puts += 1;
        state.counts.written += bytes.len() as u64;
        state
            .objects
            .insert(name.to_owned(), (bytes.to_vec(), SystemTime::now(), operation));
        if is_due(state.faults.answer_lost_every, operation) {
            return Err(ObjectError::transient("the connection was reset"));
        }
        Ok(())
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        let mut state = self.lock();
        let operation = state.begin()?;
        state.counts.gets += 1;
        let object = state.objects.get(name).ok_or(ObjectError::NotFound)?;
        let size = object.0.len() as u64;
        let range = part.of(size)?;
        let bytes = object.0[range.start as usize..range.end as usize].to_vec();
        if is_due(state.faults.short_every, operation) {
            let wanted = bytes.len() as u64;
            return Err(ObjectError::Short { wanted, got: wanted / 2 });
        }
        state.counts.read += bytes.len() as u64;
        Ok(Fetched { bytes, size })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let mut state = self.lock();
        let operation = state.begin()?;
        state.counts.lists += 1;
        let mut ages: Vec<u64> = state.objects.values().map(|object| object.2).collect();
        ages.sort_unstable();
        // What was written by this operation or a later one is not shown.
        let hidden = match ages.len().checked_sub(state.faults.stale) {
            Some(shown) => ages.get(shown).copied().unwrap_or(operation),
            None => 0,
        };
        let shown = state
            .objects
            .iter()
            .filter(|(name, object)| name.starts_with(prefix) && object.2 < hidden);
        Ok(shown
            .map(|(name, (bytes, modified, _))| ObjectMeta {
                name: name.clone(),
                size: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let mut state = self.lock();
        state.begin()?;
        state.may_write()?;
        state.counts.deletes += 1;
        state.objects.remove(name);
        Ok(())
    }
}
