// SPDX-License-Identifier: GPL-2.0-or-later
//! How long tests wait. On a kernel that checks itself, all takes longer.

use std::sync::OnceLock;
use std::time::Duration;

/// How long a test may take, or a step of a long one, on the slowest machine.
const USUAL: Duration = Duration::from_secs(90);

/// The same for this machine. VMEM_PATIENCE has other seconds.
pub(crate) fn of_a_test() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    let seconds = || std::env::var("VMEM_PATIENCE").ok()?.parse().ok();
    *PATIENCE.get_or_init(|| seconds().map_or(USUAL, Duration::from_secs))
}

/// How long a state may take to come: 40 of the 90 seconds that a test may take. Only a failing test waits this long.
pub(crate) fn of_a_state() -> Duration {
    of_a_test() * 4 / 9
}
