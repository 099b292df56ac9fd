// SPDX-License-Identifier: GPL-2.0
//! A guest on its way in.

mod checks;
mod commit;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;
use vmem::{Control, MapHandle};
use vmem_cli::chain;
use vmem_qmp::{Qmp, QmpError};

use super::door::Door;
use super::host::{self, Qemu};
use super::pages::{self, Pages};
use crate::channel::Channel;
use crate::cli::{Cli, Receive};
use crate::daemon::{Duty, end_left_over};
use crate::failure::{Failure, Trouble};
use crate::guest::{self, LIMIT, Settings};
use crate::message::{Backend, FromDestination};
use crate::migrate::source::STREAM;
use crate::network::Security;
use crate::obstacles;
use crate::record::{Incoming, Phase, Place};
use crate::relay::Relay;
use crate::report::Report;
pub(super) use commit::Ended;

/// How long a QEMU may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a guest is prepared with.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) args: &'a Receive,
    pub(super) control: &'a Control,
    pub(super) security: &'a Security,
}

/// What the source offers.
pub(super) struct Offer {
    pub(super) session: String,
    pub(super) guest: String,
    pub(super) memory: Vec<Backend>,
    pub(super) pages: String,
    pub(super) release: bool,
}

/// A guest whose state comes, or has come.
pub(super) struct Arrival {
    /// `None` while the source's vmemctl is not there.
    pub(super) channel: Option<Channel>,
    pub(super) pages: Pages,
    pub(super) qmp: Qmp,
    pub(super) place: Place,
    record: Incoming,
    qemu: Qemu,
    relay: Option<Relay>,
    /// Another `receive` has begun with it.
    resumed: bool,
    /// The source has said that the guest goes on there.
    aborted: bool,
    /// The other end of what QEMU gets the state from, until that comes.
    state: Option<UnixStream>,
    /// So that the regions exist until QEMU has them open, and as long as they may be needed.
    _regions: Vec<MapHandle>,
}

/// What another `receive` has left.
pub(super) enum Left {
    /// A guest to go on with.
    Arrival(Box<Arrival>),
    /// The guest's end, which the source has to hear.
    Over(Place, FromDestination),
}

impl Arrival {
    /// Makes everything that the guest needs here. If that fails, nothing of it stays, and the source hears why.
    pub(super) fn prepare(cli: &Cli, host: &Host<'_>, door: &mut Door, channel: Channel, offer: Offer) -> Result<Self, Failure> {
        let mut qemu = Qemu::existing();
        let made = new_place(cli, &offer).and_then(|place| match Self::build(host, &channel, offer, &place, &mut qemu) {
            Ok(parts) => Ok((place, parts)),
            Err(trouble) => {
                qemu.end();
                place.remove();
                Err(trouble)
            }
        });
        match made {
            Ok((place, (pages, qmp, state, record, regions))) => {
                let arrival = Self {
                    channel: Some(channel),
                    pages,
                    qmp,
                    state: Some(state),
                    place,
                    record,
                    qemu,
                    relay: None,
                    resumed: false,
                    aborted: false,
                    _regions: regions,
                };
                match arrival.say(&FromDestination::Ready) {
                    Ok(()) => Ok(arrival),
                    Err(trouble) => {
                        let trouble = arrival.refuse(trouble);
                        door.nobody();
                        Err(Failure::AtSource(trouble))
                    }
                }
            }
            Err(trouble) => {
                let reason = chain(&trouble);
                // A source that does not hear it finds the connection closed.
                let _ = channel.say(&FromDestination::Failed { reason });
                door.nobody();
                Err(Failure::AtSource(trouble))
            }
        }
    }

    fn build(
        host: &Host<'_>,
        channel: &Channel,
        offer: Offer,
        place: &Place,
        qemu: &mut Qemu,
    ) -> Result<(Pages, Qmp, UnixStream, Incoming, Vec<MapHandle>), Trouble> {
        let args = host.args;
        let source = checks::check_offer(&offer, channel, host.security)?;
        host::check_memory(&offer.memory, args)?;
        let mut regions = Vec::new();
        let mut names = Vec::new();
        if !args.command.is_empty() {
            (names, regions) = host::regions_for(host.control, &offer.guest, &offer.memory, args)?;
            *qemu = Qemu::start(args, &offer.memory, &names, &place.path("qemu.log"))?;
        }
        let made = if names.is_empty() {
            args.regions.iter().map(|(name, _)| name.clone()).collect()
        } else {
            names.clone()
        };
        let mut qmp = qemu.connect(&args.qmp).map_err(|trouble| host::explain(trouble, &made))?;
        let status = guest::status(&mut qmp)?;
        if status != "inmigrate" {
            return Err(Trouble::other(format!(
                "QEMU is {status}: it must be started with -incoming defer"
            )));
        }
        obstacles::check(&mut qmp)?;
        let name = guest::name(&mut qmp)?;
        let found = guest::memory(&mut qmp)?;
        let nodes = checks::match_memory(&offer.memory, &found)?;
        if names.is_empty() {
            names = nodes;
        } else if names != nodes {
            return Err(Trouble::other("QEMU has other files as its memory than {memory:...} says"));
        }
        for name in &names {
            checks::check_region(name)?;
        }
        // QEMU must not start the guest by itself: during an incoming migration, this takes back that it would.
        qmp.run("stop", json!({}))?;
        let settings = Settings::of(&mut qmp, &["events", "return-path", "x-ignore-shared"])?;
        settings.change(&mut qmp)?;
        let (theirs, state) = UnixStream::pair().map_err(Trouble::io("no way for the guest's state"))?;
        qmp.give(STREAM, &theirs)?;
        qmp.run("migrate-incoming", json!({"uri": format!("fd:{STREAM}")}))?;
        let arguments = vmemd_arguments(host, &source, &offer, &names);
        let mut pages = Pages::hold(&arguments, names.clone(), place)?;
        let record = Incoming {
            session: offer.session,
            guest: offer.guest,
            phase: Phase::Prepared,
            qmp: args.qmp.clone(),
            name,
            memory: offer.memory,
            regions: names,
            vmemd: arguments,
            run: true,
            settings: Some(settings),
            reason: None,
        };
        if let Err(error) = place.write(&record) {
            pages.stop();
            return Err(error.into());
        }
        Ok((pages, qmp, state, record, regions))
    }

    /// Takes up what another `receive` has begun.
    pub(super) fn resume(cli: &Cli, args: &Receive, door: &Door) -> Result<Left, Failure> {
        let (place, mut record) = noted(cli, args)?;
        door.taken(&record.session);
        if record.phase == Phase::Failed {
            let reason = record.reason.unwrap_or_default();
            return Ok(Left::Over(place, FromDestination::Failed { reason }));
        }
        if pages::is_lost(&place) {
            let what = format!("the source has other memory now, and not what is missing of {}", record.guest);
            return Err(Failure::Lost(Trouble::other(what)));
        }
        let qmp = Qmp::connect(&args.qmp, LIMIT);
        let nobody_listens = qmp.as_ref().is_err_and(is_nobody);
        if nobody_listens && !record.regions.iter().any(|name| checks::is_mapped(name)) {
            // Its QEMU is gone.
            end_left_over(&place, Some(&record.session), Duty::Fetch);
            let reason = "QEMU has ended".to_owned();
            let word = if record.phase >= Phase::Starting {
                FromDestination::Gone { reason }
            } else {
                record.phase = Phase::Failed;
                record.reason = Some(reason.clone());
                place.write(&record).map_err(Trouble::from)?;
                FromDestination::Failed { reason }
            };
            return Ok(Left::Over(place, word));
        }
        let arrival = Self::take_up(qmp.map_err(Trouble::from)?, place, record)?;
        Ok(Left::Arrival(Box::new(arrival)))
    }

    fn take_up(mut qmp: Qmp, place: Place, record: Incoming) -> Result<Self, Trouble> {
        let name = guest::name(&mut qmp)?;
        if name != record.name {
            return Err(Trouble::other(format!(
                "QEMU's guest is {name:?} and not {:?}: another one has this socket",
                record.name
            )));
        }
        let memory = guest::memory(&mut qmp)?;
        let names = checks::match_memory(&record.memory, &memory)?;
        if names != record.regions {
            return Err(Trouble::other("QEMU's memory is in other regions than noted"));
        }
        // It has the regions, and nobody hears what it says.
        end_left_over(&place, Some(&record.session), Duty::Fetch);
        Ok(Self {
            channel: None,
            pages: Pages::absent(&record.vmemd, names, &place),
            qmp,
            state: None,
            place,
            record,
            qemu: Qemu::existing(),
            relay: None,
            resumed: true,
            aborted: false,
            _regions: Vec::new(),
        })
    }

    fn say(&self, message: &FromDestination) -> Result<(), Trouble> {
        let Some(channel) = &self.channel else { return Ok(()) };
        channel
            .say(message)
            .map_err(|error| Trouble::Peer("the source's vmemctl".to_owned(), error))
    }

    /// Tells the source that the guest does not come, and leaves nothing of it here.
    pub(super) fn refuse(self, trouble: Trouble) -> Trouble {
        let reason = chain(&trouble);
        // First, so that the source's QEMU can have the disks.
        let (channel, place) = self.discard();
        // A source that does not hear it finds the connection closed.
        let _ = channel.map(|channel| channel.say(&FromDestination::Failed { reason }));
        place.remove();
        trouble
    }

    /// Notes that the guest has not run here and never will, and leaves nothing of it but what the source has to be told.
    pub(super) fn give_back(mut self, reason: &str, report: &Report) -> (Option<Channel>, Place) {
        let failed = Incoming {
            phase: Phase::Failed,
            reason: Some(reason.to_owned()),
            ..self.record.clone()
        };
        if let Err(trouble) = self.note(failed) {
            // It is said as long as this program lives.
            report.note(&chain(&trouble));
        }
        self.discard()
    }

    /// Leaves nothing of the guest here, but for what the source has to be told, and the note of it.
    pub(super) fn discard(mut self) -> (Option<Channel>, Place) {
        self.pages.stop();
        // One that waits with a guest in it could be told to go on, and has its disks' locks.
        self.end_qemu();
        (self.channel, self.place)
    }

    /// Ends QEMU, whoever has started it; whether it has let go of everything.
    fn end_qemu(&mut self) -> bool {
        self.qemu.end();
        // It may have ended by that.
        let _ = self.qmp.run("quit", json!({}));
        let until = Instant::now() + PATIENCE;
        loop {
            match self.qmp.event(until) {
                Err(QmpError::Closed | QmpError::Io(_)) => return true,
                Err(_) | Ok(None) => return false,
                Ok(Some(_)) => {}
            }
        }
    }
}

/// A place for what becomes of a new guest, unless one of its name has come already.
fn new_place(cli: &Cli, offer: &Offer) -> Result<Place, Trouble> {
    let place = Place::new(&cli.state, "in", &offer.guest)?;
    match place.read::<Incoming>()? {
        None => Ok(place),
        Some(_) => Err(Trouble::other(format!(
            "{} is noted from an earlier move: 'vmemctl receive --resume' goes on with that; if there is no such guest any more, remove it",
            place.path("record").display()
        ))),
    }
}

/// The guest of a QEMU, as an earlier `receive` has noted it.
fn noted(cli: &Cli, args: &Receive) -> Result<(Place, Incoming), Trouble> {
    let mut found = Place::find(&cli.state, "in", |record: &Incoming| record.qmp == args.qmp)?;
    let (qmp, state) = (args.qmp.display(), cli.state.display());
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Trouble::other(format!("no guest of {qmp} is noted in {state}"))),
        (Some(_), false) => Err(Trouble::other(format!(
            "several guests of {qmp} are noted in {state}: remove the directories of those that are not there any more"
        ))),
    }
}

/// Whether nobody listens at a socket.
pub(super) fn is_nobody(error: &QmpError) -> bool {
    let QmpError::Connect { source, .. } = error else {
        return false;
    };
    matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// How the destination's vmemd is started when it goes on with what another one has begun.
fn vmemd_arguments(host: &Host<'_>, source: &str, offer: &Offer, regions: &[String]) -> Vec<String> {
    let mut arguments: Vec<String> = ["--source", source, "--resume", "--only", "--json"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(["--retry".to_owned(), host.args.retry.as_secs_f64().to_string()]);
    arguments.extend(host.security.source_arguments());
    for (backend, region) in offer.memory.iter().zip(regions) {
        arguments.extend(["--region".to_owned(), format!("{}={region}", backend.export)]);
    }
    if let Some(address) = host.args.metrics {
        arguments.extend(["--metrics".to_owned(), address.to_string()]);
    }
    if offer.release {
        arguments.push("--release".to_owned());
    }
    arguments
}
