// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl receive`: the destination's side of a move.
//!
//! The guest does not run here before the source has said COMMIT. If the connection is lost when the source may have said COMMIT, the guest
//! stays ready and paused here until the source connects again and repeats what it said.

mod arrival;
mod final_message;
mod host;
mod incoming;
mod listener;
mod loss;
mod missing;
mod monitor;
mod offer;
mod page_fetcher;
mod pause;
pub(crate) mod pending;
mod regions;
mod room;
mod running;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use crate::destination::State;
use vmem::{Control, MapHandle};
use vmem_cli::{Signals, chain, log};
use vmem_qemu::command::Sharing;
use vmem_qemu::{COMMAND_LIMIT, QemuProcess, command};

use crate::error::{Cause, Error};
use crate::message::FromDestination;
use crate::network::{Greeted, Security};
use crate::options::{Common, Receive};
use crate::record::Incoming;
use crate::report::Report;
pub(crate) use arrival::Arrival;
use final_message::FinalMessage;
use incoming::{Host, IncomingMigration, NotTaken, Resumed};
use listener::{IncomingConnection, Listener};
use monitor::Monitor;
use regions::Regions;

/// How often `receive` polls the listener for a guest.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Receives one guest, and ends when the guest's memory is complete. A signal ends it earlier: while the source owns the guest, the guest
/// continues there; afterwards the guest stays here with its QEMU and vmemd.
pub fn run(cli: &Common, args: &Receive) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Cause::call("cannot catch signals"))?;
    let mut report = Report::new(cli.json);
    let result = receive(cli, args, &mut report, &signals);
    detach(cli, args, result, &report, &signals)
}

/// If a signal has ended `receive` while the guest is on its way, this says so, and how to go on.
fn detach(cli: &Common, args: &Receive, result: Result<(), Error>, report: &Report, signals: &Signals) -> Result<(), Error> {
    let detached = match (result, signals.check()) {
        (Err(Error::Unfinished(_) | Error::Detached(_)), Err(stopped)) => Error::Detached(stopped.into()),
        (result, _) => return result,
    };
    report.note(&format!("'{}' goes on", cli.resume_command(args)));
    Err(detached)
}

fn receive(cli: &Common, args: &Receive, report: &mut Report, signals: &Signals) -> Result<(), Error> {
    command::check(&args.command, Sharing::Shared).map_err(Cause::from)?;
    let security = Security::new(cli)?;
    let control = Control::open().map_err(Cause::call(vmem_cli::NO_MODULE))?;
    let files = host::open_files(args, report);
    let regions = host::make_regions(&control, &files, args)?;
    let (mut listener, address) = open_listener(args, &security, report)?;
    if args.resume {
        return resume_with(cli, args, &control, &mut listener, report, signals);
    }
    report.note(&format!("listening on {address}"));
    let host = Host {
        args,
        files: &files,
        make_regions: &|guest, memory| host::regions_for(&control, &files, guest, memory, args),
        security: &security,
        signals,
    };
    let incoming = take(cli, &host, &mut listener, report)?;
    finish(args, &control, &mut listener, incoming, regions, report, signals)
}

/// Resumes the move of a guest whose process has ended, with a connection of its source that `vmemctl listen` has accepted.
pub(crate) fn resume(
    cli: &Common,
    args: &Receive,
    security: Security,
    greeted: Greeted,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Error> {
    let control = Control::open().map_err(Cause::call(vmem_cli::NO_MODULE))?;
    let mut listener = Listener::passive(security);
    listener.reserve_guest(&greeted.session);
    listener.pass_on(greeted);
    let result = resume_with(cli, args, &control, &mut listener, report, signals);
    detach(cli, args, result, report, signals)
}

fn resume_with(
    cli: &Common,
    args: &Receive,
    control: &Control,
    listener: &mut Listener,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Error> {
    match IncomingMigration::resume(cli, args, listener, report, signals)? {
        Resumed::Incoming(incoming) => finish(args, control, listener, *incoming, Vec::new(), report, signals),
        Resumed::Over(owner, state_dir, word) => FinalMessage {
            owner,
            channel: None,
            state_dir,
            word,
        }
        .send(listener, report, signals),
    }
}

/// A listener at the address of the options. If `vmemctl listen` has that address, a move that is resumed gets its connections from there.
fn open_listener(args: &Receive, security: &Security, report: &Report) -> Result<(Listener, SocketAddr), Cause> {
    let socket = match args.resume {
        true => security.listen_unless_taken(args.listen)?,
        false => Some(security.listen(args.listen)?),
    };
    let Some(socket) = socket else {
        report.note(&format!(
            "another program listens on {}: connections of the source must come through 'vmemctl listen' there",
            args.listen
        ));
        return Ok((Listener::passive(security.clone()), args.listen));
    };
    let address = socket
        .local_addr()
        .map_err(Cause::call("cannot get the address of the listening socket"))?;
    Ok((Listener::open(socket, security.clone())?, address))
}

/// Has the guest run here, and supervises vmemd until all of the guest's memory is here. The handles of `regions` are not needed once QEMU
/// has the regions open.
fn finish(
    args: &Receive,
    control: &Control,
    listener: &mut Listener,
    mut incoming: IncomingMigration,
    regions: Vec<MapHandle>,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Error> {
    incoming.run(listener, report);
    if incoming.owner.state() != State::Running {
        return end(incoming, listener, report, signals);
    }
    drop(regions);
    report.running(None);
    running::supervise(args, control, listener, incoming, report, signals)
}

/// Whether the guest of a record may be here and lack memory.
pub(crate) fn needs_memory(record: &Incoming) -> bool {
    let regions = Regions::of(record);
    let is_complete = regions.inspect().plain;
    // A QEMU that cannot be looked up may live.
    let Ok(process) = record.qemu.as_ref().map(QemuProcess::find).transpose() else {
        return !is_complete;
    };
    let monitor = Monitor::new(record.qmp.clone(), None, process, regions, COMMAND_LIMIT);
    !is_complete && !monitor.is_gone_within(Duration::ZERO)
}

/// Waits for a guest, and prepares this host for it. If that fails, the guest is refused, and this waits for the next one.
fn take(cli: &Common, host: &Host<'_>, listener: &mut Listener, report: &Report) -> Result<IncomingMigration, Error> {
    loop {
        host.signals.check().map_err(Cause::from)?;
        let Some(IncomingConnection::Guest(channel, offer)) = listener.wait_for(POLL_INTERVAL) else {
            continue;
        };
        let guest = offer.guest.escape_debug().to_string();
        match IncomingMigration::prepare(cli, host, listener, channel, offer, report) {
            Ok(incoming) => return Ok(incoming),
            Err(NotTaken::Refused(cause)) if !cause.is_signal() => {
                report.note(&format!("guest {guest} is refused: {}; waiting for another", chain(&cause)));
                log::clear_subject();
            }
            Err(NotTaken::Refused(cause) | NotTaken::Spoiled(cause)) => return Err(Error::AtSource(cause)),
        }
    }
}

/// Ends a move whose guest does not run here, or that this process cannot continue.
fn end(mut incoming: IncomingMigration, listener: &mut Listener, report: &Report, signals: &Signals) -> Result<(), Error> {
    let cause = incoming.cause();
    let reason = chain(&cause);
    let word = match incoming.owner.state() {
        State::Refused => {
            listener.release_guest();
            return Err(Error::AtSource(cause));
        }
        State::Failed => FromDestination::Failed { reason },
        State::Gone => FromDestination::Gone { reason },
        // A vmemd that fetches pages is left running.
        _ => return Err(Error::Unfinished(cause)),
    };
    incoming.into_final_message(word).send(listener, report, signals)
}
