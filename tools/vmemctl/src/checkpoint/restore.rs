// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint restore`.

use vmem::{Files, node_path};
use vmem_checkpoint::Error;
use vmem_checkpoint::restore::{Options, Step, restore};
use vmem_cli::{Progress, Signals};
use vmem_control::Event;
use vmem_migrate::options::Common;
use vmem_migrate::report::{self, Report};
use vmem_store_source::Address;

use super::args::Restore;
use super::line::{CheckpointLine, FoundRegion};

pub(super) fn run(args: &Restore, signals: &Signals, common: &Common) -> Result<(), Error> {
    let options = Options {
        address: Address {
            store: args.store.store.clone(),
            checkpoint: args.checkpoint.clone(),
        },
        key: args.store.key.read()?,
        qmp: args.qmp.clone(),
        command: args.command.clone(),
        memories: args.memory.clone(),
        logs: common.state.clone(),
        paused: args.paused,
        agent: args.agent.agent.clone().map(|socket| (socket, args.agent.agent_timeout)),
        disks: args.disks.clone(),
        files: args.regions.files(),
        record: (!args.no_record).then_some(args.record_time),
        vmemd: args.regions.of_vmemd(),
    };
    let mut report = Report::new(common.json);
    let result = restore(&options, signals, &mut |step| print(&mut report, &step, common.json));
    report.end_progress();
    result?;
    if common.json {
        report::print(&CheckpointLine::Complete);
    } else {
        report.note("all memory is present");
    }
    Ok(())
}

fn print(report: &mut Report, step: &Step<'_>, json: bool) {
    match step {
        Step::Ready {
            manifest,
            regions,
            files,
        } if json => {
            let regions: Vec<_> = regions.iter().map(|(memory, region)| found(memory, region, files)).collect();
            report::print(&CheckpointLine::Ready {
                base: None,
                checkpoint: manifest.checkpoint.to_string(),
                regions,
            });
        }
        Step::Ready {
            manifest,
            regions,
            files,
        } => {
            let regions: Vec<_> = regions
                .iter()
                .map(|(memory, region)| format!("{memory}: {}", files.path(region).display()))
                .collect();
            report.note(&format!(
                "checkpoint {} is there: {}",
                manifest.checkpoint,
                regions.join(", ")
            ));
        }
        Step::Restored { runs, after } if json => {
            report::print(&CheckpointLine::Restored {
                running: *runs,
                seconds: after.as_secs_f64(),
            });
        }
        Step::Restored { runs, after } => {
            let what = if *runs { "runs" } else { "is paused" };
            report.note(&format!(
                "the guest {what} after {:.0} ms; its memory follows",
                after.as_secs_f64() * 1e3
            ));
        }
        Step::Pages(event) => print_pages(report, event, json),
        Step::Recorded { pages, runs } if json => {
            report::print(&CheckpointLine::Recorded {
                pages: *pages,
                runs: *runs,
            });
        }
        Step::Recorded { pages, .. } => report.note(&format!(
            "the order in which {pages} pages were touched is recorded: the next restore fetches them first"
        )),
        Step::Note(text) => report.note(text),
    }
}

/// A memory, its region, and where programs find that.
pub(super) fn found<'a>(memory: &'a str, region: &'a str, files: &Files) -> FoundRegion<'a> {
    FoundRegion {
        memory,
        region,
        path: files.path(region).display().to_string(),
        node: node_path(region).display().to_string(),
    }
}

/// Says what an event of vmemd says of the pages.
pub(super) fn print_pages(report: &mut Report, event: &Event, json: bool) {
    match event {
        event if json => report::print(&CheckpointLine::Pages { vmemd: event }),
        Event::Progress(figures) => {
            let size = figures.regions.iter().map(|region| region.bytes).sum();
            let done = figures.regions.iter().map(|region| region.present_bytes).sum();
            report.progress(Progress { done, size }, "");
        }
        Event::Lost { error, .. } => report.note(&format!("the store is away: {error}")),
        Event::Back { .. } => report.note("the store is back"),
        _ => {}
    }
}
