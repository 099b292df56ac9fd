// SPDX-License-Identifier: GPL-2.0-or-later
//! Which threads are at work, and until when each owes a sign of life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Of a thread that owes no sign.
const NEVER: u64 = u64::MAX;

/// The threads of a process that show whether they are alive, for a watchdog. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Liveness(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    /// What times are counted from.
    since: Instant,
    /// How long work may take that waits for nothing.
    patience: Duration,
    threads: Mutex<Vec<Weak<Thread>>>,
}

#[derive(Debug)]
struct Thread {
    name: String,
    /// When the next sign is overdue, in milliseconds.
    due: AtomicU64,
}

impl Liveness {
    /// A thread that works, and waits for nothing, shows a sign of life within `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self(Arc::new(Watched {
            since: Instant::now(),
            patience,
            threads: Mutex::default(),
        }))
    }

    /// The signs of a further thread, which works. It is watched until they are dropped.
    #[must_use]
    pub fn watch(&self, name: impl Into<String>) -> Pulse {
        let thread = Arc::new(Thread {
            name: name.into(),
            due: AtomicU64::new(NEVER),
        });
        let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(&thread));
        let pulse = Pulse {
            watched: Arc::clone(&self.0),
            thread,
        };
        pulse.works();
        pulse
    }

    /// The name of a thread whose sign of life is overdue.
    #[must_use]
    pub fn overdue(&self) -> Option<String> {
        self.overdue_at(self.0.milliseconds())
    }

    fn overdue_at(&self, now: u64) -> Option<String> {
        let threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut threads = threads.iter().filter_map(Weak::upgrade);
        let late = threads.find(|thread| thread.due.load(Ordering::Relaxed) < now);
        late.map(|thread| thread.name.clone())
    }
}

impl Default for Liveness {
    /// For threads that no watchdog looks at.
    fn default() -> Self {
        Self::new(Duration::MAX)
    }
}

impl Watched {
    fn milliseconds(&self) -> u64 {
        as_milliseconds(self.since.elapsed())
    }
}

fn as_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

/// How a thread shows that it is alive. Each sign says how long the next one may take.
#[derive(Debug)]
pub struct Pulse {
    watched: Arc<Watched>,
    thread: Arc<Thread>,
}

impl Pulse {
    /// The thread works: it waits for nothing that others decide.
    pub fn works(&self) {
        self.waits(Duration::ZERO);
    }

    /// The thread begins something that others may keep it at for `limit`.
    pub fn waits(&self, limit: Duration) {
        let limit = as_milliseconds(self.watched.patience.saturating_add(limit));
        self.set(self.watched.milliseconds().saturating_add(limit));
    }

    /// The thread has nothing to do, or waits for something that may take for ever: it owes no sign until it works again.
    pub fn rests(&self) {
        self.set(NEVER);
    }

    fn set(&self, due: u64) {
        self.thread.due.store(due, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: u64 = 20;

    fn watched() -> (Liveness, u64) {
        let liveness = Liveness::new(Duration::from_millis(PATIENCE));
        let now = liveness.0.milliseconds();
        (liveness, now)
    }

    /// When a thread of which a sign is taken after this call is overdue for certain, if the sign comes within seconds.
    fn late(liveness: &Liveness) -> u64 {
        liveness.0.milliseconds() + 100_000
    }

    #[test]
    fn thread_that_works_and_shows_no_sign_is_overdue() {
        let (liveness, _) = watched();
        let pulse = liveness.watch("stream");
        let other = liveness.clone().watch("urgent");
        other.rests();
        assert_eq!(liveness.overdue_at(late(&liveness)).as_deref(), Some("stream"));
        let now = liveness.0.milliseconds();
        pulse.works();
        assert_eq!(liveness.overdue_at(now + PATIENCE), None);
        drop(pulse);
        assert_eq!(
            liveness.overdue_at(late(&liveness)),
            None,
            "a thread that has ended owes nothing"
        );
    }

    #[test]
    fn thread_that_rests_or_waits_within_its_limit_is_not_overdue() {
        let (liveness, now) = watched();
        let pulses = [liveness.watch("a"), liveness.watch("b")];
        pulses[0].rests();
        pulses[1].waits(Duration::from_millis(PATIENCE * 10));
        assert_eq!(liveness.overdue_at(now + PATIENCE * 11), None);
        assert_eq!(liveness.overdue_at(late(&liveness)).as_deref(), Some("b"));
        let unwatched = Liveness::default();
        let _pulse = unwatched.watch("c");
        assert_eq!(unwatched.overdue_at(late(&unwatched)), None);
    }

    #[test]
    fn time_passes() {
        let (liveness, _) = watched();
        let _pulse = liveness.watch("stream");
        std::thread::sleep(Duration::from_millis(PATIENCE * 3));
        assert_eq!(liveness.overdue().as_deref(), Some("stream"));
    }
}
