// SPDX-License-Identifier: GPL-2.0-or-later
//! The watchdog: systemd ends a service that shows no sign of life.

use std::io;
use std::thread;
use std::time::Duration;

use vmem_wait::Liveness;

/// Starts the thread that tells systemd twice in each interval, by `say_alive`, that the process is alive. It says nothing while a thread of
/// `liveness` is overdue.
pub(crate) fn start(interval: Duration, liveness: Liveness, say_alive: impl Fn() + Send + 'static) -> io::Result<()> {
    let tell = move || {
        let mut reported = false;
        loop {
            match liveness.overdue() {
                None => {
                    reported = false;
                    say_alive();
                }
                Some(thread) if !reported => {
                    reported = true;
                    tracing::error!("thread {thread} is stuck: systemd is not told that this process is alive");
                }
                Some(_) => {}
            }
            thread::sleep(interval / 2);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(tell).map(drop)
}
