// SPDX-License-Identifier: GPL-2.0-or-later
//! The destination's side of a move, until the guest runs here.

mod checks;
mod driver;
mod resume;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::destination::{Action, Destination, State};
use crate::{Owner, Phase};
use serde_json::json;
use vmem::{Files, FilesOption, MapHandle, node_path};
use vmem_cli::{Signals, chain};
use vmem_qemu::migration::Settings;
use vmem_qemu::{COMMAND_LIMIT, Qemu, QemuProcess, guest, obstacles, stream};

use super::final_message::FinalMessage;
use super::host::{self, MakeRegions};
use super::listener::Listener;
use super::monitor::Monitor;
use super::offer::{Fetching, Offer};
use super::page_fetcher::{LossPolicy, PageFetcher};
use super::regions::{self, Regions};
use super::room;
use crate::channel::Channel;
use crate::error::Cause;
use crate::message::FromDestination;
use crate::network::Security;
use crate::options::{Common, OnLost, Receive};
use crate::record::log_subject;
use crate::record::{Incoming, StateDir};
use crate::relay::Relay;
use crate::report::Report;
pub(super) use resume::Resumed;

/// How long QEMU may take to end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What [`IncomingMigration::prepare`] needs of this host.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) args: &'a Receive,
    /// Where QEMU finds the regions.
    pub(super) files: &'a Files,
    pub(super) make_regions: &'a MakeRegions<'a>,
    pub(super) security: &'a Security,
    pub(super) signals: &'a Signals,
}

/// Why an offered guest is not received. The source has been told.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// Everything is as it was before the offer, so `receive` can take another guest.
    Refused(Cause),
    /// A QEMU that vmemctl did not start is changed, or a QEMU is left over. No other guest can be prepared with it.
    Spoiled(Cause),
}

impl NotTaken {
    fn new(cause: Cause, can_take_another: bool) -> Self {
        match can_take_another {
            true => Self::Refused(cause),
            false => Self::Spoiled(cause),
        }
    }
}

/// A guest whose state arrives, or has arrived.
pub(super) struct IncomingMigration {
    pub(super) owner: Owner<Destination>,
    /// The actions that [`run`](Self::run) executes first.
    due: &'static [Action],
    /// `None` while the source's vmemctl is not connected.
    pub(super) channel: Option<Channel>,
    pub(super) pages: PageFetcher,
    pub(super) monitor: Monitor,
    pub(super) state_dir: StateDir,
    pub(super) record: Incoming,
    qemu: Qemu,
    relay: Option<Relay>,
    /// How pages are fetched until the guest runs here.
    fetching: Fetching,
    /// An earlier `receive` has prepared the guest.
    resumed: bool,
    /// QEMU must be told to run the guest: the guest ran at the source, and does not run here yet.
    is_to_be_started: bool,
    /// Why the move does not continue.
    cause: Option<Cause>,
    signals: Signals,
    /// vmemctl's end of the socket from which QEMU loads the state. `None` once the state connection is relayed to it.
    state: Option<UnixStream>,
    /// Keeps the regions in existence until QEMU has them open, and as long as they may be needed.
    _regions: Vec<MapHandle>,
}

impl IncomingMigration {
    /// Prepares everything that the guest needs here. If that fails, this removes what it has made, and tells the source why.
    pub(super) fn prepare(
        cli: &Common,
        host: &Host<'_>,
        listener: &Listener,
        channel: Channel,
        offer: Offer,
        report: &Report,
    ) -> Result<Self, NotTaken> {
        let mut qemu = Qemu::existing();
        let mut can_take_another = true;
        log_subject(&offer.guest, &offer.session);
        let made = new_place(cli, &offer).and_then(|state_dir| {
            let reserved = room::reserve(&cli.state, &state_dir, &offer.memory, host.args.overcommit);
            let mut fetching = offer.fetching;
            fetching.rounds &= can_stage();
            match reserved.and_then(|()| Self::build(host, offer, &state_dir, fetching, &mut qemu)) {
                Ok(parts) => Ok((state_dir, fetching, parts)),
                Err(cause) => {
                    let cause = host::explain_failure(cause, &mut qemu);
                    can_take_another = qemu.end();
                    state_dir.remove();
                    Err(cause)
                }
            }
        });
        match made {
            Ok((state_dir, fetching, (pages, monitor, state, record, regions))) => {
                let mut incoming = Self {
                    owner: Owner::new(State::Prepared),
                    due: &[],
                    channel: Some(channel),
                    pages,
                    monitor,
                    state: Some(state),
                    state_dir,
                    record,
                    qemu,
                    relay: None,
                    fetching,
                    resumed: false,
                    is_to_be_started: false,
                    cause: None,
                    signals: host.signals.clone(),
                    _regions: regions,
                };
                match incoming.send_ready(report) {
                    Ok(()) => Ok(incoming),
                    Err(cause) => {
                        listener.release_guest();
                        // `send_ready` has ended QEMU.
                        Err(NotTaken::new(cause, !host.args.command.is_empty()))
                    }
                }
            }
            Err(cause) => {
                let reason = chain(&cause);
                // The source may offer another guest as soon as it receives FAILED, so this guest is released first.
                listener.release_guest();
                // If the source does not receive FAILED, it finds the connection closed.
                let _ = channel.send(&FromDestination::Failed { reason });
                Err(NotTaken::new(cause, can_take_another))
            }
        }
    }

    fn build(
        host: &Host<'_>,
        offer: Offer,
        state_dir: &StateDir,
        fetching: Fetching,
        qemu: &mut Qemu,
    ) -> Result<(PageFetcher, Monitor, UnixStream, Incoming, Vec<MapHandle>), Cause> {
        let args = host.args;
        let mut regions = Vec::new();
        let mut names = Vec::new();
        if !args.command.is_empty() {
            (names, regions) = (host.make_regions)(&offer.guest, &offer.memory)?;
            *qemu = host::start_qemu(args, host.files, &offer.memory, &names, state_dir)?;
        }
        let made = if names.is_empty() {
            args.regions.iter().map(|(name, _)| name.clone()).collect()
        } else {
            names.clone()
        };
        let connected = qemu.connect(&args.qmp, || host.signals.check().is_ok());
        let mut qmp = connected.map_err(|error| {
            let stopped = host.signals.check().err();
            host::explain(stopped.map_or_else(|| error.into(), Cause::from), &made)
        })?;
        let status = guest::status(&mut qmp)?;
        if status != "inmigrate" {
            return Err(Cause::other(format!(
                "guest {:?}: QEMU is {status}: start it with -incoming defer",
                offer.guest
            )));
        }
        obstacles::check(&mut qmp)?;
        let name = guest::name(&mut qmp)?;
        let found = guest::memory_backends(&mut qmp)?;
        let nodes = checks::match_memory(&offer.memory, &found)?;
        if names.is_empty() {
            names = nodes;
        } else if names != nodes {
            return Err(Cause::other(format!(
                "the memory of guest {:?} is in the regions {nodes:?} of QEMU, and not in those that were made for it ({names:?}): use \
                 {{memory:ID}} as the mem-path of each backend",
                offer.guest
            )));
        }
        for name in &names {
            checks::check_region(name)?;
        }
        qemu.set_changed();
        // During an incoming migration, QEMU would start the guest by itself as soon as it has the state. `stop` prevents that.
        qmp.execute("stop", json!({}))?;
        let settings = Settings::of(&mut qmp, &["events", "return-path", "x-ignore-shared"])?;
        settings.change(&mut qmp)?;
        let (state, uri) = stream::open(&mut qmp)?;
        qmp.execute("migrate-incoming", json!({"uri": uri}))?;
        let region_ids = regions::ids(&names).map_err(Cause::call(format!("cannot read the state of the regions {names:?}")))?;
        // The peer of the socket may be a proxy. A proxy does not have the guest's memory open.
        let files: Vec<_> = names.iter().map(|name| node_path(name)).collect();
        let process = qmp.peer_pid().ok().and_then(|pid| QemuProcess::with_files(pid, &files));
        let record = Incoming {
            vmemd: vmemd_arguments(host, &offer, &names),
            session: offer.session,
            guest: offer.guest,
            phase: Phase::Prepared,
            qmp: args.qmp.clone(),
            name,
            memory: offer.memory,
            regions: names,
            region_ids,
            qemu: process.as_ref().and_then(|process| process.identity().ok()),
            run: true,
            settings: Some(settings),
            reason: None,
        };
        let known = Regions::of(&record);
        let mut pages = PageFetcher::hold(&record, state_dir, loss_policy(args), fetching, &args.seed_image)?;
        let monitor = Monitor::new(args.qmp.clone(), Some(qmp), process, known, COMMAND_LIMIT).with_signals(host.signals);
        if let Err(error) = state_dir.write(&record) {
            pages.stop();
            return Err(error.into());
        }
        Ok((pages, monitor, state, record, regions))
    }

    /// Drops everything of the guest but what the final message needs. The source may take long to receive it.
    pub(super) fn into_final_message(self, word: FromDestination) -> FinalMessage {
        FinalMessage {
            owner: self.owner,
            channel: self.channel,
            state_dir: self.state_dir,
            word,
        }
    }

    /// Ends QEMU, even if vmemctl did not start it. Returns whether QEMU is certain to have ended.
    fn end_qemu(&mut self) -> bool {
        self.qemu.end();
        self.monitor.end(TIMEOUT)
    }
}

/// Whether the module of this host can stage pages.
fn can_stage() -> bool {
    vmem::Control::open()
        .and_then(|control| control.features())
        .is_ok_and(|features| features.stage)
}

/// What vmemd's supervisor does when the source is lost. With `--on-lost=sigbus`, vmemctl itself attaches to the regions to mark the
/// missing pages, so no vmemd may have them.
pub(super) fn loss_policy(args: &Receive) -> LossPolicy {
    match args.on_lost {
        OnLost::Wait => LossPolicy::Retry,
        OnLost::Sigbus => LossPolicy::End,
    }
}

/// The state directory of a new guest. Refused if there is a record of a guest with this key.
fn new_place(cli: &Common, offer: &Offer) -> Result<StateDir, Cause> {
    StateDir::check_earlier(&cli.state, "in", &offer.guest)?;
    let state_dir = StateDir::new(&cli.state, "in", offer.key.clone())?;
    match state_dir.read::<Incoming>()? {
        None => Ok(state_dir),
        Some(_) => Err(Cause::other(format!(
            "{} records an earlier move of this guest: run 'vmemctl receive --resume' to continue it, or 'vmemctl forget' if the guest does not \
             exist any more",
            state_dir.path("record").display()
        ))),
    }
}

/// The arguments of a vmemd that resumes what an earlier vmemd has begun.
fn vmemd_arguments(host: &Host<'_>, offer: &Offer, regions: &[String]) -> Vec<String> {
    let mut arguments: Vec<String> = ["--source", &offer.source, "--resume", "--only", "--json"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(["--retry".to_owned(), host.args.retry.as_secs_f64().to_string()]);
    arguments.extend(host.security.vmemd_arguments());
    for (backend, region) in offer.memory.iter().zip(regions) {
        arguments.extend(["--region".to_owned(), format!("{}={region}", backend.export)]);
    }
    if let Some(files) = host.args.files.as_ref().and_then(FilesOption::argument) {
        arguments.extend(["--files".to_owned(), files]);
    }
    if let Some(address) = host.args.metrics {
        arguments.extend(["--metrics".to_owned(), address.to_string()]);
    }
    if offer.release {
        arguments.push("--release".to_owned());
    }
    arguments.extend(offer.transport.vmemd_arguments());
    arguments
}
