// SPDX-License-Identifier: GPL-2.0-or-later
//! Notifies the source of the pages that have arrived for good, so that it releases them.
//!
//! The notifier reads the present pages from the kernel: it does not matter which lane, or which earlier daemon, filled a page.

use std::time::{Duration, Instant};

use vmem::PageSet;
use vmem_source::export::MAX_FETCH_RANGES;

use crate::connection::Connection;
use crate::error::Error;
use crate::permission::Permission;
use crate::shared::{Interruption, Shared};

/// The interval of notifications.
const PERIOD: Duration = Duration::from_secs(1);

/// The pages that the source has been notified of on this connection.
pub(crate) struct ReleaseNotifier {
    /// Pages of each region; empty before the first notification, because most sources are never notified and the bits of 64 GiB take 2 MiB.
    notified: Vec<PageSet>,
    latest: Instant,
}

impl ReleaseNotifier {
    pub(crate) fn new() -> Self {
        Self {
            notified: Vec::new(),
            latest: Instant::now(),
        }
    }

    /// Whether the next notification is due.
    pub(crate) fn is_due(&self, shared: &Shared) -> bool {
        shared.release.get() == Permission::Given && self.latest.elapsed() >= PERIOD
    }

    /// Waits for the permission, and notifies the source of all pages. The stream has ended.
    pub(crate) fn release_all(&mut self, shared: &Shared, connection: &mut Connection) -> Result<(), Interruption> {
        const POLL_INTERVAL: Duration = Duration::from_millis(20);
        loop {
            match shared.release.get() {
                Permission::Never | Permission::Done => return Ok(()),
                Permission::Pending => {}
                Permission::Given => {
                    let is_due = all_are_persistent(shared)? || self.is_due(shared);
                    if is_due && self.notify(shared, connection)? {
                        shared.release.set(Permission::Done);
                        return Ok(());
                    }
                }
            }
            if shared.stop.wait(POLL_INTERVAL) {
                return Ok(());
            }
        }
    }

    /// Notifies the source of pages that are new since the last notification. False if it must not be notified of some regions yet.
    pub(crate) fn notify(&mut self, shared: &Shared, connection: &mut Connection) -> Result<bool, Interruption> {
        self.latest = Instant::now();
        if self.notified.is_empty() {
            self.notified = shared.exports.iter().map(|export| PageSet::none_of(export.pages)).collect();
        }
        let mut all = true;
        for (region, notified) in self.notified.iter_mut().enumerate() {
            if !is_persistent(shared, region)? {
                all = false;
                continue;
            }
            let pages = shared.exports[region].pages;
            let mut new = PageSet::all_of(pages);
            shared.sinks[region]
                .absent(pages, &mut |absent| new.remove(absent))
                .map_err(shared.failed("read which pages are present in", region))?;
            new.subtract(notified);
            loop {
                let runs = new.take(0, u64::MAX, MAX_FETCH_RANGES);
                if runs.is_empty() {
                    break;
                }
                connection.release(region, &runs)?;
                runs.into_iter().for_each(|run| notified.insert(run));
            }
        }
        Ok(all)
    }
}

/// Whether the pages of the region outlive this process. Those of a region that no program maps do not: the source must keep them.
fn is_persistent(shared: &Shared, region: usize) -> Result<bool, Error> {
    let state = shared.sinks[region]
        .state()
        .map_err(shared.failed("read the state of", region))?;
    Ok(state.mappings > 0 || state.plain)
}

fn all_are_persistent(shared: &Shared) -> Result<bool, Error> {
    for region in 0..shared.sinks.len() {
        if !is_persistent(shared, region)? {
            return Ok(false);
        }
    }
    Ok(true)
}
