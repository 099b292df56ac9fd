// SPDX-License-Identifier: GPL-2.0-or-later
//! Executes the actions of the destination's state machine until the guest runs here, and reports the resulting events to the machine.

use std::time::{Duration, Instant};

use crate::Phase;
use crate::destination::{Action, Event, State};
use serde_json::json;
use socket2::Socket;
use vmem_cli::chain;
use vmem_control::Event as DaemonReport;
use vmem_process::printable;
use vmem_qemu::{COMMAND_LIMIT, guest, migration};

use super::IncomingMigration;
use crate::channel::{Channel, ChannelError};
use crate::error::Cause;
use crate::message::{FromDestination, FromSource};
use crate::receive::host;
use crate::receive::listener::{IncomingConnection, Listener};
use crate::receive::monitor::Wait;
use crate::receive::offer::Fetching;
use crate::receive::page_fetcher::line;
use crate::relay::{End, relay};
use crate::report::Report;

/// The run state of a running guest in QEMU.
const RUNNING: &str = "running";

/// How often the loops of this file poll.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How many times QEMU is told to start the guest. After each failed attempt, QEMU is asked whether the guest runs.
const TRIES: u32 = 5;

/// How long QEMU may take to exit after it has closed its socket.
const EXIT: Duration = Duration::from_secs(2);

impl IncomingMigration {
    /// Executes the actions that are due, and continues until the guest runs here, its final message is due, or the machine is in an end
    /// state.
    pub(in crate::receive) fn run(&mut self, listener: &mut Listener, report: &Report) {
        let answer = self.carry_out(self.due, report);
        self.run_after(answer, listener, report);
    }

    /// Sends READY to the source. If that fails, the move is undone here.
    pub(super) fn send_ready(&mut self, report: &Report) -> Result<(), Cause> {
        let Fetching { rounds, verify } = self.fetching;
        let Err(error) = self.send(&FromDestination::Ready { rounds, verify }) else {
            return Ok(());
        };
        self.cause = Some(Cause::Peer("the source's vmemctl".to_owned(), error));
        let mut next = Some(Event::Lost);
        while let Some(event) = next {
            next = self.owner.on(event).ok().and_then(|due| self.carry_out(due, report));
        }
        Err(self.cause())
    }

    /// Continues with `event`.
    pub(super) fn run_after(&mut self, event: Option<Event>, listener: &mut Listener, report: &Report) {
        let mut next = event;
        while next.is_some() || matches!(self.owner.state(), State::Prepared | State::Orphaned) {
            let event = match next.take() {
                Some(event) => event,
                None => self.wait(listener, report),
            };
            next = match self.owner.on(event) {
                Ok(due) => {
                    tracing::debug!("{event:?}: {:?}, {due:?}", self.owner.state());
                    self.carry_out(due, report)
                }
                Err(error) => {
                    report.note(&chain(&error));
                    return;
                }
            };
        }
    }

    /// Takes the reason why the guest does not run here.
    pub(in crate::receive) fn cause(&mut self) -> Cause {
        let cause = self.cause.take();
        cause.unwrap_or_else(|| Cause::other("the reason is not known"))
    }

    /// Stores why the move does not continue, and returns the event for it.
    fn fail(&mut self, cause: Cause) -> Event {
        let event = if cause.is_signal() { Event::Signal } else { Event::Trouble };
        self.cause = Some(cause);
        event
    }

    /// As [`fail`](Self::fail), but returns `event` for everything except a signal. A signal also ends the wait for QEMU, so it is checked
    /// first.
    fn fail_as(&mut self, event: Event, cause: Cause) -> Event {
        let stopped = self.signals.check().err();
        let is_signal = stopped.is_some();
        self.cause = Some(stopped.map_or(cause, Cause::from));
        if is_signal { Event::Signal } else { event }
    }

    /// Waits for the next event of the source or of QEMU.
    fn wait(&mut self, listener: &mut Listener, report: &Report) -> Event {
        loop {
            if let Err(stopped) = self.signals.check() {
                return self.fail(stopped.into());
            }
            let limit = if self.channel.is_some() {
                Duration::ZERO
            } else {
                POLL_INTERVAL
            };
            match listener.wait_for(limit) {
                Some(IncomingConnection::State(channel)) if self.owner.state() == State::Prepared => {
                    if let Err(cause) = self.connect_state(channel) {
                        return self.fail(cause);
                    }
                }
                Some(IncomingConnection::Recover(channel)) => {
                    report.note("the source is back");
                    self.channel = Some(channel);
                    self.cause = None;
                    return Event::Back;
                }
                _ => {}
            }
            if let Some(event) = self.poll_source() {
                return event;
            }
        }
    }

    fn poll_source(&mut self) -> Option<Event> {
        let channel = self.channel.as_mut()?;
        // The state connection arrives through the listener, so the listener must be polled again soon while it is awaited.
        let limit = if self.relay.is_some() {
            POLL_INTERVAL
        } else {
            Duration::from_millis(2)
        };
        match channel.recv(Instant::now() + limit) {
            Ok(None) if self.qemu.has_failed() => Some(self.fail(Cause::other("QEMU cannot load the guest's state"))),
            Ok(None) => match self.pages.reports() {
                Ok(reports) => {
                    self.forward(&reports);
                    None
                }
                Err(cause) => Some(self.fail(cause)),
            },
            Ok(Some(FromSource::Start)) => Some(Event::Start),
            Ok(Some(FromSource::Commit { run })) => {
                self.record.run = run;
                Some(Event::Commit)
            }
            Ok(Some(FromSource::Abort { reason })) => {
                let what = format!("the source has aborted the move: {}", printable(&reason));
                self.cause = Some(Cause::other(what));
                if self.qemu.has_failed() {
                    self.explain();
                }
                Some(Event::Abort)
            }
            Ok(Some(other)) => {
                let what = format!("the source has sent a message out of order: {other:?}");
                Some(self.fail(Cause::other(what)))
            }
            Err(error) => {
                self.cause = Some(Cause::Peer("the source's vmemctl".to_owned(), error));
                self.channel = None;
                Some(Event::Lost)
            }
        }
    }

    /// Tells a source that may wait for all pages how far they are, and what a comparison of them has found.
    fn forward(&self, reports: &[DaemonReport]) {
        if self.fetching == Fetching::default() {
            return;
        }
        for report in reports {
            // A source that does not receive it notices that the connection is lost.
            let _ = self.send(&FromDestination::Pages { line: line(report) });
        }
    }

    /// Executes these actions. The last one may return an event.
    fn carry_out(&mut self, due: &[Action], report: &Report) -> Option<Event> {
        due.iter().fold(None, |_, action| self.carry_out_one(*action, report))
    }

    fn carry_out_one(&mut self, action: Action, report: &Report) -> Option<Event> {
        match action {
            Action::RecordCommitted => return Some(self.record_phase(Phase::Committed, report)),
            Action::RecordStarting => return Some(self.record_phase(Phase::Starting, report)),
            Action::RecordFailed => {
                self.record.reason = self.cause.as_ref().map(|cause| chain(cause));
                // If this cannot be recorded, the source can receive FAILED only while this process lives.
                return Some(self.record_phase(Phase::Failed, report));
            }
            Action::CutState => return Some(self.cut_state(report)),
            Action::AwaitState => return Some(self.await_state(report)),
            Action::ContinueGuest => return Some(self.continue_guest(report)),
            Action::EndUnstartedQemu => return Some(self.end_unstarted_qemu(report)),
            Action::LookAtQemu => return Some(self.check_qemu()),
            Action::RecordRunning => drop(self.record_phase(Phase::Running, report)),
            Action::StartPages => self.pages.start(),
            Action::KeepPages => self.pages.keep(),
            Action::StopPages => self.pages.stop(),
            Action::LeavePages => self.pages.leave(),
            Action::Release => self.pages.release(),
            // If the source does not receive RUNNING, it asks by sending COMMIT again.
            Action::SayRunning => drop(self.send(&FromDestination::Running)),
            Action::EndQemu => drop(self.end_qemu()),
            Action::SayFailed if self.owner.state() == State::Refused => {
                let reason = self.cause.as_ref().map(|cause| chain(cause)).unwrap_or_default();
                // If the source does not receive FAILED, it finds the connection closed.
                let _ = self.send(&FromDestination::Failed { reason });
            }
            // `FinalMessage` sends these messages until the source confirms them. `running::supervise` does what follows the guest's start.
            Action::SayFailed | Action::SayGone | Action::SayComplete | Action::RecordComplete => {}
            Action::Forget => self.state_dir.remove(),
        }
        None
    }

    fn send(&self, message: &FromDestination) -> Result<(), ChannelError> {
        self.channel.as_ref().map_or(Ok(()), |channel| channel.send(message))
    }

    /// Relays the state connection to QEMU.
    fn connect_state(&mut self, channel: Channel) -> Result<(), Cause> {
        let qemu = self.state.take();
        let qemu = qemu.ok_or_else(|| Cause::other("the source sends the guest's state a second time"))?;
        let failed = || Cause::call("cannot relay the guest's state to QEMU");
        let (network, early) = channel.into_parts();
        self.relay = Some(relay(End::Destination, Socket::from(qemu), network, early).map_err(failed())?);
        Ok(())
    }

    /// Cuts the state connection in both directions. Returns whether this host's QEMU may have told the source's QEMU that it has loaded
    /// the whole state. Only then can the source have sent COMMIT.
    fn cut_state(&mut self, report: &Report) -> Event {
        let may_have = match &self.relay {
            Some(relay) => {
                relay.cut();
                relay.has_loaded()
            }
            // An earlier `receive` relayed the state, and nothing arrives any more. This process has not seen what QEMU answered. Only a
            // QEMU that has not begun to load cannot have reported the end. A QEMU that has ended, or that waits for a page, may have.
            None => {
                let has_some = |(status, _): &(String, _)| !matches!(status.as_str(), "none" | "setup");
                let asked = self.resumed.then(|| self.monitor.ask_briefly(report, migration::status));
                asked.is_some_and(|asked| asked.as_ref().map_or(true, has_some))
            }
        };
        if !may_have {
            if self.owner.state() == State::Failing {
                self.explain();
            }
            return Event::HasNotLoaded;
        }
        if self.owner.state() == State::Judging {
            let why = self.cause.as_ref().map(|cause| chain(cause)).unwrap_or_default();
            report.note(&format!(
                "{why}; the guest may be this host's: it stays ready and paused until the source says so ('vmemctl recover')"
            ));
        }
        Event::MayHaveLoaded
    }

    /// Adds QEMU's own messages to the stored reason, if QEMU has failed.
    fn explain(&mut self) {
        if let Some(cause) = self.cause.take() {
            self.cause = Some(host::explain_failure(cause, &mut self.qemu));
        }
    }

    fn await_state(&mut self, report: &Report) -> Event {
        let runs = self
            .wait_for_state(report)
            .and_then(|()| Ok(self.monitor.ask(report, guest::status)? == RUNNING));
        match runs {
            Ok(runs) => {
                self.is_to_be_started = self.record.run && !runs;
                Event::Loaded
            }
            Err(cause) => self.fail_as(Event::NotLoaded, cause),
        }
    }

    /// Waits until QEMU has loaded the guest's state. Loading touches the guest's memory, so this waits as long as pages arrive.
    fn wait_for_state(&mut self, report: &Report) -> Result<(), Cause> {
        let regions = self.monitor.regions().clone();
        let mut wait = Wait::new(&regions, COMMAND_LIMIT);
        loop {
            let (status, reason) = self.monitor.ask(report, migration::status)?;
            match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "none" | "cancelled" => {
                    let reason = reason.unwrap_or_else(|| self.qemu.last_words());
                    return Err(Cause::other(format!("QEMU cannot load the guest's state: {reason}")));
                }
                _ => {}
            }
            if !wait.goes_on() {
                return Err(Cause::other(
                    "QEMU has not loaded the guest's state, and no more pages arrive",
                ));
            }
            // A closed connection is found by the next query.
            let _ = self.monitor.event(Instant::now() + Duration::from_millis(5));
        }
    }

    /// Has QEMU run the guest, if the guest ran at the source.
    fn continue_guest(&mut self, report: &Report) -> Event {
        if !self.is_to_be_started {
            return Event::Continued;
        }
        let mut tries = 1..=TRIES;
        loop {
            let first = tries.next() == Some(1);
            let error = match self.monitor.once(|qmp| qmp.execute("cont", json!({}))) {
                Ok(_) => return Event::Continued,
                Err(error) => error,
            };
            if first && matches!(error, vmem_qemu::Error::Refused { .. }) {
                // Only a refusal of the first `cont` proves that QEMU has not started the guest.
                self.cause = Some(error.into());
                return Event::NotContinued;
            }
            // QEMU has not answered in time, and may still execute `cont`. QEMU executes commands in order, so it answers `query-status`
            // only after that.
            match self.monitor.ask(report, guest::status) {
                Ok(status) if status == RUNNING => return Event::Continued,
                Ok(_) if !tries.is_empty() => {}
                Ok(_) => return self.fail_as(Event::Trouble, error.into()),
                Err(error) => return self.fail_as(Event::Trouble, error.into()),
            }
        }
    }

    /// Ends a QEMU that has not run the guest, so that it cannot run the guest later.
    fn end_unstarted_qemu(&mut self, report: &Report) -> Event {
        self.explain();
        let is_gone = self.monitor.is_gone_within(Duration::ZERO)
            || match self.monitor.ask_briefly(report, guest::status) {
                Ok(status) => matches!(status.as_str(), "inmigrate" | "paused" | "prelaunch") && self.end_qemu(),
                Err(_) => self.monitor.is_gone_within(EXIT),
            };
        self.end_of_qemu(is_gone)
    }

    fn check_qemu(&mut self) -> Event {
        self.explain();
        let limit = if self.signals.check().is_ok() { EXIT } else { Duration::ZERO };
        let is_gone = self.monitor.is_gone_within(limit);
        self.end_of_qemu(is_gone)
    }

    /// The event for a QEMU that has ended, or that lives.
    fn end_of_qemu(&mut self, is_gone: bool) -> Event {
        if !is_gone {
            return Event::QemuLives;
        }
        // The process that vmemctl started may still live, for example a wrapper script.
        self.qemu.end();
        Event::QemuEnded
    }

    /// Records `phase`. If that fails, the phase in memory stays as it was.
    fn record_phase(&mut self, phase: Phase, report: &Report) -> Event {
        let Err(error) = self.state_dir.write_phase(&mut self.record, phase) else {
            return Event::Recorded;
        };
        report.note(&chain(&error));
        self.cause.get_or_insert(error.into());
        Event::NotRecorded
    }
}
