// SPDX-License-Identifier: GPL-2.0
//! Telling the source which pages are here for good, so that it gives them back.
//!
//! What is here is asked of the kernel and not counted: it is no matter which lane brought a page, or which daemon before this one.

use std::time::{Duration, Instant};

use vmem::PageSet;
use vmem_source::export::MAX_ASK_RANGES;

use crate::connection::Connection;
use crate::error::Error;
use crate::permission::Permission;
use crate::shared::{Interruption, Shared};

/// How often the source is told.
const PERIOD: Duration = Duration::from_secs(1);

/// What the source has been told on this connection.
pub(crate) struct Released {
    /// Pages of each region. Most sources are never told anything, and a bit for each page is 2 MiB for 64 GiB: nothing is here before.
    regions: Vec<PageSet>,
    then: Instant,
}

impl Released {
    pub(crate) fn none() -> Self {
        Self {
            regions: Vec::new(),
            then: Instant::now(),
        }
    }

    /// Whether it is time to tell it of what is new.
    pub(crate) fn is_due(&self, shared: &Shared) -> bool {
        shared.release.get() == Permission::Given && self.then.elapsed() >= PERIOD
    }

    /// Waits for the permission, and tells it of everything. Nothing more will come.
    pub(crate) fn release_all(&mut self, shared: &Shared, connection: &mut Connection) -> Result<(), Interruption> {
        const MOMENT: Duration = Duration::from_millis(20);
        loop {
            match shared.release.get() {
                Permission::Never | Permission::Done => return Ok(()),
                Permission::Pending => {}
                Permission::Given => {
                    let all = all_are_kept(shared)?;
                    if all || self.is_due(shared) {
                        let told = self.tell(shared, connection)?;
                        if told {
                            shared.release.set(Permission::Done);
                            return Ok(());
                        }
                    }
                }
            }
            if shared.stop.wait(MOMENT) {
                return Ok(());
            }
        }
    }

    /// Tells it of what is new. False if there are regions that it must not hear of yet.
    pub(crate) fn tell(&mut self, shared: &Shared, connection: &mut Connection) -> Result<bool, Interruption> {
        self.then = Instant::now();
        if self.regions.is_empty() {
            self.regions = shared.pages.iter().map(|pages| PageSet::none_of(*pages)).collect();
        }
        let mut all = true;
        for (region, told) in self.regions.iter_mut().enumerate() {
            if !is_kept(shared, region)? {
                all = false;
                continue;
            }
            let mut news = PageSet::all_of(shared.pages[region]);
            shared.sinks[region]
                .absent(&mut |absent| news.remove(absent))
                .map_err(shared.failed("read which pages are present in", region))?;
            news.subtract(told);
            loop {
                let runs = news.take(0, u64::MAX, MAX_ASK_RANGES);
                if runs.is_empty() {
                    break;
                }
                connection.release(region, &runs)?;
                runs.into_iter().for_each(|run| told.insert(run));
            }
        }
        Ok(all)
    }
}

/// Whether the region's pages outlive this process. Those of one that no program has mapped do not: as long as it is so, the source must
/// have them.
fn is_kept(shared: &Shared, region: usize) -> Result<bool, Error> {
    let state = shared.sinks[region].state().map_err(shared.failed("look at", region))?;
    Ok(state.mappings > 0 || state.plain)
}

fn all_are_kept(shared: &Shared) -> Result<bool, Error> {
    for region in 0..shared.sinks.len() {
        if !is_kept(shared, region)? {
            return Ok(false);
        }
    }
    Ok(true)
}
