// SPDX-License-Identifier: GPL-2.0-or-later
//! An event that ends what a thread waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// An eventfd that is set once and stays set. Its descriptor is readable from then on, so that a thread can wait for it together with other
/// descriptors.
#[derive(Debug)]
pub struct StopEvent {
    fd: OwnedFd,
}

impl StopEvent {
    /// Creates an event that is not set.
    ///
    /// # Errors
    ///
    /// The error of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Sets the event, which wakes all threads that wait for it.
    pub fn set(&self) {
        // The write fails only if the counter is full, and then the event is set.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Whether the event is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until the event is set, at most for `timeout`. Returns whether it is set; true also if the thread cannot wait (`poll(2)`
    /// fails), because the thread has no other way to learn of the event.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for StopEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_returns_false_at_the_timeout_and_true_once_set() {
        let stop = StopEvent::new().expect("an eventfd");
        assert!(!stop.is_set());
        let since = Instant::now();
        assert!(!stop.wait(Duration::from_millis(20)));
        assert!(since.elapsed() >= Duration::from_millis(20));
        stop.set();
        assert!(stop.is_set() && stop.wait(Duration::from_secs(60)), "it stays set");
    }

    #[test]
    fn set_wakes_a_thread_that_waits() {
        let stop = StopEvent::new().expect("an eventfd");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::from_secs(60)));
            stop.set();
            assert!(waiting.join().expect("no panic"));
        });
    }
}
