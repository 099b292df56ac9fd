// SPDX-License-Identifier: GPL-2.0
//! Waiting for states.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a state may take to come, on the slowest machine. Only what fails waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the condition holds.
pub(crate) fn wait_until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_at_most(PATIENCE, what, condition)
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
