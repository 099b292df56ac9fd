// SPDX-License-Identifier: GPL-2.0
//! Operations that are tried again while the place of the objects is overloaded or away.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};

/// How often, and how long, to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// The pause before the second attempt; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_millis(100),
            longest: Duration::from_secs(5),
        }
    }
}

/// A place whose transient errors are tried again.
#[derive(Debug)]
pub struct Retrying {
    objects: Arc<dyn Objects>,
    retry: Retry,
}

impl Retrying {
    /// The same objects, with attempts.
    #[must_use]
    pub fn new(objects: Arc<dyn Objects>, retry: Retry) -> Self {
        Self { objects, retry }
    }

    /// `operation` is told whether an attempt before it has failed.
    fn attempt<T>(&self, mut operation: impl FnMut(bool) -> Result<T, ObjectError>) -> Result<T, ObjectError> {
        let mut pause = self.retry.pause;
        for attempt in 1.. {
            match operation(attempt > 1) {
                Err(error) if error.is_transient() && attempt < self.retry.attempts => {
                    tracing::debug!("attempt {attempt} of {} failed: {error}", self.retry.attempts);
                    thread::sleep(pause);
                    pause = (pause * 2).min(self.retry.longest);
                }
                ended => return ended,
            }
        }
        unreachable!("the attempts end")
    }
}

impl Objects for Retrying {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        self.attempt(|again| match self.objects.put(name, bytes, put) {
            // The answer to an attempt that succeeded was lost, if the object is the very same.
            Err(ObjectError::AlreadyExists) if again => match self.objects.get(name, Part::All(bytes.len() as u64)) {
                Ok(found) if found.bytes == bytes => Ok(()),
                Err(error) if error.is_transient() => Err(error),
                _ => Err(ObjectError::AlreadyExists),
            },
            put => put,
        })
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        self.attempt(|_| self.objects.get(name, part.clone()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.attempt(|_| self.objects.list(prefix))
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.attempt(|_| self.objects.delete(name))
    }

    fn sweep(&self, age: Duration) -> Result<u64, ObjectError> {
        self.objects.sweep(age)
    }

    fn window(&self) -> u64 {
        self.objects.window()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Faults, Memory};
    use super::*;

    fn quick(objects: &Arc<Memory>) -> Retrying {
        let retry = Retry {
            attempts: 3,
            pause: Duration::ZERO,
            longest: Duration::ZERO,
        };
        Retrying::new(objects.clone(), retry)
    }

    #[test]
    fn lost_answer_to_create_is_success_for_the_same_bytes_only() {
        let memory = Arc::new(Memory::new());
        let store = quick(&memory);
        memory.set_faults(Faults {
            answer_lost_every: Some(1),
            ..Faults::default()
        });
        store.put("a", b"mine", Put::New).unwrap();
        assert!(matches!(store.put("a", b"other", Put::New), Err(ObjectError::AlreadyExists)));
        assert_eq!(store.get("a", Part::All(10)).unwrap().bytes, b"mine");
    }

    #[test]
    fn attempts_end() {
        let memory = Arc::new(Memory::new());
        memory.set_faults(Faults {
            overloaded_every: Some(1),
            ..Faults::default()
        });
        assert!(quick(&memory).list("").unwrap_err().is_transient());
    }
}
