// SPDX-License-Identifier: GPL-2.0
//! `vmemctl migrate`: the source's side of moving a guest.
//!
//! The guest is on exactly one side at any moment. Until COMMIT is said it is the source's, whatever happens, and goes on here. From then
//! on it is the destination's: it never runs here again unless the destination says that it has not run there and never will. QEMU's own
//! part is arranged so that neither QEMU starts the guest by itself.

pub(crate) mod back;
mod stream;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde_json::json;
use vmem_qmp::{Qmp, QmpError};

use crate::channel::{Channel, ChannelError};
use crate::cli::{Cli, DEFAULT_PORT, Migrate};
use crate::daemon::{Duty, end_left_over};
use crate::export::{Export, export_name};
use crate::failure::{Failure, Trouble};
use crate::follow::{self, Way, again, hear, lost};
use crate::guest::{self, LIMIT, Memory, Settings};
use crate::message::{Backend, FromDestination, FromSource, Purpose};
use crate::network::Security;
use crate::obstacles;
use crate::printable::printable;
use crate::record::{Outgoing, Phase, Place};
use crate::report::Report;
use crate::served::Served;
use crate::signals::Signals;
use back::{Farewell, beside, go_on, restore, take_back, unheard};
use vmem_cli::{chain, with_port};

/// How long the destination may take to start a QEMU.
pub(crate) const PREPARATION: Duration = Duration::from_secs(120);

/// How long the destination may take to load the guest's state and to run it.
const RESUMPTION: Duration = Duration::from_secs(60);

/// How long the destination is listened to for why it has closed QEMU's stream.
const MOMENT: Duration = Duration::from_millis(500);

/// How often each of the others is listened to while one is waited for.
const GLANCE: Duration = Duration::from_millis(50);

/// Moves a guest.
pub(crate) fn run(cli: &Cli, args: &Migrate) -> Result<(), Failure> {
    let report = Report::new(cli.json);
    let signals = Signals::catch().map_err(Trouble::io("cannot catch signals"))?;
    let mut migration = match Migration::prepare(cli, args, report, signals) {
        Ok(migration) => migration,
        Err(trouble) if trouble.is_signal() => return Err(Failure::AtSource(trouble)),
        Err(trouble) => return Err(trouble.into()),
    };
    let ready = match migration.offer() {
        Ok(ready) => ready,
        Err(trouble) => return Err(migration.give_up(trouble)),
    };
    if let Err(trouble) = migration.switch(ready) {
        return Err(migration.give_up(trouble));
    }
    let hint = cli.recover_command(&migration.record.guest);
    let result = migration.commit().and_then(|()| migration.follow(args.keep_source));
    if let Err(Failure::Detached(_)) = result {
        Report::new(cli.json).note(&format!("'{hint}' goes on"));
    }
    result
}

/// Leaves nothing here, unless the destination still needs it.
pub(crate) fn end(result: Result<(), Failure>, qmp: Option<Qmp>, keep_source: bool, place: &Place) -> Result<(), Failure> {
    if let Ok(()) | Err(Failure::Gone(_)) = result {
        leave(qmp, keep_source, place);
    }
    result
}

/// The guest's memory is there: nothing is needed here any more.
fn leave(qmp: Option<Qmp>, keep_source: bool, place: &Place) {
    if let Some(mut qmp) = qmp.filter(|_| !keep_source) {
        // It may have been ended by hand.
        let _ = qmp.run("quit", json!({}));
    }
    place.remove();
}

/// A migration that is going on.
struct Migration {
    qmp: Qmp,
    channel: Channel,
    export: Export,
    place: Place,
    record: Outgoing,
    security: Security,
    memory: Vec<Memory>,
    pages: String,
    free: bool,
    timeout: Duration,
    report: Report,
    signals: Signals,
    /// QEMU was told to migrate. Before, what it does is not this migration's business.
    begun: bool,
    /// When it was heard that the guest had stopped.
    stopped: Option<Instant>,
    /// The destination has said FAILED: it does not wait for the guest.
    settled: bool,
}

impl Migration {
    /// Everything that changes nothing for the guest.
    fn prepare(cli: &Cli, args: &Migrate, report: Report, signals: Signals) -> Result<Self, Trouble> {
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
        let process = qmp.process()?;
        let served = memory.iter().map(|memory| Served::find(process, &memory.path));
        let served = served.collect::<Result<Vec<_>, _>>()?;
        let key = guest::key(&mut qmp)?;
        Place::check_earlier(&cli.state, "out", &guest)?;
        let place = Place::new(&cli.state, "out", key.clone())?;
        let earlier = place.read::<Outgoing>()?;
        if earlier.as_ref().is_some_and(|record| record.phase != Phase::Prepared) {
            return Err(Trouble::other(
                "the guest is on its way to another host: 'vmemctl recover' goes on with that",
            ));
        }
        let before = earlier.as_ref().map(|record| record.session.as_str());
        end_left_over(&place, before, Duty::Serve);
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
        let reached = reach(args, &security, &memory, record, &place, &signals);
        if reached.is_err() && earlier.is_none() {
            place.remove();
        }
        let (channel, export, pages, record) = reached?;
        Ok(Self {
            qmp,
            channel,
            export,
            place,
            record,
            security,
            memory,
            pages,
            free: args.free_source,
            timeout: args.timeout,
            report,
            signals,
            begun: false,
            stopped: None,
            settled: false,
        })
    }

    /// Has the destination prepare for the guest; returns the connection for the guest's state.
    fn offer(&mut self) -> Result<Channel, Trouble> {
        self.say(&FromSource::Offer {
            guest: self.record.guest.clone(),
            key: Some(self.record.key.to_say(&self.record.session).as_str().to_owned()),
            memory: self
                .memory
                .iter()
                .enumerate()
                .map(|(number, memory)| Backend {
                    id: memory.id.clone(),
                    bytes: memory.bytes,
                    export: export_name(memory, number, &self.record.session),
                })
                .collect(),
            pages: self.pages.clone(),
            release: self.free,
        })?;
        match hear(&mut self.channel, PREPARATION, &self.signals)? {
            FromDestination::Ready => {}
            FromDestination::Failed { reason } | FromDestination::Refuse { reason } => return Err(refused(&reason)),
            other => return Err(unexpected(&other)),
        }
        connect(&self.security, &self.record, Purpose::State, &self.signals)
    }

    /// Sends the guest's state. When this returns, QEMU has stopped the guest for good, and the destination's QEMU has said that it has
    /// the state.
    fn switch(&mut self, state: Channel) -> Result<(), Trouble> {
        // Somebody else may have moved it meanwhile.
        let status = guest::status(&mut self.qmp)?;
        let expected = if self.record.run { "running" } else { "paused" };
        let (migration, _) = guest::migration(&mut self.qmp)?;
        if status != expected || matches!(migration.as_str(), "setup" | "active" | "device") {
            return Err(guest::GuestError::Status { status }.into());
        }
        let capabilities = ["events", "return-path", "x-ignore-shared", "pause-before-switchover"];
        let settings = match self.record.settings.take() {
            Some(earlier) => earlier,
            None => Settings::of(&mut self.qmp, &capabilities)?,
        };
        self.record.settings = Some(settings.clone());
        self.place.write(&self.record)?;
        settings.change(&mut self.qmp)?;
        let uri = stream::give(&mut self.qmp, state)?;
        let begun = self.qmp.run("migrate", json!({"uri": uri}));
        // One that does not answer may have begun.
        self.begun = !matches!(begun, Err(QmpError::Refused { .. }));
        begun?;
        let deadline = Instant::now() + self.timeout;
        loop {
            self.signals.check()?;
            let event = self.qmp.event(Instant::now() + GLANCE)?;
            let event = event.filter(|event| event.name == "MIGRATION");
            let status = event.as_ref().and_then(|event| event.data.get("status")?.as_str());
            match status {
                Some("pre-switchover") => {
                    // The guest has stopped, and its devices are quiet: its memory does not change any more.
                    self.stopped = Some(Instant::now());
                    self.say(&FromSource::Start)?;
                    self.qmp.run("migrate-continue", json!({"state": "pre-switchover"}))?;
                }
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(self.why_not()?),
                _ => {}
            }
            match self.glance()? {
                None => {}
                Some(FromDestination::Pages { line }) => self.report.pages(&line),
                Some(FromDestination::Failed { reason }) => {
                    self.settled = true;
                    return Err(refused(&reason));
                }
                Some(other) => return Err(unexpected(&other)),
            }
            if Instant::now() >= deadline {
                return Err(Trouble::other(format!(
                    "the guest's state did not get there within {} s",
                    self.timeout.as_secs()
                )));
            }
        }
    }

    /// Why QEMU could not send the state, as either side sees it.
    fn why_not(&mut self) -> Result<Trouble, Trouble> {
        let (_, reason) = guest::migration(&mut self.qmp)?;
        let reason = reason.unwrap_or_else(|| "QEMU does not say why".to_owned());
        let there = match self.channel.hear(Instant::now() + MOMENT) {
            Ok(Some(FromDestination::Failed { reason })) => {
                self.settled = true;
                format!("; the destination: {}", printable(&reason))
            }
            _ => String::new(),
        };
        Ok(Trouble::other(format!("QEMU cannot send the guest's state: {reason}{there}")))
    }

    /// Gives the guest away, and waits until it runs there.
    fn commit(&mut self) -> Result<(), Failure> {
        if let Err(stopped) = self.signals.check() {
            return Err(self.give_up(stopped.into()));
        }
        self.record.phase = Phase::Committed;
        if let Err(error) = self.place.write(&self.record) {
            return Err(self.give_up(error.into()));
        }
        if let Err(error) = self.channel.say(&FromSource::Commit { run: self.record.run }) {
            self.reconnect(&error)?;
        }
        let mut deadline = Instant::now() + RESUMPTION;
        loop {
            if let Err(stopped) = self.signals.check() {
                return Err(self.leave(stopped.into()));
            }
            match self.channel.hear(deadline.min(Instant::now() + GLANCE)) {
                Ok(Some(FromDestination::Running)) => break,
                // It has said so: the guest has not run there.
                Ok(Some(FromDestination::Failed { reason })) => {
                    let noted = take_back(&mut self.record, &self.place);
                    if noted.is_ok() {
                        // If it does not hear this, it waits for another word: give_up says it too.
                        self.settled = self.channel.say(&FromSource::Heard).is_ok();
                    }
                    return Err(self.give_up(refused(&reason)));
                }
                Ok(Some(FromDestination::Pages { line })) => self.report.pages(&line),
                Ok(Some(other)) => return Err(self.leave(unexpected(&other))),
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return Err(self.leave(lost(ChannelError::TimedOut(RESUMPTION)))),
                Err(error) => {
                    self.reconnect(&error)?;
                    deadline = Instant::now() + RESUMPTION;
                }
            }
        }
        self.record.phase = Phase::Running;
        // If it cannot be noted, `recover` asks.
        let _ = self.place.write(&self.record);
        self.export.release();
        Ok(())
    }

    /// It is not known whether the guest runs at the destination. It may need its pages there.
    fn leave(&mut self, trouble: Trouble) -> Failure {
        follow::leave(trouble, &mut self.export, &self.report, Failure::Unknown)
    }

    /// The connection was lost after COMMIT was said, or tried to be: asks again.
    fn reconnect(&mut self, error: &ChannelError) -> Result<(), Failure> {
        let text = format!("the destination's vmemctl: {}; trying again", chain(error));
        self.report.note(&text);
        let way = Way::new(&self.security, &self.record);
        match again(&way, &mut self.export, &mut self.report, &self.signals) {
            Ok(channel) => {
                self.channel = channel;
                Ok(())
            }
            Err(trouble) => Err(self.leave(trouble)),
        }
    }

    /// The guest runs at the destination: serves its pages until that one has them all.
    fn follow(self, keep_source: bool) -> Result<(), Failure> {
        let Self {
            mut export,
            channel,
            qmp,
            place,
            mut report,
            record,
            security,
            stopped,
            signals,
            ..
        } = self;
        report.running(stopped.map(|stopped| stopped.elapsed()));
        let way = Way::new(&security, &record);
        let result = follow::follow(&way, channel, &mut export, &mut report, &signals);
        end(result, Some(qmp), keep_source, &place)
    }

    /// Has the guest go on here.
    fn give_up(&mut self, trouble: Trouble) -> Failure {
        let reason = chain(&trouble);
        if trouble.is_signal() {
            self.report.note(&format!("{reason}: giving the move up"));
        }
        // Whoever does not hear it finds the connection closed, which means the same, but for a destination that has the whole state: that
        // one waits for the word, and its QEMU may have the disks until then.
        let said = self.channel.say(&FromSource::Abort { reason: reason.clone() });
        let telling = (self.stopped.is_some() && !self.settled).then(|| Farewell {
            channel: said.is_ok().then_some(&mut self.channel),
            way: Way::new(&self.security, &self.record),
            reason,
        });
        let (qmp, record, begun) = (&mut self.qmp, &self.record, self.begun);
        let (gone_on, told) = beside(telling.map(|farewell| move || farewell.say()), |is_told| {
            if begun { go_on(qmp, record.run, is_told) } else { Ok(()) }
        });
        if let Some(Err(trouble)) = told {
            unheard(&trouble, &self.report);
        }
        restore(&mut self.qmp, &self.record, &self.report);
        match gone_on {
            Ok(()) => {
                self.export.stop();
                self.place.remove();
                Failure::AtSource(trouble)
            }
            Err(error) => Failure::Local(Trouble::other(format!(
                "{}; and the guest, which is still here, cannot go on: {}",
                chain(&trouble),
                chain(&error)
            ))),
        }
    }

    fn say(&mut self, message: &FromSource) -> Result<(), Trouble> {
        self.channel.say(message).map_err(lost)
    }

    fn glance(&mut self) -> Result<Option<FromDestination>, Trouble> {
        self.channel.hear(Instant::now()).map_err(lost)
    }
}

fn refused(reason: &str) -> Trouble {
    Trouble::other(format!("the destination refuses: {}", printable(reason)))
}

fn unexpected(message: &FromDestination) -> Trouble {
    Trouble::other(format!("the destination said something out of order: {message:?}"))
}

/// A number that nobody else has.
fn session() -> Result<String, Trouble> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| Trouble::io("no random numbers")(error.into()))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Connects to the destination, which a signal ends.
fn connect(security: &Security, record: &Outgoing, purpose: Purpose, signals: &Signals) -> Result<Channel, Trouble> {
    let (security, to, session) = (security.clone(), record.to.clone(), record.session.clone());
    signals.unless(move || security.connect(&to, &session, purpose))?
}

/// Reaches the destination, and has this host's vmemd serve: the connection, the vmemd, how the destination reaches that, and what is
/// noted of all this.
fn reach(
    args: &Migrate,
    security: &Security,
    memory: &[Memory],
    mut record: Outgoing,
    place: &Place,
    signals: &Signals,
) -> Result<(Channel, Export, String, Outgoing), Trouble> {
    let channel = connect(security, &record, Purpose::Migrate, signals)?;
    let serve = match args.serve {
        Some(address) => address,
        None => stream::own_address(&channel)?,
    };
    let served = record.served.clone();
    let (export, address) = Export::start(memory, served, &record.session, serve, place, args, security)?;
    signals.check()?;
    record.vmemd = export.arguments().to_vec();
    place.write(&record)?;
    let pages = args.pages.clone().unwrap_or_else(|| address.port().to_string());
    Ok((channel, export, pages, record))
}
