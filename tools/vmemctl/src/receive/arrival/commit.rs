// SPDX-License-Identifier: GPL-2.0
//! The moment in which the guest becomes this host's.

use std::time::{Duration, Instant};

use serde_json::json;
use socket2::Socket;
use vmem_cli::chain;
use vmem_migrate::Phase;
use vmem_qmp::QmpError;

use super::Arrival;
use crate::channel::Channel;
use crate::failure::Trouble;
use crate::guest::{self, GuestError, LIMIT};
use crate::message::{FromDestination, FromSource};
use crate::printable::printable;
use crate::receive::door::{Door, Visitor};
use crate::receive::monitor::Wait;
use crate::record::Incoming;
use crate::relay::{End, relay};
use crate::report::Report;

/// How often everything is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// How often QEMU is told to start the guest. Each time it is asked whether it has done so.
const TRIES: u32 = 5;

/// How long a QEMU that has closed its socket may take to exit.
const EXIT: Duration = Duration::from_secs(2);

/// How it ended without the guest running here.
#[derive(Debug)]
pub(in crate::receive) enum Ended {
    /// The source has not given it away.
    BeforeCommit(Trouble),
    /// The source has given it away, and has to hear that it can have it back.
    AfterCommit(Trouble),
    /// It was started, or may have been, and its QEMU is gone.
    Gone(Trouble),
    /// It may run here.
    Unknown(Trouble),
}

impl Arrival {
    /// Waits until the guest is this host's, and has it run.
    pub(in crate::receive) fn wait_for_commit(&mut self, door: &mut Door, report: &mut Report) -> Result<(), Ended> {
        while self.record.phase == Phase::Prepared {
            if let Err(stopped) = self.signals.check() {
                return Err(self.interrupt(stopped.into(), report));
            }
            if let Err(trouble) = self.wait_for_word(door, report) {
                return Err(self.judge(trouble, report));
            }
        }
        self.finish(report)
    }

    /// The guest is this host's: has it run.
    pub(super) fn finish(&mut self, report: &Report) -> Result<(), Ended> {
        self.pages.keep();
        let result = self.wait_for_state(report).and_then(|()| self.go(report));
        result.map_err(|trouble| match self.signals.check() {
            // The guest is this host's, and is left as it is. If QEMU is gone, that has to be said nevertheless.
            Err(stopped) if !self.monitor.is_gone_within(Duration::ZERO) => Ended::Unknown(stopped.into()),
            _ => self.judge(trouble, report),
        })
    }

    /// A signal has come, and the guest is not known to be this host's: the source goes on with it. But if the source is not there, it
    /// may have given the guest away: then that stays ready and paused.
    fn interrupt(&mut self, trouble: Trouble, report: &Report) -> Ended {
        if self.channel.is_some() {
            self.judge(trouble, report)
        } else {
            Ended::Unknown(trouble)
        }
    }

    /// What it means that the guest does not come: the source may have said COMMIT once QEMU has the state.
    pub(super) fn judge(&mut self, trouble: Trouble, report: &Report) -> Ended {
        let trouble = self.qemu.explain(trouble);
        let prepared = self.record.phase == Phase::Prepared;
        if self.aborted || (prepared && !self.has_state(report)) {
            Ended::BeforeCommit(trouble)
        } else if self.never_ran(report) {
            Ended::AfterCommit(trouble)
        } else if self.record.phase >= Phase::Starting && self.monitor.is_gone_within(EXIT) {
            Ended::Gone(trouble)
        } else {
            Ended::Unknown(trouble)
        }
    }

    /// Does what the source, or QEMU, wants next.
    fn wait_for_word(&mut self, door: &mut Door, report: &Report) -> Result<(), Trouble> {
        let limit = if self.channel.is_some() { Duration::ZERO } else { GLANCE };
        match door.wait_for(limit) {
            Some(Visitor::State(channel)) => self.connect_state(channel)?,
            Some(Visitor::Recover(channel)) => {
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
                self.note(Incoming {
                    phase: Phase::Committed,
                    run,
                    ..self.record.clone()
                })?;
            }
            Ok(Some(FromSource::Abort { reason })) => {
                self.aborted = true;
                return Err(Trouble::other(format!(
                    "the source has changed its mind: {}",
                    printable(&reason)
                )));
            }
            Ok(Some(other)) => return Err(Trouble::other(format!("the source said something out of order: {other:?}"))),
            Err(error) => {
                let trouble = Trouble::Peer("the source's vmemctl".to_owned(), error);
                if !self.has_state(report) {
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
        let qemu = self.state.take();
        let qemu = qemu.ok_or_else(|| Trouble::other("the source sends the guest's state a second time"))?;
        let failed = || Trouble::io("no way for the guest's state");
        let (network, early) = channel.into_parts();
        self.relay = Some(relay(End::Destination, Socket::from(qemu), network, early).map_err(failed())?);
        Ok(())
    }

    /// Whether the source's QEMU may have heard that this one has all of the state; only then the source can have said COMMIT. Nothing
    /// more comes from now on.
    fn has_state(&mut self, report: &Report) -> bool {
        match &self.relay {
            Some(relay) => {
                relay.cut();
                relay.has_loaded()
            }
            // What came to an earlier `receive` nobody has seen, and nothing comes any more. Only a QEMU that no state has come to yet
            // cannot have said the word; one that is gone, or waits for a page, may have.
            None => {
                let state = |(status, _): &(String, _)| !matches!(status.as_str(), "none" | "setup");
                self.resumed
                    && self
                        .monitor
                        .ask_briefly(report, guest::migration)
                        .as_ref()
                        .map_or(true, state)
            }
        }
    }

    /// Waits until QEMU has the guest's state. Loading it touches the guest's memory, so this takes as long as pages come.
    fn wait_for_state(&mut self, report: &Report) -> Result<(), Trouble> {
        let regions = self.monitor.regions().clone();
        let mut wait = Wait::new(&regions, LIMIT);
        loop {
            let (status, reason) = self.monitor.ask(report, guest::migration)?;
            match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "none" | "cancelled" => {
                    let reason = reason.unwrap_or_else(|| self.qemu.last_words());
                    return Err(Trouble::other(format!("QEMU cannot load the guest's state: {reason}")));
                }
                _ => {}
            }
            if !wait.goes_on() {
                return Err(Trouble::other("QEMU does not come to an end with the guest's state"));
            }
            // That the connection is closed is found by whoever asks next.
            let _ = self.monitor.event(Instant::now() + Duration::from_millis(5));
        }
    }

    /// The guest runs here.
    fn go(&mut self, report: &Report) -> Result<(), Trouble> {
        if self.record.phase != Phase::Running {
            self.start(report)?;
            let running = Incoming {
                phase: Phase::Running,
                ..self.record.clone()
            };
            if let Err(trouble) = self.note(running) {
                // `starting` says nearly the same.
                report.note(&chain(&trouble));
            }
        }
        // If the source does not hear it, it asks.
        let _ = self.say(&FromDestination::Running);
        self.pages.release();
        Ok(())
    }

    /// Has QEMU start the guest, if it shall run. That is noted first: a QEMU that dies may have run the guest for a moment, and written
    /// to its disks, whether it has answered or not.
    fn start(&mut self, report: &Report) -> Result<(), Trouble> {
        let runs = |status: &str| status == "running";
        let wanted = self.record.run && !runs(&self.monitor.ask(report, guest::status)?);
        let before = self.record.clone();
        self.note(Incoming {
            phase: Phase::Starting,
            ..before.clone()
        })?;
        if !wanted {
            return Ok(());
        }
        let mut tries = 1..=TRIES;
        loop {
            let first = tries.next() == Some(1);
            let error = match self.monitor.once(|qmp| Ok(qmp.run("cont", json!({}))?)) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if first && matches!(error, GuestError::Qmp(QmpError::Refused { .. })) {
                // The only answer that says that it has not been started: not this time.
                self.note(before)?;
                return Err(error.into());
            }
            // QEMU has not answered in time, and may still start the guest: it says how the guest is after that, and not before.
            if runs(&self.monitor.ask(report, guest::status)?) {
                return Ok(());
            }
            if tries.is_empty() {
                return Err(error.into());
            }
        }
    }

    /// Whether it is certain that QEMU has not run the guest, and cannot any more.
    fn never_ran(&mut self, report: &Report) -> bool {
        if self.record.phase >= Phase::Starting {
            return false;
        }
        // If it has ended: `cont` would have been noted.
        if self.monitor.is_gone_within(Duration::ZERO) {
            return true;
        }
        match self.monitor.ask_briefly(report, guest::status) {
            Ok(status) => matches!(status.as_str(), "inmigrate" | "paused" | "prelaunch") && self.end_qemu(),
            Err(_) => self.monitor.is_gone_within(EXIT),
        }
    }

    /// Replaces what is noted. If that fails, it has not become true.
    pub(super) fn note(&mut self, record: Incoming) -> Result<(), Trouble> {
        self.place.write(&record)?;
        self.record = record;
        Ok(())
    }
}
