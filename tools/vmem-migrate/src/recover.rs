// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl recover`: continues a move on the source host, after its vmemctl has died.

#[cfg(test)]
mod tests;

use vmem_cli::{Signals, Stopped, with_port};
use vmem_qemu::{COMMAND_LIMIT, Qmp, guest};

use crate::error::{Cause, Error};
use crate::key::Key;
use crate::migrate;
use crate::network::Security;
use crate::options::{Common, DEFAULT_PORT, Recover};
use crate::record::{Outgoing, StateDir};
use crate::report::Report;

/// Finds out which host owns the guest, and continues the move.
pub fn run(cli: &Common, args: &Recover) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Cause::call("cannot catch signals"))?;
    let (state_dir, record) = find(cli, args)?;
    record.log_subject();
    let hint = cli.recover_command(&record.guest);
    let result = go_on_with(cli, args, state_dir, record, &signals);
    if let Err(Error::Detached(_)) = result {
        Report::new(cli.json).note(&format!("'{hint}' goes on"));
    }
    result
}

fn go_on_with(cli: &Common, args: &Recover, state_dir: StateDir, mut record: Outgoing, signals: &Signals) -> Result<(), Error> {
    let security = Security::new(cli)?;
    if let Some(to) = &args.to {
        record.to = with_port(to, DEFAULT_PORT);
    }
    let (path, detached) = (record.qmp.clone(), |stopped: Stopped| Error::Detached(stopped.into()));
    let qmp = signals.unless(move || Qmp::connect(&path, COMMAND_LIMIT)).map_err(detached)?;
    let qmp = qmp.map_err(Cause::from).and_then(|qmp| same_guest(qmp, &record));
    signals.check().map_err(detached)?;
    migrate::go_on(
        qmp,
        state_dir,
        record,
        security,
        args.keep_source,
        Report::new(cli.json),
        signals,
    )
}

/// Checks that this QEMU has the guest of the record.
fn same_guest(mut qmp: Qmp, record: &Outgoing) -> Result<Qmp, Cause> {
    let name = guest::name(&mut qmp)?;
    if name == record.guest && Key::of_guest(&mut qmp)? == record.key {
        Ok(qmp)
    } else {
        Err(Cause::other(format!(
            "the QEMU at {} has guest {name:?} now, and not {:?}",
            record.qmp.display(),
            record.guest
        )))
    }
}

fn find(cli: &Common, args: &Recover) -> Result<(StateDir, Outgoing), Cause> {
    let is = |record: &Outgoing| {
        let is_named = |guest: &String| [record.guest.as_str(), record.key.as_str()].contains(&guest.as_str());
        args.guest.as_ref().is_none_or(is_named)
    };
    let mut found = StateDir::find(&cli.state, "out", is)?;
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Cause::other(format!("{} has no record of a migration", cli.state.display()))),
        (Some(last), _) => {
            found.push(last);
            let all = found
                .iter()
                .map(|(_, record)| format!("{:?} ({})", record.guest, record.key.as_str()));
            Err(Cause::other(format!(
                "several migrations are recorded: {}; choose one with --guest, by what is in parentheses if names are the same",
                all.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}
