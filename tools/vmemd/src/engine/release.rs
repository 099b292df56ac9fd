// SPDX-License-Identifier: GPL-2.0
//! Telling the source which pages are here for good, so that it gives them back.
//!
//! What is here is asked of the kernel and not counted: it is no matter which lane brought a page, or which daemon before this one.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use vmem::PageRange;
use vmem_source::page::{end, range};
use vmem_source::source::MAX_ASK_RANGES;

use super::line::Line;
use super::wanted::Wanted;
use super::{Interruption, Shared};
use crate::failure::Failure;

/// How often the source is told.
const PERIOD: Duration = Duration::from_secs(1);

/// Whether the source may give pages back. Until it is sure that the program runs here, it must be able to run there.
#[derive(Debug)]
pub(crate) struct Release(AtomicU8);

/// The state of [`Release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Permission {
    /// Nobody will say so.
    Never = 0,
    /// Somebody may say so.
    Pending = 1,
    /// It may.
    Given = 2,
    /// It has been told of every page.
    Done = 3,
}

impl Release {
    pub(crate) const fn new(permission: Permission) -> Self {
        Self(AtomicU8::new(permission as u8))
    }

    pub(crate) fn set(&self, permission: Permission) {
        self.0.store(permission as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Permission {
        match self.0.load(Ordering::Relaxed) {
            0 => Permission::Never,
            1 => Permission::Pending,
            2 => Permission::Given,
            _ => Permission::Done,
        }
    }
}

/// What the source has been told on this connection.
pub(super) struct Told {
    /// Pages of each region. Most sources are never told anything, and a bit for each page is 2 MiB for 64 GiB: nothing is here before.
    regions: Vec<Wanted>,
    then: Instant,
}

impl Told {
    pub(super) fn nothing() -> Self {
        Self {
            regions: Vec::new(),
            then: Instant::now(),
        }
    }

    /// Whether it is time to tell it of what is new.
    pub(super) fn is_due(&self, shared: &Shared) -> bool {
        shared.release.get() == Permission::Given && self.then.elapsed() >= PERIOD
    }

    /// Waits for the permission, and tells it of everything. Nothing more will come.
    pub(super) fn tell_all(&mut self, shared: &Shared, line: &mut Line) -> Result<(), Interruption> {
        const MOMENT: Duration = Duration::from_millis(20);
        loop {
            match shared.release.get() {
                Permission::Never | Permission::Done => return Ok(()),
                Permission::Pending => {}
                Permission::Given => {
                    let all = all_are_kept(shared)?;
                    if all || self.is_due(shared) {
                        let told = self.tell(shared, line)?;
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
    pub(super) fn tell(&mut self, shared: &Shared, line: &mut Line) -> Result<bool, Interruption> {
        self.then = Instant::now();
        if self.regions.is_empty() {
            let none = shared.exports.iter().map(|export| Wanted::none_of(export.pages));
            self.regions = none.collect();
        }
        let mut all = true;
        for (region, told) in self.regions.iter_mut().enumerate() {
            if !is_kept(shared, region)? {
                all = false;
                continue;
            }
            let pages = shared.exports[region].pages;
            let mut news = Wanted::none_of(pages);
            let mut next = 0;
            let mut present_until = |first: u64, then: u64| {
                let run = range(next, first.saturating_sub(next));
                run.into_iter().for_each(|run: PageRange| news.insert(run));
                next = then;
            };
            shared.sinks[region]
                .absent(&mut |absent| present_until(absent.first().get(), end(absent)))
                .map_err(shared.failed("read which pages are present in", region))?;
            present_until(pages, pages);
            news.subtract(told);
            loop {
                let runs = news.take(0, u64::MAX, MAX_ASK_RANGES);
                if runs.is_empty() {
                    break;
                }
                line.release(region, &runs)?;
                runs.into_iter().for_each(|run| told.insert(run));
            }
        }
        Ok(all)
    }
}

/// Whether the region's pages outlive this process. Those of one that no program has mapped do not: as long as it is so, the source must
/// have them.
fn is_kept(shared: &Shared, region: usize) -> Result<bool, Failure> {
    let state = shared.sinks[region].state().map_err(shared.failed("look at", region))?;
    Ok(state.mappings > 0 || state.plain)
}

fn all_are_kept(shared: &Shared) -> Result<bool, Failure> {
    for region in 0..shared.sinks.len() {
        if !is_kept(shared, region)? {
            return Ok(false);
        }
    }
    Ok(true)
}
