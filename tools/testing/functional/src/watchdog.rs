// SPDX-License-Identifier: GPL-2.0-or-later
//! Ends the run when a test hangs, after saying where everybody is.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vmem_functional_sys::print_state;

use crate::patience;

/// Whether the test has said that it is still moving, since the watchdog looked.
static MOVING: AtomicBool = AtomicBool::new(false);

/// A test of many steps says so at each.
pub(crate) fn still_moving() {
    MOVING.store(true, Ordering::Relaxed);
}

/// Watches one test at a time.
#[derive(Clone)]
pub(crate) struct Watchdog(Arc<Shared>);

struct Shared {
    test: Mutex<Option<(String, Instant)>>,
    changed: Condvar,
}

/// That a test is watched; dropped at its end.
pub(crate) struct Watched(Watchdog);

impl Watchdog {
    /// Starts the thread that watches.
    pub(crate) fn start() -> Self {
        let watchdog = Self(Arc::new(Shared {
            test: Mutex::new(None),
            changed: Condvar::new(),
        }));
        let watching = watchdog.clone();
        thread::spawn(move || watching.run());
        watchdog
    }

    /// From now on this test runs.
    pub(crate) fn watch(&self, name: &str) -> Watched {
        self.set(Some((name.into(), Instant::now())));
        Watched(self.clone())
    }

    fn set(&self, test: Option<(String, Instant)>) {
        *self.0.test.lock().unwrap_or_else(PoisonError::into_inner) = test;
        self.0.changed.notify_all();
    }

    fn run(&self) {
        let mut test = self.0.test.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let wait = match &mut *test {
                None => patience::of_a_test(),
                Some((name, since)) => match patience::of_a_test().checked_sub(since.elapsed()) {
                    Some(left) if !left.is_zero() => left,
                    _ if MOVING.swap(false, Ordering::Relaxed) => {
                        *since = Instant::now();
                        patience::of_a_test()
                    }
                    _ => give_up(name),
                },
            };
            let woken = self
                .0
                .changed
                .wait_timeout(test, wait)
                .unwrap_or_else(PoisonError::into_inner);
            test = woken.0;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Says what hangs, and ends the run.
fn give_up(name: &str) -> ! {
    println!(
        "\ntest {name} ... FAILED (not over after {} s)",
        patience::of_a_test().as_secs()
    );
    // What a hung test has locked may be wanted by who looks at it: no more than a moment for that.
    let (done, dumped) = mpsc::channel();
    thread::spawn(move || {
        dump();
        done.send(())
    });
    let _ = dumped.recv_timeout(Duration::from_secs(10));
    kill_children();
    println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out (the run ended here)");
    exit(101)
}

/// Prints where each thread of this program and of its children is, and the state of all open regions.
fn dump() {
    for process in crate::world::family(std::process::id()) {
        print_state(process as i32);
    }
}

/// The children of a hung test hold regions.
fn kill_children() {
    let this = std::process::id();
    for process in crate::world::family(this).into_iter().filter(|process| *process != this) {
        let pid = rustix::process::Pid::from_raw(process as i32);
        let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
    }
}
