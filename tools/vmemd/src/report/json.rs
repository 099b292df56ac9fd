// SPDX-License-Identifier: GPL-2.0-or-later
//! For machines: events. vmemd(8) documents the fields.

use std::path::PathBuf;

use vmem::{Files, PageRange, node_path};
use vmem_control::{Event, Figures, Phase, Region, RegionPage, Times, Touched, Verified};
use vmem_source::Lane;

use super::PAGE;
use crate::cpu;
use vmem_cli::output;
use vmem_engine::{Phase as RegionPhase, RegionStatus, Status};

/// One JSON object on a line of standard output.
pub(super) fn print(event: &Event) {
    // Numbers and strings: serializing them does not fail.
    if let Ok(line) = serde_json::to_string(event) {
        output::json(&line);
    }
}

fn region(region: &RegionStatus) -> Region {
    Region {
        name: region.name.clone(),
        path: None,
        node: None,
        bytes: region.size,
        present_bytes: region.present,
        unreadable_pages: region.unreadable / PAGE,
        phase: phase(region.phase),
    }
}

fn phase(phase: RegionPhase) -> Phase {
    match phase {
        RegionPhase::Filling => Phase::Filling,
        RegionPhase::Waiting => Phase::Waiting,
        RegionPhase::Populating => Phase::Populating,
        RegionPhase::Plain => Phase::Plain,
        RegionPhase::Unreadable => Phase::Unreadable,
    }
}

/// A region, and where programs find it.
pub(super) fn found_region(status: &RegionStatus, files: &Files) -> Region {
    let text = |path: PathBuf| Some(path.display().to_string());
    Region {
        path: text(files.path(&status.name)),
        node: text(node_path(&status.name)),
        ..region(status)
    }
}

/// The regions, and where programs find them.
pub(super) fn found(status: &Status, files: &Files) -> Vec<Region> {
    status.regions.iter().map(|region| found_region(region, files)).collect()
}

fn regions(status: &Status) -> Vec<Region> {
    status.regions.iter().map(region).collect()
}

pub(super) fn figures(status: &Status) -> Figures {
    // More than half a million years are as good as for ever.
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Figures {
        seconds: status.elapsed.as_secs_f64(),
        cpu_seconds: cpu::time().as_secs_f64(),
        data_bytes: status.data,
        zero_bytes: status.zero,
        duplicate_bytes: status.duplicates,
        staged_bytes: status.staged,
        known_bytes: status.known,
        same_bytes: status.same,
        backed_bytes: status.backed,
        verified_bytes: status.verified,
        wire_bytes: status.wire,
        faults: status.faults,
        fault_us: status.service.map(|service| Times {
            p50: micros(service.p50),
            p99: micros(service.p99),
            max: micros(service.max),
        }),
        reconnects: status.reconnects,
        regions: regions(status),
    }
}

pub(super) fn verified(verified: &vmem_engine::Verified) -> Verified {
    let page = |(region, page): &(String, vmem::PageIndex)| RegionPage {
        region: region.clone(),
        page: page.get(),
    };
    Verified {
        pages: verified.pages,
        different: verified.different,
        first: verified.first.iter().map(page).collect(),
    }
}

pub(super) fn touched(region: &str, runs: &[(usize, PageRange)], missed: u64) -> Touched {
    Touched {
        region: region.to_owned(),
        runs: runs.iter().map(|(_, pages)| (pages.first().get(), pages.count())).collect(),
        missed,
    }
}

pub(super) fn lane(lane: Lane) -> vmem_control::Lane {
    match lane {
        Lane::Urgent => vmem_control::Lane::Urgent,
        Lane::Stream => vmem_control::Lane::Stream,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine knows each phase that it can be in; a client of the protocol can meet phases of a later vmemd. So these are two types.
    #[test]
    fn phase_of_the_engine_has_its_name_on_the_wire() {
        for (of_engine, name) in [
            (RegionPhase::Filling, "filling"),
            (RegionPhase::Waiting, "waiting"),
            (RegionPhase::Populating, "populating"),
            (RegionPhase::Plain, "plain"),
            (RegionPhase::Unreadable, "unreadable"),
        ] {
            let line = serde_json::to_string(&phase(of_engine)).expect("JSON");
            assert_eq!(line, format!("\"{name}\""));
        }
    }
}
