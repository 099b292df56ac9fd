// SPDX-License-Identifier: GPL-2.0
//! Where everything stands.

use std::time::{Duration, Instant};

use vmem::PAGE_SIZE;

use crate::completion::{Completion, Phase};
use crate::stats::{Service, Stats, get};

const PAGE: u64 = PAGE_SIZE as u64;

/// Where a run stands.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Since the beginning.
    pub elapsed: Duration,
    /// Bytes filled with data.
    pub data: u64,
    /// Bytes known to be zero.
    pub zero: u64,
    /// Bytes that came although their pages were present.
    pub duplicates: u64,
    /// Requests taken.
    pub faults: u64,
    /// How long they took.
    pub service: Option<Service>,
    /// Connections made again.
    pub reconnects: u64,
    /// Each region.
    pub regions: Vec<RegionStatus>,
}

/// Where a region stands.
#[derive(Clone, Debug)]
pub struct RegionStatus {
    /// What it is called here.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes present.
    pub present: u64,
    /// Bytes that the source cannot read.
    pub unreadable: u64,
    /// How far it has come.
    pub phase: Phase,
}

impl Status {
    /// Now, of a run that began at `since`.
    pub fn take(since: Instant, stats: &Stats, regions: &[Completion]) -> Self {
        Self {
            elapsed: since.elapsed(),
            data: get(&stats.data) * PAGE,
            zero: get(&stats.zero) * PAGE,
            duplicates: get(&stats.duplicates) * PAGE,
            faults: get(&stats.requests),
            service: stats.service_times(),
            reconnects: get(&stats.reconnects),
            regions: regions.iter().map(RegionStatus::from).collect(),
        }
    }

    /// Bytes of all regions.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// Whether pages of a region are still to come, or to be put into page tables.
    pub fn is_moving(&self) -> bool {
        self.regions
            .iter()
            .any(|region| matches!(region.phase, Phase::Filling | Phase::Populating))
    }

    /// Bytes present, of all regions.
    pub fn present(&self) -> u64 {
        self.regions.iter().map(|region| region.present).sum()
    }
}

impl From<&Completion> for RegionStatus {
    fn from(region: &Completion) -> Self {
        Self {
            name: region.name().to_owned(),
            size: region.pages() * PAGE,
            present: region.state().present * PAGE,
            unreadable: region.state().unreadable * PAGE,
            phase: region.phase(),
        }
    }
}
