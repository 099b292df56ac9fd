// SPDX-License-Identifier: GPL-2.0
//! `vmemctl recover`: on the host that the guest came from, when the vmemctl that moved it has died.

use vmem_cli::{chain, with_port};
use vmem_qmp::Qmp;

use crate::channel::Channel;
use crate::cli::{Cli, DEFAULT_PORT, Recover};
use crate::daemon::{Duty, end_left_over};
use crate::export::Export;
use crate::failure::{Failure, Trouble};
use crate::follow::{Way, follow, hear};
use crate::guest::{self, LIMIT};
use crate::message::{FromDestination, FromSource};
use crate::migrate::back::{abort, go_on, restore, take_back};
use crate::migrate::{PREPARATION, end};
use crate::network::Security;
use crate::printable::printable;
use crate::record::{Outgoing, Phase, Place};
use crate::report::Report;
use crate::signals::{Signals, Stopped};

/// Finds out where the guest is, and goes on from there.
pub(crate) fn run(cli: &Cli, args: &Recover) -> Result<(), Failure> {
    let signals = Signals::catch().map_err(Trouble::io("cannot catch signals"))?;
    let (place, record) = find(cli, args)?;
    let hint = cli.recover_command(&record.guest);
    let result = go_on_with(cli, args, place, record, &signals);
    if let Err(Failure::Detached(_)) = result {
        Report::new(cli.json).note(&format!("'{hint}' goes on"));
    }
    result
}

fn go_on_with(cli: &Cli, args: &Recover, place: Place, mut record: Outgoing, signals: &Signals) -> Result<(), Failure> {
    let mut report = Report::new(cli.json);
    let security = Security::new(cli)?;
    if let Some(to) = &args.to {
        record.to = with_port(to, DEFAULT_PORT);
    }
    let way = Way::new(&security, &record);
    let (path, detached) = (record.qmp.clone(), |stopped: Stopped| Failure::Detached(stopped.into()));
    let qmp = signals.unless(move || Qmp::connect(&path, LIMIT)).map_err(detached)?;
    let qmp = qmp.map_err(Trouble::from).and_then(|qmp| same_guest(qmp, &record));
    signals.check().map_err(detached)?;
    if record.phase == Phase::Prepared {
        // COMMIT has not been said, or has been taken back: the guest is this host's. Whoever waits for it there has its disks.
        let reason = "the guest goes on at the source".to_owned();
        abort(&way, reason, &report);
        go_on_here(qmp?, &record, &place, &report)?;
        report.note("the guest had not left this host; it goes on here");
        return Ok(());
    }
    let unheard = |trouble: Trouble| match record.phase {
        _ if trouble.is_signal() => Failure::Detached(trouble),
        Phase::Running => Failure::Unfinished(trouble),
        _ => Failure::Unknown(trouble),
    };
    let mut channel = way.connect(signals).map_err(unheard)?;
    match answer(&mut channel, &mut report, signals).map_err(unheard)? {
        FromDestination::Running => {}
        FromDestination::Failed { reason } if record.phase != Phase::Running => {
            // The destination's word that the guest has not run there and never will.
            let qmp = qmp?;
            take_back(&mut record, &place)?;
            let _ = channel.say(&FromSource::Heard);
            report.note(&format!("it has not run at the destination: {}", printable(&reason)));
            go_on_here(qmp, &record, &place, &report)?;
            report.note("the guest goes on at this host");
            return Ok(());
        }
        other => {
            let what = format!("the destination said something out of order: {other:?}");
            return Err(unheard(Trouble::other(what)));
        }
    }
    let qmp = match qmp {
        Ok(mut qmp) => {
            if guest::status(&mut qmp).map_err(Trouble::from)? == "running" {
                return Err(Failure::Twice(Trouble::other("somebody has started it here by hand")));
            }
            Some(qmp)
        }
        // It is not needed any more: the memory is in files.
        Err(trouble) => {
            report.note(&format!("{}; its memory is served without it", chain(&trouble)));
            None
        }
    };
    report.running(None);
    record.phase = Phase::Running;
    place.write(&record).map_err(Trouble::from)?;
    // A vmemd that still serves is replaced by one that is looked after.
    end_left_over(&place, Some(&record.session), Duty::Serve);
    let mut export = Export::again(&record.vmemd, record.served.clone(), &place).map_err(Failure::Unfinished)?;
    export.release();
    let way = Way::new(&security, &record);
    end(
        follow(&way, channel, &mut export, &mut report, signals),
        qmp,
        args.keep_source,
        &place,
    )
}

/// What the destination answers to COMMIT. It may be telling how far the pages are already.
fn answer(channel: &mut Channel, report: &mut Report, signals: &Signals) -> Result<FromDestination, Trouble> {
    loop {
        match hear(channel, PREPARATION, signals)? {
            FromDestination::Pages { line } => report.pages(&line),
            FromDestination::Incomplete { reason } => report.note(&format!("destination: {}", printable(&reason))),
            other => return Ok(other),
        }
    }
}

/// Makes sure that this QEMU has that guest.
fn same_guest(mut qmp: Qmp, record: &Outgoing) -> Result<Qmp, Trouble> {
    let name = guest::name(&mut qmp)?;
    if name == record.guest && guest::key(&mut qmp)? == record.key {
        Ok(qmp)
    } else {
        Err(Trouble::other(format!(
            "the guest of {} is another one now ({name:?})",
            record.qmp.display()
        )))
    }
}

/// Has the guest go on at this host, and leaves nothing of the migration here.
fn go_on_here(mut qmp: Qmp, record: &Outgoing, place: &Place, report: &Report) -> Result<(), Trouble> {
    end_left_over(place, Some(&record.session), Duty::Serve);
    go_on(&mut qmp, record.run, &|| true)?;
    restore(&mut qmp, record, report);
    place.remove();
    Ok(())
}

fn find(cli: &Cli, args: &Recover) -> Result<(Place, Outgoing), Trouble> {
    let is = |record: &Outgoing| {
        let is_named = |guest: &String| [record.guest.as_str(), record.key.as_str()].contains(&guest.as_str());
        args.guest.as_ref().is_none_or(is_named)
    };
    let mut found = Place::find(&cli.state, "out", is)?;
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Trouble::other(format!("no migration is noted in {}", cli.state.display()))),
        (Some(last), _) => {
            found.push(last);
            let all = found
                .iter()
                .map(|(_, record)| format!("{:?} ({})", record.guest, record.key.as_str()));
            Err(Trouble::other(format!(
                "several migrations are noted: {}; --guest says which, by what is in parentheses if names are the same",
                all.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::Command;
    use crate::fake;
    use crate::message::Purpose;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A guest that was given away.
    fn record(qmp: &Path, to: String) -> Outgoing {
        Outgoing {
            session: "0123456789abcdef0123456789abcdef".to_owned(),
            guest: "guest".to_owned(),
            key: "guest".into(),
            phase: Phase::Committed,
            qmp: qmp.to_owned(),
            to,
            vmemd: Vec::new(),
            served: Vec::new(),
            run: true,
            settings: None,
        }
    }

    #[test]
    fn pages_that_are_told_before_the_answer_are_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let qemu = fake::Qemu::start(&path, "postmigrate", "completed");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("an address").to_string();
        let destination = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let mut greeted = Security::Loopback.accept(stream).expect("a greeting");
            assert_eq!(greeted.purpose, Purpose::Recover);
            let incomplete = "the source is gone".to_owned();
            for message in [
                FromDestination::Welcome { version: 2 },
                FromDestination::Pages { line: json!({}) },
                FromDestination::Incomplete { reason: incomplete },
                FromDestination::Running,
                FromDestination::Complete { summary: json!({}) },
            ] {
                greeted.channel.say(&message).expect("room");
            }
            while greeted.channel.hear_within::<FromSource>(LIMIT).expect("a word") != FromSource::Heard {}
        });
        let place = Place::new(directory.path(), "out", "guest").expect("a place");
        place
            .write(&Outgoing {
                key: guest::key(&mut fake::Qemu::connect(&path)).expect("a key"),
                ..record(&path, to)
            })
            .expect("a record");
        drop(place);
        let state = directory.path().to_str().expect("a path");
        let cli = Cli::parse_from(["vmemctl", "--state", state, "recover"]);
        let Command::Recover(args) = &cli.command else {
            panic!("not recover")
        };
        let (place, record) = find(&cli, args).expect("a record");
        go_on_with(&cli, args, place, record, &Signals::default()).expect("it is complete");
        destination.join().expect("a good end");
        assert!(qemu.has_heard("quit"));
    }
}
