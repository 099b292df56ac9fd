// SPDX-License-Identifier: GPL-2.0
//! `vmemctl checkpoint clone`: a guest on the regions of a base.

use serde_json::json;
use vmem_checkpoint::Error;
use vmem_checkpoint::clone::{Options, clone};
use vmem_cli::Signals;
use vmem_migrate::options::Common;
use vmem_migrate::report;

use super::args::Clone;
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
    };
    let started = clone(&options, signals, &mut |text| note(common.json, text))?;
    if common.json {
        report::print(&json!({
            "event": "cloned",
            "base": args.base.to_string(),
            "running": started.runs,
            "process": started.process,
            "seconds": started.after.as_secs_f64(),
        }));
    } else {
        let what = if started.runs { "runs" } else { "is paused" };
        note(
            false,
            &format!(
                "the clone of {} {what} after {:.0} ms: QEMU is process {}",
                args.base,
                started.after.as_secs_f64() * 1e3,
                started.process
            ),
        );
    }
    Ok(())
}
