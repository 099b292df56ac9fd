// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl migrate`: the source's side of a move.
//!
//! Exactly one host owns the guest at any moment. Until the source has said COMMIT, the source owns the guest, and the guest continues here
//! whatever happens. From then on the destination owns the guest: it never runs here again, unless the destination says that the guest has
//! not run there and never will. Both QEMUs are set up so that neither starts the guest by itself.

mod back;
pub(crate) mod control;
pub(crate) mod outgoing;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::Phase;
use crate::source::{State, resume};
use vmem_cli::{Signals, chain, with_port};
use vmem_qemu::{BackendFile, COMMAND_LIMIT, MemoryBackend, Qmp, guest, obstacles};

use crate::channel::Channel;
use crate::daemon::end_leftovers;
use crate::endpoint::Endpoint;
use crate::error::{Cause, Error};
use crate::key::Key;
use crate::message::{Backend, FromSource, Purpose};
use crate::network::Security;
use crate::options::{Common, DEFAULT_PORT, Migrate, Mode};
use crate::page_server::{PageServer, export_name};
use crate::record::{Outgoing, StateDir};
use crate::report::Report;
use control::{Control, Gate};
use outgoing::{OutgoingMigration, Rounds, Verification};

/// How long the destination may take to start QEMU.
pub(crate) const PREPARATION: Duration = Duration::from_secs(120);

/// Moves a guest to another host.
pub fn run(cli: &Common, args: &Migrate) -> Result<(), Error> {
    let report = Report::new(cli.json);
    let signals = Signals::catch().map_err(Cause::call("cannot catch signals"))?;
    let (mut migration, offer) = match prepare(cli, args, report, signals) {
        Ok(prepared) => prepared,
        Err(cause) if cause.is_signal() => return Err(Error::AtSource(cause)),
        Err(cause) => return Err(cause.into()),
    };
    let hint = cli.recover_command(&migration.record.guest);
    let first = migration.offer(&offer);
    let result = migration.run_until(first, |_| false);
    migration.control.end(&result);
    if let Err(Error::Detached(_)) = result {
        Report::new(cli.json).note(&format!("'{hint}' goes on"));
    }
    result
}

/// Does everything that does not affect the guest. Returns the migration, and the offer that it begins with.
fn prepare(cli: &Common, args: &Migrate, report: Report, signals: Signals) -> Result<(OutgoingMigration, FromSource), Cause> {
    let security = Security::new(cli)?;
    let path = args.qmp.clone();
    let mut qmp = signals.unless(move || Qmp::connect(&path, COMMAND_LIMIT))??;
    let guest = guest::name(&mut qmp)?;
    let status = movable_status(&mut qmp)?;
    obstacles::check(&mut qmp)?;
    let memory = guest::memory_backends(&mut qmp)?;
    let process = guest::process(&mut qmp)?;
    let served = memory.iter().map(|memory| BackendFile::find(&process, &memory.path));
    let served = served.collect::<Result<Vec<_>, _>>()?;
    let key = Key::of_guest(&mut qmp)?;
    StateDir::check_earlier(&cli.state, "out", &guest)?;
    let state_dir = StateDir::new(&cli.state, "out", key.clone())?;
    let earlier = state_dir.read::<Outgoing>()?;
    if earlier.as_ref().is_some_and(|record| record.phase != Phase::Prepared) {
        return Err(Cause::other(format!(
            "guest {guest:?} is on its way to another host already; run 'vmemctl recover' to continue that move"
        )));
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
        // An earlier attempt may have ended before it restored QEMU's settings.
        settings: earlier.as_ref().and_then(|record| record.settings.clone()),
    };
    record.log_subject();
    let mut control = listen(&state_dir, &record, &report, Gate::starting(&signals), &signals);
    let rounds = args.rounds(process.number());
    let reached = reach(args, &security, &memory, record, &state_dir, rounds, &report, &signals);
    control.gate().started();
    if let Err(cause) = &reached {
        // As `run` ends with it.
        let code = if cause.is_signal() { 2 } else { 1 };
        control.end_with(code, Some(chain(cause)));
        if earlier.is_none() {
            state_dir.remove();
        }
    }
    let Reached {
        channel,
        export,
        pages,
        record,
        rounds,
    } = reached?;
    let mut offer = offer_of(&record, &memory, pages, args.free_source, rounds, args.verify);
    if let FromSource::Offer { streams, compress, .. } = &mut offer {
        *streams = args.streams;
        *compress = args.compress.map(|compression| compression.to_string());
    }
    let mut migration = OutgoingMigration::new(State::Offering, Ok(qmp), state_dir, record, security, report, signals);
    migration.control = control;
    migration.channel = Some(channel);
    migration.export = export;
    migration.rounds = rounds.then(|| Rounds::new(args.mode));
    migration.verification = args.verify.then(|| Verification::new(&memory));
    migration.timeout = args.timeout;
    migration.keep_source = args.keep_source;
    Ok((migration, offer))
}

/// The guest's run state, in which it can be moved.
pub(crate) fn movable_status(qmp: &mut Qmp) -> Result<String, Cause> {
    let status = guest::status(qmp)?;
    match status.as_str() {
        "running" | "paused" => Ok(status),
        _ => Err(Cause::Status { status }),
    }
}

/// Continues the move that an earlier vmemctl has recorded. `qmp` may be an error: QEMU may not exist any more.
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
    let gate = Gate::resuming(signals, record.phase != Phase::Prepared);
    let control = listen(&state_dir, &record, &report, gate, signals);
    let mut migration = OutgoingMigration::new(state, qmp, state_dir, record, security, report, signals.clone());
    migration.control = control;
    migration.keep_source = keep_source;
    migration.resumed = true;
    // A user of `recover` can run it again, so one attempt to reconnect is enough.
    migration.retry = Duration::ZERO;
    migration.run(due)
}

/// Listens for commands about this migration, if that is possible.
fn listen(state_dir: &StateDir, record: &Outgoing, report: &Report, gate: Arc<Gate>, signals: &Signals) -> Control {
    Control::listen(state_dir, &record.session, gate).unwrap_or_else(|cause| {
        report.note(&chain(&cause));
        Control::none(signals)
    })
}

fn offer_of(record: &Outgoing, memory: &[MemoryBackend], pages: String, release: bool, rounds: bool, verify: bool) -> FromSource {
    let backend = |(number, memory): (usize, &MemoryBackend)| Backend {
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
        rounds,
        verify,
        streams: None,
        compress: None,
    }
}

/// The number of a new session: 128 random bits.
pub(crate) fn session() -> Result<String, Cause> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| Cause::call("cannot get random numbers for the session")(std::io::Error::from(error)))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// A destination that this host is connected to, and what it can be offered.
struct Reached {
    channel: Channel,
    export: PageServer,
    /// Where the destination reaches vmemd.
    pages: String,
    record: Outgoing,
    /// vmemd logs the guest's writes.
    rounds: bool,
}

/// Connects to the destination, and starts this host's vmemd, with the arguments `rounds` if there are any. In mode auto, memory that
/// cannot be tracked is served without them.
#[allow(clippy::too_many_arguments)]
fn reach(
    args: &Migrate,
    security: &Security,
    memory: &[MemoryBackend],
    mut record: Outgoing,
    state_dir: &StateDir,
    rounds: Option<Vec<String>>,
    report: &Report,
    signals: &Signals,
) -> Result<Reached, Cause> {
    let channel = Endpoint::new(security, &record).connect(Purpose::Migrate, signals)?;
    let serve = match args.serve {
        Some(address) => address,
        None => stream::own_address(&channel)?,
    };
    let start = |rounds: &[String]| {
        let served = record.served.clone();
        PageServer::start(memory, served, &record.session, serve, state_dir, args, security, rounds)
    };
    let mut has_rounds = rounds.is_some();
    let (export, address) = match start(rounds.as_deref().unwrap_or_default()) {
        Err(cause) if has_rounds && args.mode == Mode::Auto => {
            signals.check()?;
            report.note(&format!(
                "no rounds, since the guest's writes cannot be logged: {}",
                chain(&cause)
            ));
            has_rounds = false;
            start(&[])?
        }
        started => started?,
    };
    signals.check()?;
    record.vmemd = export.arguments().to_vec();
    state_dir.write(&record)?;
    let pages = args.pages.clone().unwrap_or_else(|| address.port().to_string());
    Ok(Reached {
        channel,
        export,
        pages,
        record,
        rounds: has_rounds,
    })
}
