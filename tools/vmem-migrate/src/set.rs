// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl set`: changes how a guest migrates while it does.

use std::time::Duration;

use vmem_cli::chain;
use vmem_cli::output::out;
use vmem_control::Change;

use crate::error::{Cause, Error};
use crate::ongoing::Ongoing;
use crate::options::{Common, Set};
use crate::report::{MoveLine, print};

/// How long the source's vmemctl may take: it waits 15 seconds at most for a vmemd that is being started, and asks vmemd, which has 10 seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// Changes how a guest migrates.
pub fn run(cli: &Common, args: &Set) -> Result<(), Error> {
    let migration = Ongoing::leaving(&cli.state, &args.guest)?;
    let guest = &args.guest;
    let mut client = migration.connect_soon()?;
    let change = Change {
        bandwidth: args.bandwidth,
        max_downtime_ms: args.max_downtime,
        mode: args.mode.clone(),
        switch_now: args.switch_now,
    };
    client.set(change, LIMIT).map_err(|error| {
        Cause::other(match error {
            vmem_control::Error::Refused { text, .. } => format!("the migration of guest {guest:?} is not changed: {text}"),
            error => format!("the vmemctl that migrates guest {guest:?} cannot be asked: {}", chain(&error)),
        })
    })?;
    if cli.json {
        print(&MoveLine::Changed { guest });
    } else {
        out(&format!("the migration of guest {guest} is changed"));
    }
    Ok(())
}
