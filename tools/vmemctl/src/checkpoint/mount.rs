// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl checkpoint mount`: the checkpoints of a store as files.

use std::thread;
use std::time::Duration;

use vmem_checkpoint::Error;
use vmem_cli::{Signals, chain, output};
use vmem_fuse::{Mounted, Options};
use vmem_migrate::report;

use super::args::Mount;
use super::line::CheckpointLine;

/// How often the command looks for a signal, and whether it was unmounted.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Serves until a signal comes, or until somebody unmounts it.
pub(super) fn run(args: &Mount, signals: &Signals, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let location = &args.store.store;
    let options = Options {
        timeout: args.timeout,
        holder: format!("vmemctl checkpoint mount, process {}", std::process::id()),
    };
    let failed = |error| vmem_cli::Error::other(chain(&error));
    let mounted = Mounted::new(store, location.clone(), &args.directory, &options).map_err(failed)?;
    let place = mounted.directory().display().to_string();
    if json {
        report::print(&CheckpointLine::Mounted {
            store: location.to_string(),
            at: &place,
        });
    } else {
        output::out(&format!("{location} is mounted at {place}"));
    }
    while signals.check().is_ok() && !mounted.is_over() {
        thread::sleep(POLL_INTERVAL);
    }
    mounted.end().map_err(failed)?;
    Ok(())
}
