// SPDX-License-Identifier: GPL-2.0-or-later
//! The signals that ask this program to end: SIGINT, SIGTERM and SIGHUP. They do not end it by themselves: code that takes long checks for
//! them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_usize;

/// How often [`Signals::unless`] checks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why a wait ended early.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A signal was received.
    #[error("{} was received", name(*.0))]
    Signal(i32),
    /// No thread could be started, or it has panicked.
    #[error("cannot run the work in a thread")]
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

/// The signals received by this process.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The number of the latest signal; 0 before the first.
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// Catches the three signals: they do not end this program any more. A signal that is ignored stays ignored: `nohup` ignores SIGHUP.
    ///
    /// # Errors
    ///
    /// The error of sigaction(2).
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

    /// Fails if a signal was received.
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

    /// Runs `work` in a thread, and stops waiting for it when a signal is received: the thread continues, and its result is dropped.
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
            match results.recv_timeout(POLL_INTERVAL) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Thread(io::Error::other("the thread has panicked"))),
            }
        }
    }

    /// Acts as if SIGINT had been received.
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
