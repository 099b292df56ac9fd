// SPDX-License-Identifier: GPL-2.0-or-later
//! The status of a run.

use std::time::{Duration, Instant};

use vmem::PAGE_SIZE;

use crate::completion::{Completion, Phase};
use crate::stats::{Service, Stats, get};

const PAGE: u64 = PAGE_SIZE as u64;

/// The status of a run.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Time since the beginning.
    pub elapsed: Duration,
    /// Bytes filled with data.
    pub data: u64,
    /// Bytes known to be zero.
    pub zero: u64,
    /// Bytes that arrived although their pages were present.
    pub duplicates: u64,
    /// Bytes that arrived while the program still ran at the source; a page that arrived twice counts twice.
    pub staged: u64,
    /// Bytes that were copied from a seed: only their digests were sent. Those that were staged count, too.
    pub known: u64,
    /// Bytes that the source sent as the same as before, while the program still ran there.
    pub same: u64,
    /// Bytes that the kernel has read from a file by itself. The engine has had no part in them.
    pub backed: u64,
    /// Bytes that were compared with the source's.
    pub verified: u64,
    /// Bytes that all of those but the compared ones took on the network, compressed or not.
    pub wire: u64,
    /// Requests taken.
    pub faults: u64,
    /// Their service times.
    pub service: Option<Service>,
    /// Reconnects.
    pub reconnects: u64,
    /// The status of each region.
    pub regions: Vec<RegionStatus>,
}

/// The status of a region.
#[derive(Clone, Debug)]
pub struct RegionStatus {
    /// Name of the region.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes present.
    pub present: u64,
    /// Bytes marked unreadable.
    pub unreadable: u64,
    /// The phase of the region.
    pub phase: Phase,
}

impl Status {
    /// The current status of a run that began at `since`.
    pub fn take(since: Instant, stats: &Stats, regions: &[Completion]) -> Self {
        Self {
            elapsed: since.elapsed(),
            data: get(&stats.data) * PAGE,
            zero: get(&stats.zero) * PAGE,
            duplicates: get(&stats.duplicates) * PAGE,
            staged: get(&stats.staged) * PAGE,
            known: get(&stats.known) * PAGE,
            same: get(&stats.same) * PAGE,
            backed: regions.iter().map(Completion::backed).sum::<u64>() * PAGE,
            verified: get(&stats.verified) * PAGE,
            wire: get(&stats.wire),
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

    /// Whether pages of a region are absent, or are being put into page tables.
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
            size: region.pages().bytes().end,
            present: region.state().present * PAGE,
            unreadable: region.state().unreadable * PAGE,
            phase: region.phase(),
        }
    }
}
