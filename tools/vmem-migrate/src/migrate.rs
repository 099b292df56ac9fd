// SPDX-License-Identifier: GPL-2.0
//! `vmemctl migrate`: the source's side of moving a guest.
//!
//! The guest is on exactly one side at any moment. Until COMMIT is said it is the source's, whatever happens, and goes on here. From then
//! on it is the destination's: it never runs here again unless the destination says that it has not run there and never will. QEMU's own
//! part is arranged so that neither QEMU starts the guest by itself.

mod back;
pub(crate) mod outgoing;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::Phase;
use crate::source::{State, resume};
use vmem_cli::{Signals, with_port};
use vmem_qmp::Qmp;

use crate::channel::Channel;
use crate::daemon::end_leftovers;
use crate::endpoint::Endpoint;
use crate::error::{Cause, Error};
use crate::guest::{self, LIMIT, Memory};
use crate::message::{Backend, FromSource, Purpose};
use crate::network::Security;
use crate::obstacles;
use crate::options::{Common, DEFAULT_PORT, Migrate};
use crate::page_server::{PageServer, export_name};
use crate::record::{Outgoing, StateDir};
use crate::report::Report;
use crate::served::ServedFile;
use outgoing::OutgoingMigration;

/// How long the destination may take to start a QEMU.
pub(crate) const PREPARATION: Duration = Duration::from_secs(120);

/// Moves a guest.
pub fn run(cli: &Common, args: &Migrate) -> Result<(), Error> {
    let report = Report::new(cli.json);
    let signals = Signals::catch().map_err(Cause::io("cannot catch signals"))?;
    let (mut migration, offer) = match prepare(cli, args, report, signals) {
        Ok(prepared) => prepared,
        Err(trouble) if trouble.is_signal() => return Err(Error::AtSource(trouble)),
        Err(trouble) => return Err(trouble.into()),
    };
    let hint = cli.recover_command(&migration.record.guest);
    let first = migration.offer(&offer);
    let result = migration.run_until(first, |_| false);
    if let Err(Error::Detached(_)) = result {
        Report::new(cli.json).note(&format!("'{hint}' goes on"));
    }
    result
}

/// Everything that changes nothing for the guest: a migration, and the offer that it begins with.
fn prepare(cli: &Common, args: &Migrate, report: Report, signals: Signals) -> Result<(OutgoingMigration, FromSource), Cause> {
    let security = Security::new(cli)?;
    let path = args.qmp.clone();
    let mut qmp = signals.unless(move || Qmp::connect(&path, LIMIT))??;
    let guest = guest::name(&mut qmp)?;
    let status = guest::status(&mut qmp)?;
    if !matches!(status.as_str(), "running" | "paused") {
        return Err(guest::GuestError::Status { status }.into());
    }
    obstacles::check(&mut qmp)?;
    let memory = guest::memory(&mut qmp)?;
    let process = qmp.peer_pid()?;
    let served = memory.iter().map(|memory| ServedFile::find(process, &memory.path));
    let served = served.collect::<Result<Vec<_>, _>>()?;
    let key = guest::key(&mut qmp)?;
    StateDir::check_earlier(&cli.state, "out", &guest)?;
    let state_dir = StateDir::new(&cli.state, "out", key.clone())?;
    let earlier = state_dir.read::<Outgoing>()?;
    if earlier.as_ref().is_some_and(|record| record.phase != Phase::Prepared) {
        return Err(Cause::other(
            "the guest is on its way to another host: 'vmemctl recover' goes on with that",
        ));
    }
    end_leftovers(&state_dir);
    let record = Outgoing {
        session: session()?,
        guest,
        key,
        phase: Phase::Prepared,
        qmp: args.qmp.clone(),
        to: with_port(&args.to, DEFAULT_PORT),
        vmemd: Vec::new(),
        served,
        run: status == "running",
        // An earlier try may not have put back what it found.
        settings: earlier.as_ref().and_then(|record| record.settings.clone()),
    };
    record.log_subject();
    let reached = reach(args, &security, &memory, record, &state_dir, &signals);
    if reached.is_err() && earlier.is_none() {
        state_dir.remove();
    }
    let (channel, export, pages, record) = reached?;
    let offer = offer_of(&record, &memory, pages, args.free_source);
    let mut migration = OutgoingMigration::new(State::Offering, Ok(qmp), state_dir, record, security, report, signals);
    migration.channel = Some(channel);
    migration.export = export;
    migration.timeout = args.timeout;
    migration.keep_source = args.keep_source;
    Ok((migration, offer))
}

/// Goes on with what another vmemctl has recorded. QEMU may not be there any more.
pub(crate) fn go_on(
    qmp: Result<Qmp, Cause>,
    state_dir: StateDir,
    record: Outgoing,
    security: Security,
    keep_source: bool,
    report: Report,
    signals: &Signals,
) -> Result<(), Error> {
    let (state, due) = resume(record.phase);
    let mut migration = OutgoingMigration::new(state, qmp, state_dir, record, security, report, signals.clone());
    migration.keep_source = keep_source;
    migration.resumed = true;
    // Whoever runs `recover` can run it again.
    migration.retry = Duration::ZERO;
    migration.run(due)
}

fn offer_of(record: &Outgoing, memory: &[Memory], pages: String, release: bool) -> FromSource {
    let backend = |(number, memory): (usize, &Memory)| Backend {
        id: memory.id.clone(),
        bytes: memory.bytes,
        export: export_name(memory, number, &record.session),
    };
    FromSource::Offer {
        guest: record.guest.clone(),
        key: Some(record.key.to_say(&record.session).as_str().to_owned()),
        memory: memory.iter().enumerate().map(backend).collect(),
        pages,
        release,
    }
}

/// A number that nobody else has.
fn session() -> Result<String, Cause> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| Cause::io("no random numbers")(error.into()))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Reaches the destination, and has this host's vmemd serve: the connection, the vmemd, how the destination reaches that, and what is
/// noted of all this.
fn reach(
    args: &Migrate,
    security: &Security,
    memory: &[Memory],
    mut record: Outgoing,
    state_dir: &StateDir,
    signals: &Signals,
) -> Result<(Channel, PageServer, String, Outgoing), Cause> {
    let channel = Endpoint::new(security, &record).connect(Purpose::Migrate, signals)?;
    let serve = match args.serve {
        Some(address) => address,
        None => stream::own_address(&channel)?,
    };
    let served = record.served.clone();
    let (export, address) = PageServer::start(memory, served, &record.session, serve, state_dir, args, security)?;
    signals.check()?;
    record.vmemd = export.arguments().to_vec();
    state_dir.write(&record)?;
    let pages = args.pages.clone().unwrap_or_else(|| address.port().to_string());
    Ok((channel, export, pages, record))
}
