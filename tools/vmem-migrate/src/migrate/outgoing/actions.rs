// SPDX-License-Identifier: GPL-2.0-or-later
//! Executes each action of the source's state machine.

use crate::Phase;
use crate::source::{Action, Event, State};
use serde_json::json;
use vmem_cli::chain;
use vmem_qemu::migration::Settings;
use vmem_qemu::{guest, migration};

use super::{OutgoingMigration, PREPARATION, RESUMPTION, RETRY, within};
use crate::channel::ChannelError;
use crate::daemon::end_leftovers;
use crate::endpoint::{Endpoint, lost};
use crate::error::Cause;
use crate::message::{FromSource, Purpose};
use crate::migrate::back::{Farewell, beside, restore, resume_guest};
use crate::migrate::stream;
use crate::page_server::PageServer;

impl OutgoingMigration {
    /// Executes these actions. The last one may return an event.
    pub(super) fn carry_out(&mut self, due: &[Action]) -> Option<Event> {
        due.iter().fold(None, |_, action| self.carry_out_one(*action))
    }

    fn carry_out_one(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Copy => self.copy(),
            Action::SendState => self.send_state().err().map(|cause| self.fail(cause)),
            Action::Save => self.save().err().map(|cause| self.fail(cause)),
            Action::Start => self.start().err().map(|cause| self.fail(cause)),
            Action::RecordCommitted => Some(self.control.gate().commit(|| {
                let event = self.record_committed();
                (event, event == Event::Recorded)
            })),
            Action::RecordPrepared => Some(self.control.gate().commit(|| (self.record_phase(Phase::Prepared), false))),
            Action::RecordComplete => Some(self.record_phase(Phase::Complete)),
            Action::RecordRunning => {
                self.announce();
                // If this cannot be recorded, `recover` asks the destination.
                let _ = self.record_phase(Phase::Running);
                None
            }
            Action::Commit => {
                let run = self.record.run;
                self.deadline = within(RESUMPTION);
                self.send(&FromSource::Commit { run })
                    .err()
                    .map(|error| self.disconnected(error))
            }
            Action::Reconnect => self.reconnect(),
            Action::Heard => {
                // If the destination does not receive HEARD, it continues to send its final message.
                if self.send(&FromSource::Heard).is_err() && self.resumed && self.owner.state() == State::Moved {
                    let _ = Endpoint::new(&self.security, &self.record).send_heard();
                }
                None
            }
            Action::Abort => {
                self.abort();
                None
            }
            Action::ResumeGuest => Some(self.resume_guest()),
            Action::Serve => {
                self.export = PageServer::again(
                    &self.record.vmemd,
                    self.record.served.clone(),
                    &self.record.session,
                    &self.state_dir,
                );
                None
            }
            Action::Release => {
                self.export.release();
                None
            }
            Action::StopServing => {
                self.export.stop();
                if self.resumed {
                    end_leftovers(&self.state_dir);
                }
                None
            }
            Action::LeaveServing => {
                if !self.export.leave() {
                    self.report
                        .note("no vmemd serves the guest's pages: 'vmemctl recover' starts one");
                }
                None
            }
            Action::EndQemu => {
                self.end_qemu();
                None
            }
            Action::Forget => {
                self.state_dir.remove();
                None
            }
        }
    }

    pub(super) fn send(&self, message: &FromSource) -> Result<(), ChannelError> {
        self.channel
            .as_ref()
            .map_or(Err(ChannelError::Closed), |channel| channel.send(message))
    }

    /// Records `phase`. If that fails, the phase in memory stays as it was.
    fn record_phase(&mut self, phase: Phase) -> Event {
        let Err(error) = self.state_dir.write_phase(&mut self.record, phase) else {
            return Event::Recorded;
        };
        self.report.note(&chain(&error));
        self.cause.get_or_insert(error.into());
        Event::NotRecorded
    }

    /// Records that the destination owns the guest, unless a signal has arrived: then the source keeps it.
    fn record_committed(&mut self) -> Event {
        match self.signals.check() {
            Ok(()) => self.record_phase(Phase::Committed),
            Err(stopped) => {
                self.cause = Some(stopped.into());
                Event::NotRecorded
            }
        }
    }

    /// Has QEMU send the guest's state over a connection of its own.
    fn send_state(&mut self) -> Result<(), Cause> {
        let state = Endpoint::new(&self.security, &self.record).connect(Purpose::State, &self.signals)?;
        // Another client of QEMU may have moved the guest meanwhile.
        let status = guest::status(self.qmp()?)?;
        let expected = if self.record.run { "running" } else { "paused" };
        let (migration, _) = migration::status(self.qmp()?)?;
        if status != expected || matches!(migration.as_str(), "setup" | "active" | "device") {
            return Err(Cause::Status { status });
        }
        let capabilities = ["events", "return-path", "x-ignore-shared", "pause-before-switchover"];
        let settings = match self.record.settings.take() {
            Some(earlier) => earlier,
            None => Settings::of(self.qmp()?, &capabilities)?,
        };
        self.record.settings = Some(settings.clone());
        self.state_dir.write(&self.record)?;
        settings.change(self.qmp()?)?;
        let (uri, relay) = stream::give(self.qmp()?, state)?;
        self.stream = Some(relay);
        let begun = self.qmp()?.execute("migrate", json!({"uri": uri}));
        // A QEMU that does not answer may have begun to migrate.
        self.begun = !matches!(begun, Err(vmem_qemu::Error::Refused { .. }));
        begun?;
        self.deadline = within(self.timeout);
        Ok(())
    }

    /// Has QEMU save the guest's devices. The relay keeps what QEMU writes: the destination's QEMU would otherwise load a state, and need
    /// pages, before START. Until `migrate-continue`, QEMU writes no state of devices.
    fn save(&mut self) -> Result<(), Cause> {
        self.stream()?.hold();
        self.qmp()?.execute("migrate-continue", json!({"state": "pre-switchover"}))?;
        Ok(())
    }

    /// Sends START: QEMU has saved all devices, so pages may be fetched. Then lets the kept state through, unless all pages must be there
    /// first.
    fn start(&mut self) -> Result<(), Cause> {
        self.send(&FromSource::Start).map_err(lost)?;
        self.let_state_through()
    }

    fn reconnect(&mut self) -> Option<Event> {
        let endpoint = Endpoint::new(&self.security, &self.record);
        match endpoint.reconnect(self.retry, &mut self.export, &self.report, &self.signals) {
            Ok(channel) => {
                if self.announced {
                    self.report.note("the destination's vmemctl is back");
                }
                let limit = if self.resumed { PREPARATION } else { RESUMPTION };
                self.deadline = if self.announced { None } else { within(limit) };
                self.retry = RETRY;
                self.channel = Some(channel);
                self.cause = None;
                None
            }
            Err(cause) => Some(match self.fail(cause) {
                Event::Signal => Event::Signal,
                _ => Event::Unreachable,
            }),
        }
    }

    /// Sends ABORT. A destination that does not receive it finds the connection closed. For most destinations that means the same. A
    /// destination that may have the whole state waits for ABORT instead, and its QEMU may hold the disks until then, so ABORT is repeated
    /// to such a one.
    fn abort(&mut self) {
        let reason = match &self.cause {
            None => "the guest goes on at the source".to_owned(),
            Some(cause) => chain(cause),
        };
        if self.cause.as_ref().is_some_and(Cause::is_signal) {
            self.report.note(&format!("{reason}: giving the move up"));
        }
        if self.send(&FromSource::Abort { reason: reason.clone() }).is_err() {
            self.channel = None;
        }
        self.farewell = (self.stopped.is_some() || self.resumed).then_some(reason);
    }

    /// Continues the guest here. ABORT is sent in a thread beside it, as long as that takes.
    fn resume_guest(&mut self) -> Event {
        if let Some(cause) = self.cause.as_ref().filter(|_| self.resumed) {
            self.report.note(&chain(cause));
        }
        let endpoint = Endpoint::new(&self.security, &self.record);
        let farewell = self.farewell.take().map(|reason| Farewell {
            channel: self.channel.as_mut(),
            endpoint,
            reason,
        });
        let (qmp, run, begun) = (&mut self.qmp, self.record.run, self.begun || self.resumed);
        let (gone_on, told) = beside(farewell.map(|farewell| move || farewell.send()), |is_told| match qmp {
            Err(cause) => Err(Cause::other(chain(cause))),
            Ok(qmp) if begun => resume_guest(qmp, run, is_told),
            Ok(_) => Ok(()),
        });
        if let Some(Err(cause)) = told {
            self.report.note(&format!(
                "the destination does not hear that the guest goes on here ({}); if its vmemctl waits for it, end that one and its QEMU",
                chain(&cause)
            ));
        }
        if let Ok(qmp) = &mut self.qmp {
            restore(qmp, &self.record, &self.report);
        }
        let Err(error) = gone_on else { return Event::Resumed };
        self.cause = Some(match self.cause.take() {
            Some(cause) => Cause::other(format!(
                "{}; the guest is still at the source, and QEMU cannot continue it: {}",
                chain(&cause),
                chain(&error)
            )),
            None => error,
        });
        Event::NotResumed
    }

    /// Ends QEMU, which is not needed any more. It may have been ended by hand. If its guest runs or is paused, the guest does not belong
    /// to this move: it was started later or by hand, so QEMU is left running.
    fn end_qemu(&mut self) {
        if self.keep_source {
            return;
        }
        let Ok(qmp) = &mut self.qmp else { return };
        match guest::status(qmp) {
            Ok(status) if matches!(status.as_str(), "running" | "paused") => {
                self.report
                    .note(&format!("the source's QEMU is {status}, and is left as it is"));
            }
            Ok(_) => drop(qmp.execute("quit", json!({}))),
            Err(_) => {}
        }
    }
}
