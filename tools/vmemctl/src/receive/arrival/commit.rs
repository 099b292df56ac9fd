// SPDX-License-Identifier: GPL-2.0
//! The moment in which the guest becomes this host's.

use std::time::{Duration, Instant};

use serde_json::json;
use socket2::Socket;
use vmem_cli::chain;
use vmem_qmp::QmpError;

use super::Arrival;
use crate::channel::Channel;
use crate::failure::Trouble;
use crate::guest::{self, GuestError, LIMIT};
use crate::message::{FromDestination, FromSource, Purpose};
use crate::receive::GLANCE;
use crate::receive::door::{Door, Visitor};
use crate::record::{Incoming, Phase};
use crate::relay::{End, relay};
use crate::report::Report;

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
            if let Err(trouble) = self.wait_for_word(door, report) {
                return Err(self.judge(trouble));
            }
        }
        self.finish(report)
    }

    /// The guest is this host's: has it run.
    pub(super) fn finish(&mut self, report: &Report) -> Result<(), Ended> {
        let result = self.wait_for_state().and_then(|()| self.go(report));
        result.map_err(|trouble| self.judge(trouble))
    }

    /// What it means that the guest does not come: the source may have said COMMIT once QEMU has the state.
    pub(super) fn judge(&mut self, trouble: Trouble) -> Ended {
        let prepared = self.record.phase == Phase::Prepared;
        if self.aborted || (prepared && !self.has_state()) {
            Ended::BeforeCommit(trouble)
        } else if self.never_ran() {
            Ended::AfterCommit(trouble)
        } else if self.record.phase >= Phase::Starting && self.is_gone() {
            Ended::Gone(trouble)
        } else {
            Ended::Unknown(trouble)
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
        let qemu = self.state.take();
        let qemu = qemu.ok_or_else(|| Trouble::other("the source sends the guest's state a second time"))?;
        let failed = || Trouble::io("no way for the guest's state");
        let (network, early) = channel.into_parts();
        self.relay = Some(relay(End::Destination, Socket::from(qemu), network, early).map_err(failed())?);
        Ok(())
    }

    /// Whether the source's QEMU may have heard that this one has all of the state; only then the source can have said COMMIT. Nothing
    /// more comes from now on.
    fn has_state(&mut self) -> bool {
        match &self.relay {
            Some(relay) => {
                relay.cut();
                relay.has_loaded()
            }
            // What came to an earlier `receive` nobody has seen, and nothing comes any more. Only a QEMU that no state has come to yet
            // cannot have said the word; one that is gone, or waits for a page, may have.
            None => {
                let state = |(status, _): &(String, _)| !matches!(status.as_str(), "none" | "setup");
                self.resumed && guest::migration(&mut self.qmp).as_ref().map_or(true, state)
            }
        }
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
    fn go(&mut self, report: &Report) -> Result<(), Trouble> {
        if self.record.phase != Phase::Running {
            self.start()?;
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
        if let Some(settings) = self.record.settings.take() {
            // Whoever saves this guest to a file next would miss its memory. If it fails, the guest is none the worse.
            let _ = settings.restore(&mut self.qmp);
        }
        Ok(())
    }

    /// Has QEMU start the guest, if it shall run. That is noted first: a QEMU that dies may have run the guest for a moment, and written
    /// to its disks, whether it has answered or not.
    fn start(&mut self) -> Result<(), Trouble> {
        let wanted = self.record.run && guest::status(&mut self.qmp)? != "running";
        let before = self.record.clone();
        self.note(Incoming {
            phase: Phase::Starting,
            ..before.clone()
        })?;
        if !wanted {
            return Ok(());
        }
        let result = self.qmp.run("cont", json!({}));
        if let Err(QmpError::Refused { .. }) = result {
            // The only answer that says that it has not been started: not this time.
            self.note(before)?;
        }
        result?;
        Ok(())
    }

    /// Whether it is certain that QEMU has not run the guest, and cannot any more.
    fn never_ran(&mut self) -> bool {
        if self.record.phase >= Phase::Starting {
            return false;
        }
        match guest::status(&mut self.qmp) {
            Ok(status) => matches!(status.as_str(), "inmigrate" | "paused" | "prelaunch") && self.end_qemu(),
            // It has ended, and `cont` would have been noted.
            Err(GuestError::Qmp(QmpError::Closed)) => true,
            Err(_) => false,
        }
    }

    fn is_gone(&mut self) -> bool {
        matches!(guest::status(&mut self.qmp), Err(GuestError::Qmp(QmpError::Closed)))
    }

    /// Replaces what is noted. If that fails, it has not become true.
    pub(super) fn note(&mut self, record: Incoming) -> Result<(), Trouble> {
        self.place.write(&record)?;
        self.record = record;
        Ok(())
    }
}
