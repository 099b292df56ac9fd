// SPDX-License-Identifier: GPL-2.0
//! A guest on its way in.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::Socket;
use vmem::{Access, Control, MapHandle};
use vmem_cli::chain;
use vmem_qmp::Qmp;

use super::GLANCE;
use super::door::{Door, Visitor};
use super::host::{self, Qemu};
use super::pages::Pages;
use crate::channel::Channel;
use crate::cli::{Cli, Receive};
use crate::daemon::end_left_over;
use crate::failure::{Failure, Trouble};
use crate::guest::{self, LIMIT, Memory, Settings};
use crate::message::{Backend, FromDestination, FromSource, Purpose};
use crate::network::Security;
use crate::record::{Incoming, Phase, Place};
use crate::relay::{End, Relay, relay};
use crate::report::Report;

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
    /// The source has said that the guest goes on there.
    aborted: bool,
    state: PathBuf,
    /// So that the regions exist until QEMU has them open, and as long as they may be needed.
    _regions: Vec<MapHandle>,
}

impl Arrival {
    /// Makes everything that the guest needs here. If that fails, nothing of it stays, and the source hears why.
    pub(super) fn prepare(cli: &Cli, host: &Host<'_>, door: &mut Door, channel: Channel, offer: Offer) -> Result<Self, Failure> {
        let mut qemu = Qemu::existing();
        let place = Place::new(&cli.state, "in", &offer.guest).map_err(Trouble::from)?;
        match Self::build(host, &channel, offer, &place, &mut qemu) {
            Ok((pages, qmp, record, regions)) => {
                let arrival = Self {
                    channel: Some(channel),
                    pages,
                    qmp,
                    state: place.path("state.socket"),
                    place,
                    record,
                    qemu,
                    relay: None,
                    aborted: false,
                    _regions: regions,
                };
                arrival.place.write(&arrival.record).map_err(Trouble::from)?;
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
                qemu.end();
                place.remove();
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
    ) -> Result<(Pages, Qmp, Incoming, Vec<MapHandle>), Trouble> {
        let args = host.args;
        host::check_memory(&offer.memory, args)?;
        let mut regions = Vec::new();
        let mut names = Vec::new();
        if !args.command.is_empty() {
            (names, regions) = host::regions_for(host.control, &offer.guest, &offer.memory, args)?;
            *qemu = Qemu::start(args, &offer.memory, &names, &place.path("qemu.log"))?;
        }
        let mut qmp = qemu.connect(&args.qmp)?;
        let status = guest::status(&mut qmp)?;
        if status != "inmigrate" {
            return Err(Trouble::other(format!(
                "QEMU is {status}: it must be started with -incoming defer"
            )));
        }
        let found = guest::memory(&mut qmp)?;
        let nodes = match_memory(&offer.memory, &found)?;
        if names.is_empty() {
            names = nodes;
        } else if names != nodes {
            return Err(Trouble::other("QEMU has other files as its memory than {memory:...} says"));
        }
        for name in &names {
            check_mapped(name)?;
        }
        // QEMU must not start the guest by itself: during an incoming migration, this takes back that it would.
        qmp.run("stop", json!({}))?;
        let settings = Settings::of(&mut qmp, &["events", "return-path", "x-ignore-shared"])?;
        settings.change(&mut qmp)?;
        let state = place.path("state.socket");
        // One that was left behind.
        let _ = std::fs::remove_file(&state);
        qmp.run("migrate-incoming", json!({"uri": format!("unix:{}", state.display())}))?;
        let arguments = vmemd_arguments(host, channel, &offer, &names)?;
        let pages = Pages::hold(&arguments, names, place)?;
        let record = Incoming {
            session: offer.session,
            guest: offer.guest,
            phase: Phase::Prepared,
            qmp: args.qmp.clone(),
            memory: offer.memory,
            vmemd: arguments,
            run: true,
            settings: Some(settings),
        };
        Ok((pages, qmp, record, regions))
    }

    /// Takes up what another `receive` has begun.
    pub(super) fn resume(cli: &Cli, args: &Receive, door: &Door) -> Result<Self, Trouble> {
        let places = Place::all(&cli.state, "in")?;
        let mut found = None;
        for place in places {
            match place.read::<Incoming>()? {
                Some(record) if record.qmp == args.qmp => found = Some((place, record)),
                _ => {}
            }
        }
        let (place, record) = found.ok_or_else(|| {
            Trouble::other(format!(
                "no guest of {} is noted in {}",
                args.qmp.display(),
                cli.state.display()
            ))
        })?;
        let mut qmp = Qmp::connect(&args.qmp, LIMIT)?;
        let memory = guest::memory(&mut qmp)?;
        let names = match_memory(&record.memory, &memory)?;
        door.taken(&record.session);
        // It has the regions, and nobody hears what it says.
        end_left_over(&place);
        Ok(Self {
            channel: None,
            pages: Pages::absent(&record.vmemd, names, &place),
            qmp,
            state: place.path("state.socket"),
            place,
            record,
            qemu: Qemu::existing(),
            relay: None,
            aborted: false,
            _regions: Vec::new(),
        })
    }

    /// Waits until the guest is this host's, and has it run.
    pub(super) fn wait_for_commit(&mut self, door: &mut Door, report: &mut Report) -> Result<(), Ended> {
        while self.record.phase == Phase::Prepared {
            if let Err(trouble) = self.wait_for_word(door, report) {
                return Err(self.judge(trouble));
            }
        }
        let result = self.wait_for_state().and_then(|()| self.go());
        result.map_err(|trouble| match self.never_ran() {
            true => Ended::AfterCommit(trouble),
            false => Ended::Unknown(trouble),
        })
    }

    /// What it means that the guest does not come: the source may have said COMMIT once QEMU has the state.
    fn judge(&mut self, trouble: Trouble) -> Ended {
        let prepared = self.record.phase == Phase::Prepared;
        if self.aborted || (prepared && !self.has_state()) {
            Ended::BeforeCommit(trouble)
        } else {
            Ended::AfterCommit(trouble)
        }
    }

    /// Does what the source, or QEMU, wants next.
    fn wait_for_word(&mut self, door: &mut Door, report: &Report) -> Result<(), Trouble> {
        let limit = if self.channel.is_some() { Duration::ZERO } else { GLANCE };
        match door.wait_for(limit) {
            Some(Visitor {
                channel,
                purpose: Purpose::State,
                ..
            }) => self.connect_state(channel)?,
            Some(Visitor {
                channel,
                purpose: Purpose::Recover,
                ..
            }) => {
                report.note("the source is back");
                self.channel = Some(channel);
            }
            _ => {}
        }
        let Some(channel) = &mut self.channel else { return Ok(()) };
        // While the connection for the state is awaited, it comes through the door, and not here.
        let glance = if self.relay.is_some() {
            GLANCE
        } else {
            Duration::from_millis(2)
        };
        match channel.hear(Instant::now() + glance) {
            Ok(None) => self.pages.check()?,
            Ok(Some(FromSource::Start)) => self.pages.start(),
            Ok(Some(FromSource::Commit { run })) => {
                self.pages.start();
                self.record.phase = Phase::Committed;
                self.record.run = run;
                self.place.write(&self.record)?;
            }
            Ok(Some(FromSource::Abort { reason })) => {
                self.aborted = true;
                return Err(Trouble::other(format!(
                    "the source has changed its mind: {}",
                    reason.escape_debug()
                )));
            }
            Ok(Some(other)) => return Err(Trouble::other(format!("the source said something out of order: {other:?}"))),
            Err(error) => {
                let trouble = Trouble::Peer("the source's vmemctl".to_owned(), error);
                if !self.has_state() {
                    return Err(trouble);
                }
                report.note(&format!(
                    "{}; the guest may be this host's: it stays ready and paused until the source says so ('vmemctl recover')",
                    chain(&trouble)
                ));
                self.channel = None;
            }
        }
        Ok(())
    }

    /// QEMU gets the connection that its state comes on.
    fn connect_state(&mut self, channel: Channel) -> Result<(), Trouble> {
        let failed = || Trouble::io("cannot reach QEMU's socket for the state");
        let qemu = UnixStream::connect(&self.state).map_err(failed())?;
        let (network, early) = channel.into_parts();
        self.relay = Some(relay(End::Destination, Socket::from(qemu), network, early).map_err(failed())?);
        Ok(())
    }

    /// Whether the source's QEMU may have heard that this one has all of the state; only then the source can have said COMMIT. Nothing
    /// more comes from now on.
    fn has_state(&mut self) -> bool {
        self.relay.as_ref().is_some_and(|relay| {
            relay.cut();
            relay.has_loaded()
        })
    }

    /// Waits until QEMU has the guest's state.
    fn wait_for_state(&mut self) -> Result<(), Trouble> {
        let until = Instant::now() + LIMIT;
        loop {
            match guest::migration(&mut self.qmp) {
                Ok((status, reason)) => match status.as_str() {
                    "completed" => return Ok(()),
                    "failed" | "none" | "cancelled" => {
                        let reason = reason.unwrap_or_else(|| self.qemu.last_words());
                        return Err(Trouble::other(format!("QEMU cannot load the guest's state: {reason}")));
                    }
                    _ => {}
                },
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= until {
                return Err(Trouble::other("QEMU does not come to an end with the guest's state"));
            }
            self.qmp.event(Instant::now() + Duration::from_millis(5))?;
        }
    }

    /// The guest runs here.
    fn go(&mut self) -> Result<(), Trouble> {
        if self.record.run && guest::status(&mut self.qmp)? != "running" {
            self.qmp.run("cont", json!({}))?;
        }
        // If the source does not hear it, it asks.
        let _ = self.say(&FromDestination::Running);
        self.record.phase = Phase::Running;
        self.place.write(&self.record)?;
        self.pages.release();
        if let Some(settings) = self.record.settings.take() {
            // Whoever saves this guest to a file next would miss its memory. If it fails, the guest is none the worse.
            let _ = settings.restore(&mut self.qmp);
        }
        Ok(())
    }

    /// Whether it is certain that QEMU has not run the guest, and cannot any more.
    fn never_ran(&mut self) -> bool {
        if self.record.phase == Phase::Running {
            return false;
        }
        match guest::status(&mut self.qmp) {
            Ok(status) => {
                matches!(status.as_str(), "inmigrate" | "paused" | "prelaunch") && self.qmp.run("quit", json!({})).is_ok()
            }
            // It has ended, and COMMIT is answered by `cont` only.
            Err(guest::GuestError::Qmp(vmem_qmp::QmpError::Closed)) => self.record.phase != Phase::Running,
            Err(_) => false,
        }
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
        // A source that does not hear it finds the connection closed.
        let _ = self.say(&FromDestination::Failed { reason });
        let (_, place) = self.discard();
        place.remove();
        trouble
    }

    /// Leaves nothing of the guest here, but for what the source has to be told, and the note of it.
    pub(super) fn discard(mut self) -> (Option<Channel>, Place) {
        self.pages.stop();
        if self.qemu.is_ours() && !self.qemu.end() {
            // One that went into the background has left its first process behind.
            let _ = self.qmp.run("quit", json!({}));
        }
        (self.channel, self.place)
    }
}

/// How it ended without the guest running here.
pub(super) enum Ended {
    /// The source has not given it away.
    BeforeCommit(Trouble),
    /// The source has given it away, and has to hear that it can have it back.
    AfterCommit(Trouble),
    /// It may run here.
    Unknown(Trouble),
}

/// The region of each backend that is offered, as QEMU has it.
fn match_memory(offered: &[Backend], found: &[Memory]) -> Result<Vec<String>, Trouble> {
    let mut names = Vec::new();
    for backend in offered {
        let id = &backend.id;
        let memory = found.iter().find(|memory| memory.id == *id);
        let memory = memory.ok_or_else(|| Trouble::other(format!("QEMU here has no memory backend {id}")))?;
        if memory.bytes != backend.bytes {
            return Err(Trouble::other(format!(
                "memory backend {id} has {} bytes here and {} at the source",
                memory.bytes, backend.bytes
            )));
        }
        let name = memory.path.strip_prefix("/dev/vmem").ok().and_then(Path::to_str);
        let not_region = || Trouble::other(format!("memory backend {id} is {}, and no region", memory.path.display()));
        names.push(name.ok_or_else(not_region)?.to_owned());
    }
    if offered.len() == found.len() {
        Ok(names)
    } else {
        Err(Trouble::other("QEMU here has more memory backends than at the source"))
    }
}

/// What QEMU calls `/dev/vmem/NAME` may be another file: it may see another /dev, or have made a file there before there was a region.
fn check_mapped(name: &str) -> Result<(), Trouble> {
    let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
    match info.map_err(Trouble::vmem(format!("cannot look at region {name}")))?.mappings {
        0 => Err(Trouble::other(format!(
            "QEMU does not have region {name} mapped, but another file of that path"
        ))),
        _ => Ok(()),
    }
}

/// How the destination's vmemd is started when it goes on with what another one has begun.
fn vmemd_arguments(host: &Host<'_>, channel: &Channel, offer: &Offer, regions: &[String]) -> Result<Vec<String>, Trouble> {
    let source = match offer.pages.parse::<u16>() {
        Ok(port) => {
            let (_, peer) = channel
                .ends()
                .ok_or_else(|| Trouble::other("the source is not on a network"))?;
            SocketAddr::new(peer, port).to_string()
        }
        Err(_) => offer.pages.clone(),
    };
    let mut arguments: Vec<String> = ["--source", &source, "--resume", "--json"].map(str::to_owned).to_vec();
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
    Ok(arguments)
}
