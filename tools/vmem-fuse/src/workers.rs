// SPDX-License-Identifier: GPL-2.0-or-later
//! Threads that answer requests, each before its deadline.
//!
//! A request that no thread has answered by then is answered with an error, whether a thread is at it or not. So the number of requests that
//! wait is bounded, and so is the time that the thread waits which brings a further one.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::Errno;

use crate::error::Error;

/// Threads. Each reads, decompresses and verifies; over a network most of the time is waiting.
const THREADS: usize = 16;

/// Most requests that wait for an answer.
const WAITING: usize = 1024;

/// How much later than the deadline a request is answered that its thread has not answered: the thread knows better what is wrong.
const GRACE: Duration = Duration::from_millis(500);

/// Where an answer goes.
pub(crate) trait Reply: Send + 'static {
    /// Answers with an error.
    fn fail(self, errno: Errno);
}

/// A request that waits for its answer.
struct Waiting<R> {
    reply: Mutex<Option<R>>,
    /// What is asked for, in words that follow "cannot".
    what: String,
}

impl<R: Reply> Waiting<R> {
    fn take(&self) -> Option<R> {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn answer<T>(&self, result: Result<T, Error>, send: impl FnOnce(R, T)) {
        let Some(reply) = self.take() else { return };
        match result {
            Ok(answer) => send(reply, answer),
            Err(error) => {
                if error.is_failure() {
                    tracing::warn!("cannot {}: {error}", self.what);
                }
                reply.fail(error.errno());
            }
        }
    }
}

trait Expire: Send + Sync {
    /// Answers that it took longer than this.
    fn expire(&self, limit: Duration);
}

impl<R: Reply> Expire for Waiting<R> {
    fn expire(&self, limit: Duration) {
        let late = Error::Away(format!("the store has not answered within {} s", limit.as_secs_f32()));
        self.answer(Err::<(), _>(late), |_, ()| {});
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    /// What no thread has begun, by the numbers of the requests.
    jobs: BTreeMap<u64, Job>,
    /// The requests without an answer, and when they expire. All have the same time, so that they expire in the order of their numbers.
    waiting: BTreeMap<u64, (Instant, Arc<dyn Expire>)>,
    last: u64,
    /// Jobs that are no requests, and that have not ended.
    others: usize,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job.
    work: Condvar,
    /// A request was answered.
    answered: Condvar,
    /// The first request waits.
    waits: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.ended {
            let Some((_, job)) = state.jobs.pop_first() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            job();
            state = self.lock();
        }
    }

    /// Answers the requests that nobody has answered.
    fn watch(&self, limit: Duration) {
        let mut state = self.lock();
        while !state.ended {
            let Some((number, expires)) = state
                .waiting
                .first_key_value()
                .map(|(number, (expires, _))| (*number, *expires))
            else {
                state = self.waits.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = expires.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                state = self.waits.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let job = state.jobs.remove(&number);
            let waiting = state.waiting.remove(&number);
            drop(state);
            drop(job);
            if let Some((_, waiting)) = waiting {
                waiting.expire(limit);
            }
            self.answered.notify_all();
            state = self.lock();
        }
    }
}

/// The threads. They end when this is dropped; nobody waits for them, because the store may take long.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    /// How long a request may take.
    limit: Duration,
}

impl Workers {
    pub(crate) fn new(limit: Duration) -> io::Result<Self> {
        Self::with(THREADS, limit)
    }

    fn with(threads: usize, limit: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let workers = Self {
            shared: shared.clone(),
            limit,
        };
        thread::Builder::new()
            .name("deadlines".to_owned())
            .spawn(move || shared.watch(limit))?;
        for _ in 0..threads {
            let shared = workers.shared.clone();
            thread::Builder::new().name("view".to_owned()).spawn(move || shared.work())?;
        }
        Ok(workers)
    }

    /// Has a thread answer a request: `send` sends what `work` returns, which gets the deadline. If the deadline has passed by then, what it
    /// returns is dropped. Waits while too many requests wait.
    pub(crate) fn answer<R: Reply, T: 'static>(
        &self,
        what: String,
        reply: R,
        work: impl FnOnce(Instant) -> Result<T, Error> + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        let reply = Mutex::new(Some(reply));
        let waiting = Arc::new(Waiting { reply, what });
        let mut state = self.shared.lock();
        while state.waiting.len() >= WAITING {
            state = self.shared.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let deadline = Instant::now() + self.limit;
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, (deadline + GRACE, waiting.clone()));
        let shared = self.shared.clone();
        let job = move || {
            // Without an answer, somebody would wait until the deadline.
            let result = catch_unwind(AssertUnwindSafe(|| work(deadline)));
            let result = result.unwrap_or_else(|_| Err(Error::Lost("a thread has panicked".to_owned())));
            shared.lock().waiting.remove(&number);
            shared.answered.notify_all();
            waiting.answer(result, send);
        };
        state.jobs.insert(number, Box::new(job));
        drop(state);
        self.shared.work.notify_one();
        self.shared.waits.notify_one();
    }

    /// Has a thread do something that nobody waits for.
    pub(crate) fn later(&self, work: impl FnOnce() + Send + 'static) {
        let shared = self.shared.clone();
        let mut state = self.shared.lock();
        state.last += 1;
        state.others += 1;
        let number = state.last;
        let job = move || {
            let _ = catch_unwind(AssertUnwindSafe(work));
            shared.lock().others -= 1;
            shared.answered.notify_all();
        };
        state.jobs.insert(number, Box::new(job));
        drop(state);
        self.shared.work.notify_one();
    }

    /// Waits until all is done that [`later`](Self::later) was given, for this long at most.
    pub(crate) fn finish(&self, limit: Duration) {
        let state = self.shared.lock();
        let waited = self
            .shared
            .answered
            .wait_timeout_while(state, limit, |state| state.others > 0);
        drop(waited);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.work.notify_all();
        self.shared.waits.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Answer(Sender<Result<u32, i32>>);

    impl Reply for Answer {
        fn fail(self, errno: Errno) {
            let _ = self.0.send(Err(errno.code()));
        }
    }

    const SOON: Duration = Duration::from_secs(20);

    /// Has a request answered by `work`.
    fn ask(workers: &Workers, work: impl FnOnce(Instant) -> Result<u32, Error> + Send + 'static) -> Receiver<Result<u32, i32>> {
        let (sender, answers) = channel();
        let send = |reply: Answer, answer| {
            let _ = reply.0.send(Ok(answer));
        };
        workers.answer("test".to_owned(), Answer(sender), work, send);
        answers
    }

    #[test]
    fn each_request_has_one_answer() {
        let workers = Workers::with(3, SOON).expect("threads");
        let answers: Vec<_> = (0..100).map(|number| ask(&workers, move |_| Ok(number))).collect();
        for (number, answers) in answers.iter().enumerate() {
            assert_eq!(answers.recv_timeout(SOON), Ok(Ok(number as u32)));
            assert!(answers.recv_timeout(SOON).is_err(), "a second answer");
        }
        assert_eq!(ask(&workers, |_| Err(Error::NotFound)).recv_timeout(SOON), Ok(Err(2)));
        assert_eq!(ask(&workers, |_| panic!("on purpose")).recv_timeout(SOON), Ok(Err(5)));
        assert!(workers.shared.lock().waiting.is_empty());
    }

    #[test]
    fn request_that_takes_too_long_fails_at_its_deadline_and_so_do_those_behind_it() {
        let limit = Duration::from_millis(100);
        let workers = Workers::with(1, limit).expect("threads");
        let (release, held) = channel::<()>();
        let began = Instant::now();
        let stuck = ask(&workers, move |deadline| {
            let _ = held.recv();
            assert!(Instant::now() >= deadline);
            Ok(1)
        });
        let behind = ask(&workers, |_| Ok(2));
        assert_eq!(
            (stuck.recv_timeout(SOON), behind.recv_timeout(SOON)),
            (Ok(Err(5)), Ok(Err(5)))
        );
        assert!(began.elapsed() >= limit);
        assert!(workers.shared.lock().jobs.is_empty(), "what has expired is not begun");
        drop(release);
        assert!(stuck.recv_timeout(SOON).is_err(), "a second answer");
        assert_eq!(ask(&workers, |_| Ok(3)).recv_timeout(SOON), Ok(Ok(3)));
    }

    #[test]
    fn requests_that_wait_are_bounded() {
        let workers = Workers::with(1, Duration::from_millis(200)).expect("threads");
        let (release, held) = channel::<()>();
        let stuck = ask(&workers, move |_| {
            let _ = held.recv();
            Ok(1)
        });
        let answers: Vec<_> = (0..WAITING + 10).map(|_| ask(&workers, |_| Ok(2))).collect();
        assert!(workers.shared.lock().waiting.len() <= WAITING);
        assert_eq!(
            stuck.try_recv(),
            Ok(Err(5)),
            "the last ones have waited until others had expired"
        );
        drop(release);
        assert!(answers.iter().all(|answers| answers.recv_timeout(SOON).is_ok()));
    }

    #[test]
    fn what_nobody_waits_for_is_done_and_waited_for_only_so_long() {
        let workers = Workers::with(1, SOON).expect("threads");
        let (done, is_done) = channel();
        workers.later(move || done.send(1).expect("a test"));
        workers.finish(SOON);
        assert_eq!(is_done.try_recv(), Ok(1));
        let (release, held) = channel::<()>();
        workers.later(move || {
            let _ = held.recv();
        });
        workers.finish(Duration::from_millis(50));
        drop(release);
    }
}
