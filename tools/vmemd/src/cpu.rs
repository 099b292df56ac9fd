// SPDX-License-Identifier: GPL-2.0-or-later
//! Processor time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The processor time that all threads of this process have used.
pub(crate) fn time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is negative.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn time_passes_with_work_and_not_with_rest() {
        let (began, before) = (Instant::now(), time());
        std::thread::sleep(Duration::from_millis(100));
        let mut work = 0_u64;
        while time() - before < Duration::from_millis(50) {
            work = std::hint::black_box(work).wrapping_add(1);
            assert!(began.elapsed() < Duration::from_secs(60), "it stands still");
        }
    }
}
