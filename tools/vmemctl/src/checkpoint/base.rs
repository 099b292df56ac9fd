// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint base`: regions that stay, for clones.

use vmem_checkpoint::Error;
use vmem_checkpoint::base::{Options, Step, hold};
use vmem_cli::Signals;
use vmem_migrate::options::Common;
use vmem_migrate::report::{self, Report};
use vmem_store_source::Address;

use super::args::Base;
use super::line::CheckpointLine;
use super::restore::{found, print_pages};

pub(super) fn run(args: &Base, signals: &Signals, common: &Common) -> Result<(), Error> {
    let options = Options {
        name: args.name.clone(),
        address: Address {
            store: args.store.store.clone(),
            checkpoint: args.checkpoint.clone(),
        },
        key: args.store.key.read()?,
        state: common.state.clone(),
        files: args.regions.files(),
        vmemd: args.regions.of_vmemd(),
    };
    let mut report = Report::new(common.json);
    let result = hold(&options, signals, &mut |step| print(&mut report, &step, common.json));
    report.end_progress();
    result
}

fn print(report: &mut Report, step: &Step<'_>, json: bool) {
    match step {
        Step::Ready {
            name,
            manifest,
            regions,
            files,
        } if json => {
            let regions: Vec<_> = regions.iter().map(|(memory, region)| found(memory, region, files)).collect();
            report::print(&CheckpointLine::Ready {
                base: Some(name.to_string()),
                checkpoint: manifest.checkpoint.to_string(),
                regions,
            });
        }
        Step::Ready { name, manifest, .. } => report.note(&format!(
            "base {name} is there, of checkpoint {}: vmemctl checkpoint clone --base {name} starts guests on it",
            manifest.checkpoint
        )),
        Step::Pages(event) => print_pages(report, event, json),
        Step::Complete => {
            report.end_progress();
            if json {
                report::print(&CheckpointLine::Complete);
            } else {
                report.note("all memory is present; a signal ends this");
            }
        }
        Step::Note(text) => report.note(text),
    }
}
