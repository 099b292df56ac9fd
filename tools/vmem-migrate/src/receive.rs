// SPDX-License-Identifier: GPL-2.0
//! `vmemctl receive`: the destination's side of moving a guest.
//!
//! The guest does not run here before COMMIT has been heard, and never if it has not. If the connection is lost when the source may have
//! said it, the guest stays as it is, ready and paused, until the source says again what it has said.

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
mod pending;
mod process;
mod regions;
mod room;
mod running;
mod template;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::destination::State;
use vmem::Control;
use vmem_cli::{Signals, chain, log};

use crate::error::{Cause, Error};
use crate::guest::LIMIT;
use crate::message::FromDestination;
use crate::network::Security;
use crate::options::{Common, Receive};
use crate::record::Incoming;
use crate::report::Report;
use final_message::FinalMessage;
use incoming::{Host, IncomingMigration, NotTaken, Resumed};
use listener::{IncomingConnection, Listener};
use monitor::Monitor;
use process::QemuProcess;
use regions::Regions;

/// How often it is looked whether a guest comes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Takes one guest, and stays until its memory is complete. A signal ends that: as long as the guest is the source's, it goes on there;
/// afterwards it is left to QEMU and vmemd.
pub fn run(cli: &Common, args: &Receive) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Cause::io("cannot catch signals"))?;
    let mut report = Report::new(cli.json);
    let result = receive(cli, args, &mut report, &signals);
    let detached = match (result, signals.check()) {
        (Err(Error::Unfinished(_) | Error::Detached(_)), Err(stopped)) => Error::Detached(stopped.into()),
        (result, _) => return result,
    };
    report.note(&format!("'{}' goes on", cli.resume_command(args)));
    Err(detached)
}

fn receive(cli: &Common, args: &Receive, report: &mut Report, signals: &Signals) -> Result<(), Error> {
    template::check(&args.command)?;
    let security = Security::new(cli)?;
    let control = Control::open().map_err(Cause::vmem("no vmem"))?;
    let regions = host::make_regions(&control, args)?;
    let listener = security.listen(args.listen)?;
    let address = listener.local_addr().map_err(Cause::io("cannot listen"))?;
    let mut listener = Listener::open(listener, security.clone())?;
    let mut incoming = if args.resume {
        match IncomingMigration::resume(cli, args, &listener, report, signals)? {
            Resumed::Incoming(incoming) => *incoming,
            Resumed::Over(owner, state_dir, word) => {
                return FinalMessage {
                    owner,
                    channel: None,
                    state_dir,
                    word,
                }
                .send(&mut listener, report, signals);
            }
        }
    } else {
        report.note(&format!("listening on {address}"));
        let host = Host {
            args,
            make_regions: &|guest, memory| host::regions_for(&control, guest, memory, args),
            security: &security,
            signals,
        };
        take(cli, &host, &mut listener, report)?
    };
    incoming.run(&mut listener, report);
    if incoming.owner.state() != State::Running {
        return end(incoming, &mut listener, report, signals);
    }
    // QEMU has them open.
    drop(regions);
    report.running(None);
    running::tend(args, &control, &mut listener, incoming, report, signals)
}

/// Whether a guest that has been recorded may be here and lack memory.
pub(crate) fn needs_memory(record: &Incoming) -> bool {
    let process = record.qemu.as_ref().map(QemuProcess::find);
    let regions = Regions::of(record);
    let is_complete = regions.look().plain;
    let monitor = Monitor::new(record.qmp.clone(), None, process, regions, LIMIT);
    !is_complete && !monitor.is_gone_within(Duration::ZERO)
}

/// Waits for a guest, and prepares everything for it. A guest that cannot be prepared for is refused, and the next one is waited for.
fn take(cli: &Common, host: &Host<'_>, listener: &mut Listener, report: &Report) -> Result<IncomingMigration, Error> {
    loop {
        host.signals.check().map_err(Cause::from)?;
        let Some(IncomingConnection::Guest(channel, offer)) = listener.wait_for(POLL_INTERVAL) else {
            continue;
        };
        let guest = offer.guest.escape_debug().to_string();
        match IncomingMigration::prepare(cli, host, listener, channel, offer, report) {
            Ok(incoming) => return Ok(incoming),
            Err(NotTaken::Refused(trouble)) if !trouble.is_signal() => {
                report.note(&format!("guest {guest} is refused: {}; waiting for another", chain(&trouble)));
                log::clear_subject();
            }
            Err(NotTaken::Refused(trouble) | NotTaken::Spoiled(trouble)) => return Err(Error::AtSource(trouble)),
        }
    }
}

/// The guest has not come, or not in a way that it can be left alone.
fn end(mut incoming: IncomingMigration, listener: &mut Listener, report: &Report, signals: &Signals) -> Result<(), Error> {
    let trouble = incoming.trouble();
    let reason = chain(&trouble);
    let word = match incoming.owner.state() {
        State::Refused => {
            listener.release_guest();
            return Err(Error::AtSource(trouble));
        }
        State::Failed => FromDestination::Failed { reason },
        State::Gone => FromDestination::Gone { reason },
        // A vmemd that serves is left alone.
        _ => return Err(Error::Unfinished(trouble)),
    };
    incoming.into_final_message(word).send(listener, report, signals)
}
