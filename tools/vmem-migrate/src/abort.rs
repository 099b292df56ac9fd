// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl abort`: gives a migration up before the destination owns the guest.

use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_cli::output::out;
use vmem_control::{Event, Migration, MigrationPhase};

use crate::error::{Cause, Error};
use crate::ongoing::{LIMIT, Ongoing};
use crate::options::{Abort, Common};
use crate::report::{MoveLine, print};

/// How long the migration may take to end: the destination's QEMU may hold the guest's disks for a while.
const END: Duration = Duration::from_secs(120);

/// The exit code of a migration after which the guest continues at its source.
const AT_SOURCE: u8 = 2;

/// Whether the guest goes on at its source.
fn is_returning(migration: &Migration) -> bool {
    migration.phase == MigrationPhase::Returning
}

/// Has the vmemctl that migrates a guest give up, and waits for its end.
pub fn run(cli: &Common, args: &Abort) -> Result<(), Error> {
    let migration = Ongoing::leaving(&cli.state, &args.guest)?;
    let guest = &args.guest;
    let failed = |error: vmem_control::Error| {
        Cause::other(match error {
            vmem_control::Error::Refused { text, .. } => format!("the migration of guest {guest:?} is not given up: {text}"),
            error => format!("the vmemctl that migrates guest {guest:?} cannot be asked: {}", chain(&error)),
        })
    };
    let mut client = migration.connect_soon()?;
    client.subscribe(LIMIT).map_err(failed)?;
    // A vmemctl of another version may have a status that cannot be read. It can be asked to give up all the same.
    let status = client.status(LIMIT);
    let mut returns = status.is_ok_and(|status| status.migration.as_ref().is_some_and(is_returning));
    client.abort(LIMIT).map_err(failed)?;
    let until = Instant::now() + END;
    loop {
        match client.event(until) {
            Ok(Some(Event::Migration(migration))) => returns = is_returning(&migration),
            Ok(Some(Event::End {
                exit_code: AT_SOURCE, ..
            })) => break,
            // A 'vmemctl recover' that ends such a migration has succeeded.
            Ok(Some(Event::End { exit_code: 0, .. })) if returns => break,
            Ok(Some(Event::End { exit_code, error, .. })) => {
                let why = error.unwrap_or_else(|| "the guest has moved".to_owned());
                return Err(Cause::other(format!(
                    "the migration of guest {guest:?} has ended with status {exit_code}: {why}"
                ))
                .into());
            }
            Ok(Some(_)) if Instant::now() < until => {}
            Ok(_) => {
                let seconds = END.as_secs();
                return Err(Cause::other(format!(
                    "the migration of guest {guest:?} is being given up, and has not ended within {seconds} s"
                ))
                .into());
            }
            Err(error) => {
                return Err(Cause::other(format!(
                    "the vmemctl that migrates guest {guest:?} has ended, and has not said how: {}",
                    chain(&error)
                ))
                .into());
            }
        }
    }
    if cli.json {
        print(&MoveLine::Aborted { guest });
    } else {
        out(&format!(
            "the migration of guest {guest} is given up: the guest continues at this host"
        ));
    }
    Ok(())
}
