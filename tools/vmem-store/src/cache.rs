// SPDX-License-Identifier: GPL-2.0-or-later
//! What was read, for several threads: each thing is read once, and those that want it meanwhile wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
enum Slot<V> {
    Loading,
    Ready { value: Arc<V>, used: u64 },
}

#[derive(Debug)]
struct State<K, V> {
    slots: HashMap<K, Slot<V>>,
    clock: u64,
}

/// At most `capacity` values; the one that was used longest ago goes first. Errors are not kept.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    state: Mutex<State<K, V>>,
    loaded: Condvar,
    capacity: usize,
}

/// Removes the mark of a load that did not succeed, and wakes those that wait for it: one of them loads next.
struct Loading<'a, K: Hash + Eq, V> {
    cache: &'a Cache<K, V>,
    key: Option<K>,
}

impl<K: Hash + Eq, V> Drop for Loading<'_, K, V> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.cache.lock().slots.remove(&key);
            self.cache.loaded.notify_all();
        }
    }
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                slots: HashMap::new(),
                clock: 0,
            }),
            loaded: Condvar::new(),
            capacity: capacity.max(1),
        }
    }

    /// The value, or what `load` makes of it.
    pub(crate) fn get<E>(&self, key: &K, load: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.slots.get_mut(key) {
                Some(Slot::Ready { value, used }) => {
                    *used = now;
                    return Ok(value.clone());
                }
                Some(Slot::Loading) => state = self.loaded.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.slots.insert(key.clone(), Slot::Loading);
        drop(state);
        let mut loading = Loading {
            cache: self,
            key: Some(key.clone()),
        };
        let value = Arc::new(load()?);
        loading.key = None;
        let mut state = self.lock();
        if state.slots.len() > self.capacity {
            let oldest = state.slots.iter().filter_map(|(key, slot)| match slot {
                Slot::Ready { used, .. } => Some((*used, key)),
                Slot::Loading => None,
            });
            if let Some(oldest) = oldest.min_by_key(|(used, _)| *used).map(|(_, key)| key.clone()) {
                state.slots.remove(&oldest);
            }
        }
        state.clock += 1;
        let slot = Slot::Ready {
            value: value.clone(),
            used: state.clock,
        };
        state.slots.insert(key.clone(), slot);
        drop(state);
        self.loaded.notify_all();
        Ok(value)
    }

    /// Adds a value that came with another one, unless there is one or somebody loads it.
    pub(crate) fn add(&self, key: &K, value: V) {
        if !self.lock().slots.contains_key(key) {
            let _ = self.get(key, || Ok::<_, std::convert::Infallible>(value));
        }
    }

    /// How many values there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().slots.len()
    }

    /// Forgets a value.
    pub(crate) fn remove(&self, key: &K) {
        let mut state = self.lock();
        if matches!(state.slots.get(key), Some(Slot::Ready { .. })) {
            state.slots.remove(key);
        }
    }
}

impl<K: Hash + Eq, V> Cache<K, V> {
    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_of_many_threads_loads() {
        let cache = Cache::new(10);
        let loads = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20));
                        Ok::<_, ()>(7)
                    };
                    assert_eq!(*cache.get(&1, load).unwrap(), 7);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn error_is_not_kept() {
        let cache = Cache::new(10);
        assert_eq!(cache.get(&1, || Err::<i32, _>("away")).unwrap_err(), "away");
        assert_eq!(*cache.get(&1, || Ok::<_, ()>(1)).unwrap(), 1);
    }

    #[test]
    fn value_used_longest_ago_goes_first() {
        let cache = Cache::new(2);
        let load = |key: i32| *cache.get(&key, || Ok::<_, ()>(key)).unwrap();
        load(1);
        load(2);
        load(1);
        load(3);
        assert_eq!(*cache.get(&1, || Ok::<_, ()>(-1)).unwrap(), 1);
        assert_eq!(*cache.get(&2, || Ok::<_, ()>(-2)).unwrap(), -2);
    }
}
