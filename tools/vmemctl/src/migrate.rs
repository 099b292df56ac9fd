// SPDX-License-Identifier: GPL-2.0
//! `vmemctl migrate`: the source's side of moving a guest.
//!
//! The guest is on exactly one side at any moment. Until COMMIT is said it is the source's, whatever happens, and goes on here. From then
//! on it is the destination's: it never runs here again unless the destination says that it has not run there and never will. QEMU's own
//! part is arranged so that neither QEMU starts the guest by itself.

pub(crate) mod served;
pub(crate) mod source;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde_json::json;
use vmem_qmp::{Qmp, QmpError};

use crate::channel::{Channel, ChannelError};
use crate::cli::{Cli, DEFAULT_PORT, Migrate};
use crate::daemon::{Duty, end_left_over};
use crate::failure::{Failure, Trouble};
use crate::follow::{Way, again, follow};
use crate::guest::{self, LIMIT, Memory, Settings};
use crate::message::{Backend, FromDestination, FromSource, Purpose};
use crate::network::Security;
use crate::obstacles;
use crate::record::{Outgoing, Phase, Place};
use crate::report::Report;
use served::Served;
use source::Export;
use vmem_cli::{chain, with_port};

/// How long the destination may take to start a QEMU.
pub(crate) const PREPARATION: Duration = Duration::from_secs(120);

/// How long the destination may take to load the guest's state and to run it.
const RESUMPTION: Duration = Duration::from_secs(60);

/// How long the destination is listened to for why it has closed QEMU's stream.
const MOMENT: Duration = Duration::from_millis(500);

/// How long the destination's QEMU may take to give up the guest's disks.
const LOCKS: Duration = Duration::from_secs(20);

/// How long a destination that has heard ABORT may take to end its QEMU and say so.
const FAREWELL: Duration = Duration::from_secs(15);

/// How often the destination is listened to while QEMU is waited for.
const GLANCE: Duration = Duration::from_millis(50);

/// Moves a guest.
pub(crate) fn run(cli: &Cli, args: &Migrate) -> Result<(), Failure> {
    let report = Report::new(cli.json);
    let mut migration = Migration::prepare(cli, args, report)?;
    let ready = match migration.offer() {
        Ok(ready) => ready,
        Err(trouble) => return Err(migration.give_up(trouble)),
    };
    if let Err(trouble) = migration.switch(ready) {
        return Err(migration.give_up(trouble));
    }
    if let Err(failure) = migration.commit() {
        // The guest may need its pages, wherever it is.
        migration.export.leave();
        return Err(failure);
    }
    let Migration {
        mut export,
        channel,
        qmp,
        place,
        mut report,
        record,
        security,
        stopped,
        ..
    } = migration;
    report.running(stopped.map(|stopped| stopped.elapsed()));
    let way = Way::new(&security, &record);
    end(
        follow(&way, channel, &mut export, &mut report),
        Some(qmp),
        args.keep_source,
        &place,
    )
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
    /// QEMU was told to migrate. Before, what it does is not this migration's business.
    begun: bool,
    /// When it was heard that the guest had stopped.
    stopped: Option<Instant>,
    /// The destination has said FAILED: it does not wait for the guest.
    settled: bool,
}

impl Migration {
    /// Everything that changes nothing for the guest.
    fn prepare(cli: &Cli, args: &Migrate, report: Report) -> Result<Self, Trouble> {
        let security = Security::new(cli)?;
        let mut qmp = Qmp::connect(&args.qmp, LIMIT)?;
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
        let place = Place::new(&cli.state, "out", &guest)?;
        let earlier = place.read::<Outgoing>()?;
        if earlier.as_ref().is_some_and(|record| record.phase != Phase::Prepared) {
            return Err(Trouble::other(
                "the guest is on its way to another host: 'vmemctl recover' goes on with that",
            ));
        }
        let before = earlier.as_ref().map(|record| record.session.as_str());
        end_left_over(&place, before, Duty::Serve);
        let session = session()?;
        let to = with_port(&args.to, DEFAULT_PORT);
        let channel = security.connect(&to, &session, Purpose::Migrate)?;
        let serve = match args.serve {
            Some(address) => address,
            None => source::own_address(&channel)?,
        };
        let (export, address) = Export::start(&memory, served.clone(), &session, serve, &place, args, &security)?;
        let pages = args.pages.clone().unwrap_or_else(|| address.port().to_string());
        let record = Outgoing {
            session,
            guest,
            phase: Phase::Prepared,
            qmp: args.qmp.clone(),
            to,
            vmemd: export.arguments().to_vec(),
            served,
            run: status == "running",
            // An earlier try may not have put back what it found.
            settings: earlier.and_then(|record| record.settings),
        };
        place.write(&record)?;
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
            begun: false,
            stopped: None,
            settled: false,
        })
    }

    /// Has the destination prepare for the guest; returns the connection for the guest's state.
    fn offer(&mut self) -> Result<Channel, Trouble> {
        self.say(&FromSource::Offer {
            guest: self.record.guest.clone(),
            memory: self
                .memory
                .iter()
                .enumerate()
                .map(|(number, memory)| Backend {
                    id: memory.id.clone(),
                    bytes: memory.bytes,
                    export: source::export_name(memory, number, &self.record.session),
                })
                .collect(),
            pages: self.pages.clone(),
            release: self.free,
        })?;
        match self.hear(PREPARATION)? {
            FromDestination::Ready => {}
            FromDestination::Failed { reason } | FromDestination::Refuse { reason } => return Err(refused(&reason)),
            other => return Err(unexpected(&other)),
        }
        self.security.connect(&self.record.to, &self.record.session, Purpose::State)
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
        let uri = source::give_stream(&mut self.qmp, state)?;
        self.qmp.run("migrate", json!({"uri": uri}))?;
        self.begun = true;
        let deadline = Instant::now() + self.timeout;
        loop {
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
                format!("; the destination: {}", reason.escape_debug())
            }
            _ => String::new(),
        };
        Ok(Trouble::other(format!("QEMU cannot send the guest's state: {reason}{there}")))
    }

    /// Gives the guest away, and waits until it runs there.
    fn commit(&mut self) -> Result<(), Failure> {
        self.record.phase = Phase::Committed;
        if let Err(error) = self.place.write(&self.record) {
            return Err(self.give_up(error.into()));
        }
        if let Err(error) = self.channel.say(&FromSource::Commit { run: self.record.run }) {
            self.reconnect(&error)?;
        }
        let mut deadline = Instant::now() + RESUMPTION;
        loop {
            match self.channel.hear(deadline) {
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
                Ok(Some(other)) => return Err(Failure::Unknown(unexpected(&other))),
                Ok(None) => return Err(Failure::Unknown(lost(ChannelError::TimedOut(RESUMPTION)))),
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

    /// The connection was lost after COMMIT was said, or tried to be: asks again.
    fn reconnect(&mut self, error: &ChannelError) -> Result<(), Failure> {
        let text = format!("the destination's vmemctl: {}; trying again", chain(error));
        self.report.note(&text);
        let way = Way::new(&self.security, &self.record);
        self.channel = again(&way, &mut self.export, &mut self.report).map_err(Failure::Unknown)?;
        Ok(())
    }

    /// Has the guest go on here.
    fn give_up(&mut self, trouble: Trouble) -> Failure {
        let reason = chain(&trouble);
        // Whoever does not hear it finds the connection closed, which means the same, but for a destination that has the whole state: that
        // one waits for the word.
        let said = self.channel.say(&FromSource::Abort { reason: reason.clone() });
        let gone_on = if self.begun {
            go_on(&mut self.qmp, self.record.run)
        } else {
            Ok(())
        };
        restore(&mut self.qmp, &self.record, &self.report);
        match gone_on {
            Ok(()) => {
                if self.stopped.is_some() && !self.settled && (said.is_err() || !self.is_aborted()) {
                    abort(&Way::new(&self.security, &self.record), reason, &self.report);
                }
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

    /// Whether the destination has given the guest up: a word that was sent need not have been heard.
    fn is_aborted(&mut self) -> bool {
        let deadline = Instant::now() + FAREWELL;
        loop {
            match self.channel.hear(deadline) {
                Ok(Some(FromDestination::Failed { .. })) => return true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn say(&mut self, message: &FromSource) -> Result<(), Trouble> {
        self.channel.say(message).map_err(lost)
    }

    fn hear(&mut self, limit: Duration) -> Result<FromDestination, Trouble> {
        self.channel.hear_within(limit).map_err(lost)
    }

    fn glance(&mut self) -> Result<Option<FromDestination>, Trouble> {
        self.channel.hear(Instant::now()).map_err(lost)
    }
}

/// The destination has said FAILED: notes that the guest is this host's again. Only then the destination may forget it.
pub(crate) fn take_back(record: &mut Outgoing, place: &Place) -> Result<(), Trouble> {
    record.phase = Phase::Prepared;
    Ok(place.write(record)?)
}

/// Tells a destination that it does not get the guest, if it can be told.
pub(crate) fn abort(way: &Way<'_>, reason: String, report: &Report) {
    if let Err(trouble) = way.abort(reason) {
        report.note(&format!(
            "the destination does not hear that the guest goes on here ({}); if its vmemctl waits for it, end that one and its QEMU",
            chain(&trouble)
        ));
    }
}

/// Cancels what QEMU may be doing, and has the guest run if it did.
pub(crate) fn go_on(qmp: &mut Qmp, runs: bool) -> Result<(), Trouble> {
    // It fails if nothing is going on.
    let _ = qmp.run("migrate_cancel", json!({}));
    let deadline = Instant::now() + LIMIT;
    loop {
        let (migration, _) = guest::migration(qmp)?;
        if matches!(migration.as_str(), "none" | "completed" | "failed" | "cancelled") {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Trouble::other(format!("QEMU's migration stays {migration}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let until = Instant::now() + LOCKS;
    while runs && guest::status(qmp)? != "running" {
        match qmp.run("cont", json!({})) {
            Err(QmpError::Refused { .. }) if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
            result => drop(result?),
        }
    }
    Ok(())
}

/// Puts QEMU's settings back. If that fails, the guest is none the worse.
pub(crate) fn restore(qmp: &mut Qmp, record: &Outgoing, report: &Report) {
    let restored = record.settings.as_ref().map(|settings| settings.restore(qmp));
    if let Some(Err(error)) = restored {
        report.note(&format!("QEMU keeps the settings of this migration: {}", chain(&error)));
    }
}

fn lost(error: ChannelError) -> Trouble {
    Trouble::Peer("the destination's vmemctl".to_owned(), error)
}

fn refused(reason: &str) -> Trouble {
    Trouble::other(format!("the destination refuses: {}", reason.escape_debug()))
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
