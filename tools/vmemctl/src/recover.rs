// SPDX-License-Identifier: GPL-2.0
//! `vmemctl recover`: on the host that the guest came from, when the vmemctl that moved it has died.

use vmem_cli::with_port;
use vmem_qmp::Qmp;

use crate::cli::{Cli, DEFAULT_PORT, Recover};
use crate::daemon::end_left_over;
use crate::failure::{Failure, Trouble};
use crate::follow::{Way, follow};
use crate::guest::{self, LIMIT};
use crate::message::{FromDestination, FromSource};
use crate::migrate::source::Export;
use crate::migrate::{PREPARATION, go_on, leave, restore};
use crate::network::Security;
use crate::record::{Outgoing, Phase, Place};
use crate::report::Report;

/// Finds out where the guest is, and goes on from there.
pub(crate) fn run(cli: &Cli, args: &Recover) -> Result<(), Failure> {
    let mut report = Report::new(cli.json);
    let security = Security::new(cli)?;
    let (place, mut record) = find(cli, args)?;
    if let Some(to) = &args.to {
        record.to = with_port(to, DEFAULT_PORT);
    }
    let mut qmp = Qmp::connect(&record.qmp, LIMIT).map_err(Trouble::from)?;
    if record.phase == Phase::Prepared {
        // COMMIT has not been said: the guest has not left.
        go_on_here(qmp, &record, &place, &report)?;
        report.note("the guest had not left this host yet; it goes on here");
        return Ok(());
    }
    let way = Way::new(&security, &record);
    let mut channel = way.connect().map_err(Failure::Unknown)?;
    let state = channel
        .hear_within(PREPARATION)
        .map_err(|error| Failure::Unknown(Trouble::Peer("the destination's vmemctl".to_owned(), error)))?;
    match state {
        FromDestination::Running => {}
        FromDestination::Failed { reason } => {
            // The destination's word that the guest has not run there and never will.
            let _ = channel.say(&FromSource::Heard);
            report.note(&format!("it has not run at the destination: {}", reason.escape_debug()));
            go_on_here(qmp, &record, &place, &report)?;
            report.note("the guest goes on at this host");
            return Ok(());
        }
        other => {
            let what = format!("the destination said something out of order: {other:?}");
            return Err(Failure::Unknown(Trouble::other(what)));
        }
    }
    if guest::status(&mut qmp).map_err(Trouble::from)? == "running" {
        let what = "the guest runs at this host as well: somebody has started it by hand";
        return Err(Failure::Lost(Trouble::other(what)));
    }
    report.running(None);
    record.phase = Phase::Running;
    place.write(&record).map_err(Trouble::from)?;
    // A vmemd that still serves is replaced by one that is looked after.
    end_left_over(&place);
    let mut export = Export::again(&record.vmemd, &place).map_err(|error| Failure::Unfinished(error.into()))?;
    let way = Way::new(&security, &record);
    follow(&way, channel, &mut export, &mut report)?;
    leave(qmp, args.keep_source, &place);
    Ok(())
}

/// Has the guest go on at this host, and leaves nothing of the migration here.
fn go_on_here(mut qmp: Qmp, record: &Outgoing, place: &Place, report: &Report) -> Result<(), Trouble> {
    end_left_over(place);
    go_on(&mut qmp, record.run)?;
    restore(&mut qmp, record, report);
    place.remove();
    Ok(())
}

fn find(cli: &Cli, args: &Recover) -> Result<(Place, Outgoing), Trouble> {
    let mut found = Vec::new();
    for place in Place::all(&cli.state, "out")? {
        match place.read::<Outgoing>()? {
            Some(record) if args.guest.as_ref().is_none_or(|guest| *guest == record.guest) => found.push((place, record)),
            _ => {}
        }
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Trouble::other(format!("no migration is noted in {}", cli.state.display()))),
        (Some(_), _) => Err(Trouble::other("several migrations are noted; --guest says which")),
    }
}
