// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint clone`: a guest on the regions of a base.

use vmem_checkpoint::Error;
use vmem_checkpoint::clone::{Options, Step, clone};
use vmem_cli::Signals;
use vmem_migrate::options::Common;
use vmem_migrate::report;

use super::args::Clone;
use super::line::CheckpointLine;
use super::note;

pub(super) fn run(args: &Clone, signals: &Signals, common: &Common) -> Result<(), Error> {
    let options = Options {
        base: args.base.clone(),
        key: args.key.read()?,
        state: common.state.clone(),
        qmp: args.qmp.clone(),
        command: args.command.clone(),
        paused: args.paused,
        agent: args.agent.agent.clone().map(|socket| (socket, args.agent.agent_timeout)),
        disks: args.disks.clone(),
        files: args.files.option(),
    };
    clone(&options, signals, &mut |step| print(&step, args, common.json))
}

fn print(step: &Step<'_>, args: &Clone, json: bool) {
    match step {
        Step::Started(started) if json => report::print(&CheckpointLine::Cloned {
            base: args.base.to_string(),
            running: started.runs,
            process: started.process,
            seconds: started.after.as_secs_f64(),
        }),
        Step::Started(started) => {
            let what = if started.runs { "runs" } else { "is paused" };
            let after = started.after.as_secs_f64() * 1e3;
            let process = started.process;
            note(
                json,
                &format!(
                    "the clone of {} {what} after {after:.0} ms: QEMU is process {process}",
                    args.base
                ),
            );
        }
        Step::Note(text) => note(json, text),
    }
}
