// SPDX-License-Identifier: GPL-2.0-or-later
//! The worker: owns most of the guest's memory, and works on it as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock;
use crate::page::Page;
use crate::random::Random;

/// What an idle worker waits from touch to touch.
const IDLE: Duration = Duration::from_millis(10);
/// A worker with a rate works in bursts: it does not sleep for less than this, as it would sleep too long.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
/// What it is late by more than this, because it could not run or was not told its rate, is not made up for.
const LATEST: Duration = Duration::from_millis(20);
/// How many wrong pages are told.
const TOLD: usize = 5;

/// What the worker does all the time.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Reads a page now and then.
    Idle,
    /// Checks and writes pages in random order: so many in a second, or as many as it can.
    Write(Option<u32>),
}

/// What can be asked of the worker.
enum Order {
    Work(Work),
    Mark(Sender<()>),
    Touches(Sender<Touches>),
    Verify(Sender<Verdict>),
}

/// The worker, which has a thread.
pub(crate) struct Worker {
    orders: Sender<Order>,
    work: Arc<AtomicU64>,
    /// Pages that it has.
    pub(crate) pages: usize,
}

/// How long touches took since the last mark. Seconds.
#[derive(Default, Serialize)]
pub(crate) struct Touches {
    count: u64,
    p50: f64,
    p99: f64,
    max: f64,
    /// Pages written since the guest started.
    work: u64,
    /// Pages that the worker found wrong when it came to write them.
    wrong: Vec<String>,
}

/// What a walk over all pages has found.
#[derive(Default, Serialize)]
pub(crate) struct Verdict {
    pages: usize,
    /// How many are not what they should be, those included that the worker came upon.
    wrong: usize,
    /// What is wrong with the first of them.
    first: Vec<String>,
    /// Pages written since the guest started.
    work: u64,
    /// The same, as the generations of all pages tell it.
    generations: u64,
}

impl Worker {
    /// Starts one with so many MiB, all of them written.
    pub(crate) fn start(mib: usize) -> Self {
        let pages = mib << 8;
        let (orders, taken) = mpsc::channel();
        let work: Arc<AtomicU64> = Arc::default();
        let worker = Self {
            orders,
            work: Arc::clone(&work),
            pages,
        };
        thread::spawn(move || Memory::new(pages, work).run(&taken));
        worker.mark();
        worker
    }

    /// Counts the pages written since the guest started.
    pub(crate) fn work_done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.work)
    }

    /// From now on it does this.
    pub(crate) fn work(&self, work: Work) {
        let _ = self.orders.send(Order::Work(work));
    }

    /// Forgets how long touches took.
    pub(crate) fn mark(&self) {
        self.ask(Order::Mark)
    }

    /// How long touches took since the last mark.
    pub(crate) fn touches(&self) -> Touches {
        self.ask(Order::Touches)
    }

    /// Walks over all pages.
    pub(crate) fn verify(&self) -> Verdict {
        self.ask(Order::Verify)
    }

    fn ask<T: Default>(&self, order: impl FnOnce(Sender<T>) -> Order) -> T {
        let (answer, answered) = mpsc::channel();
        let _ = self.orders.send(order(answer));
        answered.recv().unwrap_or_default()
    }
}

/// The memory, and what is known about it.
struct Memory {
    pages: Vec<Page>,
    generations: Vec<u64>,
    work: Arc<AtomicU64>,
    wrong: usize,
    told: Vec<String>,
    latency: Histogram<u32>,
    random: Random,
    /// When the next page is to be written, by the guest's own clock, if there is a rate.
    due: Duration,
}

impl Memory {
    fn new(pages: usize, work: Arc<AtomicU64>) -> Self {
        // From 1 ns to a minute, with two digits.
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 2);
        Self {
            pages: (0..pages).map(Page::new).collect(),
            generations: vec![0; pages],
            work,
            wrong: 0,
            told: Vec::new(),
            latency: latency.expect("these bounds are in order"),
            random: Random::new(),
            due: Duration::ZERO,
        }
    }

    fn run(&mut self, orders: &Receiver<Order>) {
        let mut work = Work::Idle;
        loop {
            match orders.try_recv() {
                Ok(order) => self.obey(order, &mut work),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => self.step(work),
            }
        }
    }

    fn obey(&mut self, order: Order, work: &mut Work) {
        match order {
            Order::Work(new) => *work = new,
            Order::Mark(answer) => {
                self.latency.reset();
                let _ = answer.send(());
            }
            Order::Touches(answer) => {
                let _ = answer.send(self.touches());
            }
            Order::Verify(answer) => {
                let _ = answer.send(self.verify());
            }
        }
    }

    fn step(&mut self, work: Work) {
        let number = self.random.below(self.pages.len());
        let before = clock::own();
        let _ = self.pages[number].touch();
        let took = clock::own().saturating_sub(before);
        self.latency.saturating_record(took.as_nanos().try_into().unwrap_or(u64::MAX));
        match work {
            Work::Idle => thread::sleep(IDLE),
            Work::Write(rate) => {
                self.write(number);
                if let Some(rate) = rate {
                    self.keep_pace(Duration::from_secs(1) / rate.max(1));
                }
            }
        }
    }

    /// Sleeps if the next page is not to be written yet. `interval` is from one page to the next.
    fn keep_pace(&mut self, interval: Duration) {
        let now = clock::own();
        self.due = (self.due + interval).max(now.saturating_sub(LATEST));
        let early = self.due.saturating_sub(now);
        if early >= SHORTEST_SLEEP {
            thread::sleep(early);
        }
    }

    /// Writes a page anew, if it is what it should be: what is wrong is not covered up.
    fn write(&mut self, number: usize) {
        if self.check(number) {
            self.generations[number] += 1;
            self.work.fetch_add(1, Ordering::Relaxed);
            self.pages[number].write(number, self.generations[number]);
        }
    }

    fn check(&mut self, number: usize) -> bool {
        match self.pages[number].check(number, self.generations[number]) {
            Ok(()) => true,
            Err(wrong) => {
                self.wrong += 1;
                if self.told.len() < TOLD {
                    self.told.push(wrong);
                }
                false
            }
        }
    }

    fn verify(&mut self) -> Verdict {
        for number in 0..self.pages.len() {
            self.check(number);
        }
        Verdict {
            pages: self.pages.len(),
            wrong: self.wrong,
            first: self.told.clone(),
            work: self.work.load(Ordering::Relaxed),
            generations: self.generations.iter().sum(),
        }
    }

    fn touches(&self) -> Touches {
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        Touches {
            count: self.latency.len(),
            p50: seconds(self.latency.value_at_quantile(0.5)),
            p99: seconds(self.latency.value_at_quantile(0.99)),
            max: seconds(self.latency.max()),
            work: self.work.load(Ordering::Relaxed),
            wrong: self.told.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_leaves_nothing_wrong_and_an_old_page_is_found() {
        let mut memory = Memory::new(8, Arc::default());
        let old = memory.pages.clone();
        for _ in 0..100 {
            memory.step(Work::Write(None));
        }
        let verdict = memory.verify();
        assert_eq!((verdict.wrong, verdict.work, verdict.generations), (0, 100, 100));
        memory.pages[3] = old[3].clone();
        assert_eq!(memory.verify().wrong, 1);
    }

    #[test]
    fn worker_with_a_rate_keeps_it() {
        let mut memory = Memory::new(8, Arc::default());
        let since = clock::own();
        for _ in 0..200 {
            memory.step(Work::Write(Some(2000)));
        }
        // What it was late at first is not made up for.
        let took = clock::own() - since;
        assert!(took >= Duration::from_millis(75), "200 pages at 2000 a second took {took:?}");
    }
}
