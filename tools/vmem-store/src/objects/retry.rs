// SPDX-License-Identifier: GPL-2.0-or-later
//! Operations that are tried again while the place of the objects is overloaded or away.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};

/// How often, and how long, to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts of an operation, at least.
    pub attempts: u32,
    /// The pause before the second attempt; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// How long a place may be away before operations fail that have had their attempts.
    pub patience: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            patience: Duration::ZERO,
        }
    }
}

/// What becomes of a place that is away.
#[derive(Debug)]
pub enum Outage<'a> {
    /// It has not answered in as many attempts as an operation has, and is waited for.
    Begins(&'a ObjectError),
    /// It answers again, after so long.
    Ends(Duration),
}

/// Somebody who waits for a place that is away. Any thread calls the methods.
pub trait Waiting: Send + Sync {
    /// Something has become of the place.
    fn notice(&self, outage: Outage<'_>);

    /// Whether to wait no more. Operations are tried once then.
    fn is_over(&self) -> bool;
}

/// How often a pause looks whether the wait is over.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A failure so long after the last one is the beginning of another outage, if nothing was asked in between.
const SEPARATE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Away {
    since: Instant,
    /// The latest failure.
    latest: Instant,
    is_noticed: bool,
}

/// A place whose transient errors are tried again.
pub struct Retrying {
    objects: Arc<dyn Objects>,
    retry: Retry,
    waiting: Option<Arc<dyn Waiting>>,
    away: Mutex<Option<Away>>,
}

impl fmt::Debug for Retrying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl Retrying {
    /// The same objects, with attempts.
    #[must_use]
    pub fn new(objects: Arc<dyn Objects>, retry: Retry, waiting: Option<Arc<dyn Waiting>>) -> Self {
        Self {
            objects,
            retry,
            waiting,
            away: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.is_over())
    }

    /// Notes a failure. Whether another attempt makes sense.
    fn waits_after(&self, error: &ObjectError, attempt: u32) -> bool {
        let now = Instant::now();
        let has_attempts = attempt < self.retry.attempts;
        let (lasts, is_first) = {
            let mut guard = self.away.lock().unwrap_or_else(PoisonError::into_inner);
            let separate = self.retry.patience.max(SEPARATE);
            if guard.as_ref().is_some_and(|away| now.duration_since(away.latest) > separate) {
                *guard = None;
            }
            let away = guard.get_or_insert(Away {
                since: now,
                latest: now,
                is_noticed: false,
            });
            away.latest = now;
            let lasts = now.duration_since(away.since);
            let is_first = !has_attempts && !away.is_noticed && lasts < self.retry.patience;
            away.is_noticed |= is_first;
            (lasts, is_first)
        };
        if let Some(waiting) = self.waiting.as_ref().filter(|_| is_first) {
            waiting.notice(Outage::Begins(error));
        }
        !self.is_over() && (has_attempts || lasts < self.retry.patience)
    }

    /// Notes that the place has answered.
    fn answered(&self) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(away), Some(waiting)) = (away.filter(|away| away.is_noticed), &self.waiting) {
            waiting.notice(Outage::Ends(away.since.elapsed()));
        }
    }

    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_over() {
                return;
            }
            thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    /// `operation` is told whether an attempt before it has failed.
    fn attempt<T>(&self, mut operation: impl FnMut(bool) -> Result<T, ObjectError>) -> Result<T, ObjectError> {
        let mut pause = self.retry.pause;
        for attempt in 1.. {
            match operation(attempt > 1) {
                Err(error) if error.is_transient() => {
                    if !self.waits_after(&error, attempt) {
                        return Err(error);
                    }
                    tracing::debug!("attempt {attempt} failed: {error}");
                    self.sleep(pause);
                    pause = (pause * 2).min(self.retry.longest);
                }
                ended => {
                    self.answered();
                    return ended;
                }
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::{Faults, Memory};
    use super::*;

    fn quick(objects: &Arc<Memory>) -> Retrying {
        with(objects, Duration::ZERO, None)
    }

    fn with(objects: &Arc<Memory>, patience: Duration, waiting: Option<Arc<dyn Waiting>>) -> Retrying {
        let retry = Retry {
            attempts: 3,
            pause: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            patience,
        };
        Retrying::new(objects.clone(), retry, waiting)
    }

    fn is_away(memory: &Memory, away: bool) {
        memory.set_faults(Faults {
            overloaded_every: away.then_some(1),
            ..Faults::default()
        });
    }

    /// Hears of outages, and may have enough.
    #[derive(Default)]
    struct Ear {
        heard: Mutex<Vec<&'static str>>,
        is_over: AtomicBool,
    }

    impl Waiting for Ear {
        fn notice(&self, outage: Outage<'_>) {
            self.heard.lock().unwrap().push(match outage {
                Outage::Begins(_) => "begins",
                Outage::Ends(_) => "ends",
            });
        }

        fn is_over(&self) -> bool {
            self.is_over.load(Ordering::SeqCst)
        }
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
        is_away(&memory, true);
        assert!(quick(&memory).list("").unwrap_err().is_transient());
    }

    #[test]
    fn outage_is_waited_for_and_noticed_once_by_all_threads() {
        let (memory, ear) = (Arc::new(Memory::new()), Arc::new(Ear::default()));
        let store = with(&memory, Duration::from_secs(60), Some(ear.clone()));
        for _ in 0..2 {
            is_away(&memory, true);
            thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| store.list("").unwrap())).collect();
                while ear.heard.lock().unwrap().len() % 2 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                is_away(&memory, false);
                threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
            });
        }
        assert_eq!(*ear.heard.lock().unwrap(), ["begins", "ends", "begins", "ends"]);
    }

    #[test]
    fn patience_ends_for_the_outage_and_not_for_each_operation() {
        let (memory, ear) = (Arc::new(Memory::new()), Arc::new(Ear::default()));
        let store = with(&memory, Duration::from_millis(300), Some(ear.clone()));
        is_away(&memory, true);
        let began = Instant::now();
        store.list("").unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(300));
        // What cleans up after that does not wait again.
        let before = memory.operations();
        (0..10).for_each(|_| drop(store.delete("a").unwrap_err()));
        assert_eq!(memory.operations() - before, 30, "three attempts each");
        assert_eq!(*ear.heard.lock().unwrap(), ["begins"]);
    }

    #[test]
    fn who_has_enough_waits_no_longer() {
        let (memory, ear) = (Arc::new(Memory::new()), Arc::new(Ear::default()));
        let retry = Retry {
            pause: Duration::from_secs(100),
            longest: Duration::from_secs(100),
            patience: Duration::from_secs(1000),
            ..Retry::default()
        };
        let store = Retrying::new(memory.clone(), retry, Some(ear.clone()));
        is_away(&memory, true);
        let began = Instant::now();
        thread::scope(|scope| {
            let waits = scope.spawn(|| store.list(""));
            thread::sleep(Duration::from_millis(100));
            ear.is_over.store(true, Ordering::SeqCst);
            assert!(waits.join().unwrap().is_err());
        });
        assert!(began.elapsed() < Duration::from_secs(50));
        let before = memory.operations();
        store.delete("a").unwrap_err();
        assert_eq!(memory.operations() - before, 1, "one attempt");
    }
}
