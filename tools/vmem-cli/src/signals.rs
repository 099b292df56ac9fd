// SPDX-License-Identifier: GPL-2.0
//! The signals that ask this program to end: SIGINT, SIGTERM and SIGHUP. They end nothing by themselves; whoever does something that
//! takes long looks whether one has come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_usize;

/// How often it is looked for one while something else is waited for.
const GLANCE: Duration = Duration::from_millis(50);

/// Why something was not waited for.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A signal has come.
    #[error("{} was received", name(*.0))]
    Signal(i32),
    /// No thread could be started, or it has panicked.
    #[error("cannot do it in a thread")]
    Thread(#[source] io::Error),
}

fn name(signal: i32) -> String {
    match signal {
        SIGHUP => "SIGHUP".to_owned(),
        SIGINT => "SIGINT".to_owned(),
        SIGTERM => "SIGTERM".to_owned(),
        other => format!("signal {other}"),
    }
}

/// Whether one has come.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The number of the latest one; 0 before the first.
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// From now on the three signals do not end this program. A signal that is ignored stays ignored: `nohup` ignores SIGHUP.
    ///
    /// # Errors
    ///
    /// The kernel's, of sigaction(2).
    pub fn catch() -> io::Result<Self> {
        let signals = Self::default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            if !is_ignored(&status, signal) {
                // The numbers of signals are small and positive.
                register_usize(signal, Arc::clone(&signals.caught), signal.unsigned_abs() as usize)?;
            }
        }
        Ok(signals)
    }

    /// Fails when a signal has come.
    ///
    /// # Errors
    ///
    /// [`Stopped::Signal`].
    pub fn check(&self) -> Result<(), Stopped> {
        match i32::try_from(self.caught.load(Ordering::SeqCst)) {
            Ok(0) | Err(_) => Ok(()),
            Ok(signal) => Err(Stopped::Signal(signal)),
        }
    }

    /// Does `work` in a thread of its own, and stops waiting for it when a signal comes: the thread goes on, and its result is dropped.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub fn unless<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
        self.check()?;
        let (sender, results) = channel();
        let task = move || drop(sender.send(work()));
        let thread = thread::Builder::new().name("work".to_owned());
        thread.spawn(task).map_err(Stopped::Thread)?;
        loop {
            match results.recv_timeout(GLANCE) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Thread(io::Error::other("it has panicked"))),
            }
        }
    }

    /// As if SIGINT had come.
    pub fn raise(&self) {
        self.caught.store(SIGINT.unsigned_abs() as usize, Ordering::SeqCst);
    }
}

/// Whether a process of this /proc/PID/status ignores a signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    signal > 0 && mask.checked_shr(signal.unsigned_abs() - 1).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn ignored_signals_are_known() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\n";
        assert_eq!(
            [SIGHUP, SIGINT, 13].map(|signal| is_ignored(status, signal)),
            [true, false, true]
        );
        assert!(!is_ignored("", SIGHUP));
    }

    #[test]
    fn work_is_not_waited_for_when_a_signal_comes() {
        let signals = Signals::default();
        assert_eq!(signals.unless(|| 7).expect("no signal"), 7);
        let other = signals.clone();
        let began = Instant::now();
        let stopped = signals.unless(move || {
            other.raise();
            thread::sleep(Duration::from_secs(20));
        });
        assert!(matches!(stopped, Err(Stopped::Signal(SIGINT))), "{stopped:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(signals.unless(|| 7).is_err(), "nothing more is begun");
    }
}
