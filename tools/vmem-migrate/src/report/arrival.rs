// SPDX-License-Identifier: GPL-2.0-or-later
//! The pages at the destination, from what its vmemd says.

use std::time::Duration;

use vmem_cli::{Progress, Rate};
use vmem_control::{Event, Figures, Region};

/// How far the pages of the destination are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrival {
    /// Bytes that were staged.
    pub(crate) staged: u64,
    /// Bytes that are present, and those that were compared.
    pub(crate) done: u64,
    /// All pages are present.
    pub(crate) is_complete: bool,
}

/// How much of the memory is at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrived {
    /// Bytes of all memory.
    pub(crate) size: u64,
    /// Bytes that are present.
    pub(crate) present: u64,
    /// Bytes that were staged.
    pub(crate) staged: u64,
    /// Bytes that became present in a second, at the latest report.
    pub(crate) rate: Option<u64>,
}

/// The phases of the regions at the destination, from its vmemd's events.
#[derive(Default)]
pub(super) struct Arrivals {
    staged: u64,
    verified: u64,
    regions: Vec<Region>,
    /// Processor time of the destination's vmemd, if it says it.
    pub(super) cpu: Option<f64>,
    present: Rate,
    rate: Option<u64>,
}

impl Arrivals {
    /// Takes an event. Returns how far the pages are, if it says that.
    pub(super) fn update(&mut self, event: Event) -> Option<Arrival> {
        match event {
            Event::Holding { regions, .. } | Event::Ready { regions, .. } => self.regions = regions,
            Event::Progress(figures) => {
                // The figures come from another host.
                let time = Duration::try_from_secs_f64(figures.seconds).unwrap_or_default();
                self.rate = Some(self.present.sample(time, progress(&figures).done) as u64);
                self.cpu = Some(figures.cpu_seconds).filter(|cpu| *cpu > 0.0);
                self.staged = figures.staged_bytes;
                self.verified = figures.verified_bytes;
                self.regions = figures.regions;
            }
            Event::Region(region) => {
                let of_it = self.regions.iter_mut().find(|known| known.name == region.name);
                match of_it {
                    Some(known) => *known = region,
                    None => return None,
                }
            }
            _ => return None,
        }
        self.current()
    }

    /// As [`update`](Self::update), without an event.
    pub(super) fn current(&self) -> Option<Arrival> {
        let is_complete = |region: &Region| region.bytes > 0 && region.present_bytes >= region.bytes;
        (!self.regions.is_empty()).then(|| Arrival {
            staged: self.staged,
            done: self
                .regions
                .iter()
                .fold(self.verified, |sum, region| sum.saturating_add(region.present_bytes)),
            is_complete: self.regions.iter().all(is_complete),
        })
    }

    /// How much is there, once the destination has said something.
    pub(super) fn arrived(&self) -> Option<Arrived> {
        let sum = |of: fn(&Region) -> u64| self.regions.iter().fold(0, |sum: u64, region| sum.saturating_add(of(region)));
        (!self.regions.is_empty()).then(|| Arrived {
            size: sum(|region| region.bytes),
            present: sum(|region| region.present_bytes),
            staged: self.staged,
            rate: self.rate,
        })
    }
}

/// How much of all memory is present.
pub(super) fn progress(figures: &Figures) -> Progress {
    let none = Progress { done: 0, size: 0 };
    figures.regions.iter().fold(none, |sum, region| Progress {
        done: sum.done.saturating_add(region.present_bytes),
        size: sum.size.saturating_add(region.bytes),
    })
}
