// SPDX-License-Identifier: GPL-2.0-or-later
//! Waiting for states.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// On the slowest machine, where a failure is the exception.
const USUAL: Duration = Duration::from_secs(120);

static CHOSEN: OnceLock<Duration> = OnceLock::new();

/// How long a state may take to come. Only what fails waits this long.
pub(crate) fn patience() -> Duration {
    *CHOSEN.get_or_init(|| USUAL)
}

/// Waits no longer than this from now on. For runs that count failures: each of them costs this time. The first choice stands.
pub(crate) fn choose_patience(patience: Duration) {
    let _ = CHOSEN.set(patience);
}

/// Waits until the condition holds.
pub(crate) fn wait_until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_at_most(patience(), what, condition)
}

/// Waits until the condition holds, and no longer than this.
pub(crate) fn wait_at_most(patience: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !condition()? {
        if since.elapsed() > patience {
            bail!("waited {} s in vain until {what}", patience.as_secs());
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}
