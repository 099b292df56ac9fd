// SPDX-License-Identifier: GPL-2.0-or-later
//! The watchdog: systemd ends a service that shows no sign of life.

use std::io;
use std::thread;
use std::time::Duration;

use vmem_wait::Liveness;

use crate::Service;

/// Starts the thread that tells systemd twice in each interval that the process is alive. It says nothing while a thread of `liveness` is overdue.
pub(crate) fn start(service: Service, interval: Duration, liveness: Liveness) -> io::Result<()> {
    let tell = move || {
        let mut reported = false;
        loop {
            match liveness.overdue() {
                None => {
                    reported = false;
                    service.alive();
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

#[cfg(test)]
mod tests {
    use crate::socket::{as_service, in_service};

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    #[test]
    fn systemd_hears_nothing_while_a_thread_is_stuck() {
        if in_service() {
            let service = Service::of_this_process();
            let liveness = service.liveness();
            let (stuck, idle) = (liveness.watch("stuck"), liveness.watch("idle"));
            idle.rests();
            stuck.rests();
            service.watch(&liveness).expect("a thread");
            thread::sleep(INTERVAL * 5);
            // From here on it shows no sign: it is overdue after another interval.
            stuck.works();
            thread::sleep(INTERVAL * 20);
            stuck.works();
            return thread::sleep(INTERVAL / 2);
        }
        let microseconds = INTERVAL.as_micros().to_string();
        let name = "watchdog::tests::systemd_hears_nothing_while_a_thread_is_stuck";
        let said = as_service(name, &[("WATCHDOG_USEC", &microseconds)]);
        // 10 before, 2 or 3 until it is overdue, 1 or 2 after it; 50 if it were not noticed. A busy machine sleeps longer.
        assert!(said.iter().all(|(text, _)| text == "WATCHDOG=1\n"));
        assert!((2..=20).contains(&said.len()), "{} signs", said.len());
        // That of another process is none of this one's.
        let others = as_service(name, &[("WATCHDOG_USEC", &microseconds), ("WATCHDOG_PID", "1")]);
        assert_eq!(others.len(), 0);
    }
}
