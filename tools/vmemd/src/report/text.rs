// SPDX-License-Identifier: GPL-2.0-or-later
//! For people: a bar on a terminal, a line each second elsewhere.

use std::time::Duration;

use vmem::{Files, node_path};
use vmem_cli::{Progress, ProgressBar, Rate, bytes, chain};
use vmem_source::Lane;

use super::PAGE;
use vmem_cli::output::out;
use vmem_engine::{Phase, RegionStatus, Status, Verified};

/// A progress bar.
pub(crate) struct Bar {
    bar: ProgressBar,
    rate: Rate,
    figures: String,
}

impl Bar {
    pub(super) fn new() -> Self {
        Self {
            bar: ProgressBar::default(),
            rate: Rate::default(),
            figures: String::new(),
        }
    }

    pub(super) fn progress(&mut self, status: &Status) {
        if self.rate.is_due(status.elapsed) {
            self.figures = figures(&mut self.rate, status);
        }
        self.bar.show(progress(status), &self.figures);
    }

    pub(super) fn end(&mut self, status: Option<&Status>) {
        self.bar.clear();
        end(status);
    }
}

/// A line each second.
pub(crate) struct Lines {
    rate: Rate,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { rate: Rate::default() }
    }

    pub(super) fn progress(&mut self, status: &Status) {
        // Waiting for somebody to map a region may take days.
        if self.rate.is_due(status.elapsed) && status.is_moving() {
            let seconds = status.elapsed.as_secs_f64();
            let figures = figures(&mut self.rate, status);
            tracing::info!("{seconds:6.1} s  {}  {figures}", progress(status));
        }
    }
}

fn progress(status: &Status) -> Progress {
    Progress {
        done: status.present(),
        size: status.size(),
    }
}

fn figures(rate: &mut Rate, status: &Status) -> String {
    let service = status
        .service
        .map_or(String::new(), |service| format!(", p99 {}", ms(service.p99)));
    let rate = rate.sample(status.elapsed, status.data + status.backed);
    format!("{}/s  {} faults{service}", bytes(rate as u64), status.faults)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

pub(super) fn ready(source: &str, status: &Status, files: &Files) {
    for region in &status.regions {
        let resumed = match region.present {
            0 => String::new(),
            present => format!(", {} of it present already", bytes(present)),
        };
        let (path, node) = (files.path(&region.name), node_path(&region.name));
        let also = match path == node {
            true => String::new(),
            false => format!(" (node {})", node.display()),
        };
        tracing::info!(
            "{}{also} is ready: {} from {source}{resumed}",
            path.display(),
            bytes(region.size)
        );
    }
}

pub(super) fn phase(region: &RegionStatus, files: &Files) -> String {
    let name = &region.name;
    match region.phase {
        Phase::Filling => format!("{name}: filling"),
        Phase::Waiting => format!(
            "{name}: complete; waiting for a program that maps {}",
            files.path(name).display()
        ),
        Phase::Populating => format!("{name}: complete"),
        Phase::Plain => format!("{name}: plain memory"),
        Phase::Unreadable => format!("{name}: {} pages cannot be read at the source", region.unreadable / PAGE),
    }
}

pub(super) fn lost(lane: Lane, error: &vmem_source::Error) -> String {
    format!("{lane:?} connection lost: {}; trying again, programs wait", chain(error))
}

pub(super) fn back(lane: Lane) -> String {
    format!("{lane:?} connection is back")
}

pub(super) fn verified(verified: &Verified) -> String {
    format!(
        "{} pages were compared with the source's, {} of them differ",
        verified.pages, verified.different
    )
}

pub(super) fn short(name: &str) -> String {
    format!("{name}: there is no memory for its pages; trying again, its programs wait")
}

pub(super) fn end(status: Option<&Status>) {
    let Some(status) = status else { return };
    for region in &status.regions {
        let present = match region.present == region.size {
            true => String::new(),
            false => format!(", {} of it present", bytes(region.present)),
        };
        out(&format!(
            "{:<11}{}{present} ({:?})",
            region.name,
            bytes(region.size),
            region.phase
        ));
    }
    let seconds = status.elapsed.as_secs_f64();
    out(&format!("data       {} in {} pages", bytes(status.data), status.data / PAGE));
    out(&format!("zero       {} in {} pages", bytes(status.zero), status.zero / PAGE));
    for (name, from, pages) in [
        ("known", "were copied from a seed image", status.known / PAGE),
        ("same", "were sent as the same as before", status.same / PAGE),
        (
            "backed",
            "were read from the source's file by the kernel",
            status.backed / PAGE,
        ),
    ] {
        if pages > 0 {
            out(&format!("{name:<11}{pages} pages {from}"));
        }
    }
    let unreadable: u64 = status.regions.iter().map(|region| region.unreadable / PAGE).sum();
    if unreadable > 0 {
        out(&format!("unreadable {unreadable} pages"));
    }
    match status.service {
        None => out("faults     none"),
        Some(service) => out(&format!(
            "faults     {}, answered in p50 {}, p99 {}, at most {}",
            status.faults,
            ms(service.p50),
            ms(service.p99),
            ms(service.max)
        )),
    }
    out(&format!(
        "twice      {} pages came that were here already",
        status.duplicates / PAGE
    ));
    if status.reconnects > 0 {
        out(&format!("lost       {} connections, made again", status.reconnects));
    }
    let rate = (status.data + status.zero + status.backed) as f64 / seconds.max(0.001);
    out(&format!("time       {seconds:.1} s, {}/s", bytes(rate as u64)));
}
