// SPDX-License-Identifier: GPL-2.0-or-later
//! The source's side of a move: executes the actions of the state machine, and reports the resulting events to the machine.

mod actions;
mod rounds;
mod status;
mod verification;

use std::time::{Duration, Instant};

use crate::source::{Action, Event, Source, State};
use crate::{Machine, Owner};
use vmem_cli::{Signals, chain};
use vmem_process::printable;
use vmem_qemu::{Qmp, guest, migration};

use super::PREPARATION;
use super::control::Control;
use crate::channel::{Channel, ChannelError};
use crate::endpoint::lost;
use crate::error::{Cause, Error};
use crate::message::{FromDestination, FromSource};
use crate::network::Security;
use crate::page_server::PageServer;
use crate::record::{Outgoing, StateDir};
use crate::relay::{HoldError, Relay};
use crate::report::{Pages, Report};
pub(super) use rounds::Rounds;
pub(super) use verification::Verification;

/// How long the destination may take to load the guest's state and to run the guest.
const RESUMPTION: Duration = Duration::from_secs(60);

/// How long the source tries to reconnect to the destination by itself. The guest waits at the destination, and `vmemctl recover` continues
/// the move at any later time.
const RETRY: Duration = Duration::from_secs(600);

/// How long to wait for the destination's reason after it has closed QEMU's stream.
const MOMENT: Duration = Duration::from_millis(500);

/// How often the wait loop switches between QEMU and the destination.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long nothing may arrive at the destination while that is all that the move waits for.
const STALL: Duration = Duration::from_secs(60);

/// A move, as the source sees it.
pub(crate) struct OutgoingMigration {
    pub(super) owner: Owner<Source>,
    /// QEMU's monitor, or why it cannot be reached. `recover` can work without it.
    pub(super) qmp: Result<Qmp, Cause>,
    /// `None`: the connection is lost.
    pub(super) channel: Option<Channel>,
    pub(super) export: PageServer,
    /// The rounds, if the source's vmemd sends some.
    pub(super) rounds: Option<Rounds>,
    /// The socket over which others look at the move and change it.
    pub(super) control: Control,
    /// The comparison of the memory, if there is to be one.
    pub(super) verification: Option<Verification>,
    /// The relay of QEMU's stream, once QEMU has it.
    stream: Option<Relay>,
    pub(super) state_dir: StateDir,
    pub(super) record: Outgoing,
    pub(super) security: Security,
    pub(super) report: Report,
    pub(super) signals: Signals,
    /// How long the transfer of the guest's state may take.
    pub(super) timeout: Duration,
    pub(super) keep_source: bool,
    /// `recover` has resumed the move of an earlier vmemctl.
    pub(super) resumed: bool,
    /// QEMU has received `migrate`. Before that, a migration in QEMU does not belong to this move.
    pub(super) begun: bool,
    /// When QEMU reported that the guest had stopped.
    pub(super) stopped: Option<Instant>,
    /// When the next message of the destination is due, and the time limit that this follows from.
    deadline: Option<(Instant, Duration)>,
    /// How long the source tries to reconnect to the destination.
    pub(super) retry: Duration,
    /// The reason of an ABORT that must be sent until the destination has received it.
    farewell: Option<String>,
    /// Why the move does not continue.
    cause: Option<Cause>,
    /// Why the guest has ended at the destination.
    gone: Option<String>,
    /// The guest was started here while it runs at the destination.
    runs_twice: bool,
    /// The user has been told that the guest runs at the destination.
    announced: bool,
}

impl OutgoingMigration {
    /// A move that begins, or continues, in `state`.
    pub(super) fn new(
        state: State,
        qmp: Result<Qmp, Cause>,
        state_dir: StateDir,
        record: Outgoing,
        security: Security,
        report: Report,
        signals: Signals,
    ) -> Self {
        let control = Control::none(&signals);
        Self {
            owner: Owner::new(state),
            control,
            qmp,
            channel: None,
            export: PageServer::none(),
            rounds: None,
            verification: None,
            stream: None,
            state_dir,
            record,
            security,
            report,
            signals,
            timeout: PREPARATION,
            keep_source: false,
            resumed: false,
            begun: false,
            stopped: None,
            deadline: None,
            retry: RETRY,
            farewell: None,
            cause: None,
            gone: None,
            runs_twice: false,
            announced: false,
        }
    }

    /// Sends OFFER to the destination.
    pub(super) fn offer(&mut self, offer: &FromSource) -> Option<Event> {
        self.deadline = within(PREPARATION);
        let said = self.send(offer);
        said.err().map(|error| self.disconnected(error))
    }

    /// Executes the actions that are due, and runs until the machine is in an end state.
    pub(crate) fn run(mut self, due: &[Action]) -> Result<(), Error> {
        // What is carried out may take time.
        self.publish_status();
        let answer = self.carry_out(due);
        let result = self.run_until(answer, |_| false);
        self.control.end(&result);
        result
    }

    /// Continues with `event` until the machine is in an end state, or in one for which `is_enough` is true.
    pub(super) fn run_until(&mut self, event: Option<Event>, is_enough: impl Fn(State) -> bool) -> Result<(), Error> {
        let mut next = event;
        while next.is_some() || !(self.owner.is_over() || is_enough(self.owner.state())) {
            let event = match next.take() {
                Some(event) => event,
                None => self.wait(),
            };
            let due = match self.owner.on(event) {
                Ok(due) => due,
                Err(error) => {
                    // The guest may need its pages, so vmemd continues to serve them.
                    self.export.leave();
                    return Err(Error::Unknown(Cause::other(chain(&error))));
                }
            };
            tracing::debug!("{event:?}: {:?}, {due:?}", self.owner.state());
            self.publish_status();
            next = self.carry_out(due);
        }
        if self.owner.is_over() { self.result() } else { Ok(()) }
    }

    /// The result of the move.
    fn result(&mut self) -> Result<(), Error> {
        let cause = self.cause.take().unwrap_or_else(|| Cause::other("the reason is not known"));
        Err(match self.owner.state() {
            State::Moved => match self.gone.take() {
                None => return Ok(()),
                Some(reason) => Error::Gone(Cause::other(reason)),
            },
            State::AtSource if self.resumed => {
                self.report.note("the guest goes on at this host");
                return Ok(());
            }
            State::AtSource => Error::AtSource(cause),
            State::Undecided | State::Unfinished if self.runs_twice => Error::Twice(cause),
            State::Undecided | State::Unfinished if cause.is_signal() => Error::Detached(cause),
            State::Unfinished => Error::Unfinished(cause),
            State::Undecided => Error::Unknown(cause),
            _ => Error::Local(cause),
        })
    }

    /// Stores why the move does not continue, and returns the event for it.
    pub(super) fn fail(&mut self, cause: Cause) -> Event {
        let event = if cause.is_signal() { Event::Signal } else { Event::Trouble };
        self.cause = Some(cause);
        event
    }

    /// Waits for the next event that the state waits for.
    fn wait(&mut self) -> Event {
        loop {
            if let Err(stopped) = self.signals.check() {
                return self.fail(stopped.into());
            }
            self.publish_status();
            match self.poll_pages() {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(cause) => return self.lost_rounds(cause),
            }
            let sending = matches!(self.owner.state(), State::Sending | State::Saving | State::Stopped);
            if sending {
                match self.poll_qemu() {
                    Ok(None) => {}
                    Ok(Some(event)) => return event,
                    Err(cause) => return self.fail(cause),
                }
            }
            let until = Instant::now() + if sending { Duration::ZERO } else { POLL_INTERVAL };
            if let Some(event) = self.poll_destination(until) {
                return event;
            }
            if let Some((_, limit)) = self.deadline.filter(|(deadline, _)| Instant::now() >= *deadline) {
                let cause = self.timed_out(limit);
                return self.fail(cause);
            }
        }
    }

    /// Why the state that has a time limit has not ended.
    fn timed_out(&self, limit: Duration) -> Cause {
        let seconds = limit.as_secs();
        match self.owner.state() {
            State::Stopped if self.awaits_verification() => Cause::other(format!(
                "the destination has received and compared none of the guest's pages for {seconds} s"
            )),
            State::Stopped if self.awaits_pages() => Cause::other(format!(
                "the destination has not got all pages of the guest within {seconds} s (see --timeout, and --mode)"
            )),
            State::Sending | State::Stopped => Cause::other(format!(
                "the guest's state has not arrived at the destination within {seconds} s (see --timeout)"
            )),
            State::Copying => Cause::other(format!("the destination has taken none of the guest's pages for {seconds} s")),
            State::Saving if self.is_ending() => Cause::other(format!(
                "the source's vmemd has not taken the last pages of the guest within {seconds} s"
            )),
            State::Saving => {
                let kept = self.stream.as_ref().map_or(0, Relay::held_bytes);
                Cause::other(format!(
                    "QEMU has not written all of the guest's device state within {seconds} s: {kept} bytes came, and no description of the \
                     devices at their end. If the guest's machine has suppress-vmdesc=on (-machine), start its QEMU without that"
                ))
            }
            _ => lost(ChannelError::TimedOut(limit)),
        }
    }

    /// Whether QEMU has saved all devices. Waits for that for up to `limit`. `None`: the stream has ended, and QEMU says why.
    fn has_saved(&self, limit: Duration) -> Result<Option<bool>, Cause> {
        match self.stream()?.wait_saved(limit) {
            Ok(saved) => Ok(Some(saved)),
            Err(HoldError::Ended) => Ok(None),
            Err(error) => Err(Cause::other(chain(&error))),
        }
    }

    /// The next event of QEMU's migration.
    fn poll_qemu(&mut self) -> Result<Option<Event>, Cause> {
        let mut until = self.qemu_until();
        if self.owner.state() == State::Saving && !self.is_ending() {
            // The guest stands still, so the end of the state is what is waited for.
            match self.has_saved(POLL_INTERVAL)? {
                Some(true) => return Ok(self.saved()),
                Some(false) => until = Instant::now(),
                None => {}
            }
        }
        let event = self.qmp()?.next_event(until)?;
        let event = event.filter(|event| event.name == "MIGRATION");
        let status = event.as_ref().and_then(|event| event.data.get("status")?.as_str());
        let event = match status {
            Some("pre-switchover") => Event::Stopped,
            Some("completed") => Event::Sent,
            Some("failed" | "cancelled") => {
                // QEMU does not know why the relay has closed the stream.
                self.has_saved(Duration::ZERO)?;
                return self.why_not();
            }
            _ => return Ok(None),
        };
        if Source::step(self.owner.state(), event).is_none() {
            let status = status.unwrap_or_default();
            return Err(Cause::other(format!(
                "QEMU reports the migration state {status} out of order"
            )));
        }
        if event == Event::Stopped {
            self.stopped = Some(Instant::now());
        }
        Ok(Some(event))
    }

    /// Stores why QEMU could not send the state, as both sides report it.
    fn why_not(&mut self) -> Result<Option<Event>, Cause> {
        let (_, reason) = migration::status(self.qmp()?)?;
        let reason = reason.unwrap_or_else(|| "QEMU does not say why".to_owned());
        let (there, event) = match self.refusal() {
            Some(reason) => (format!("; the destination: {}", printable(&reason)), Event::Refused),
            None => (String::new(), Event::Trouble),
        };
        self.cause = Some(Cause::other(format!("QEMU cannot send the guest's state: {reason}{there}")));
        Ok(Some(event))
    }

    /// Waits for a moment for the destination's reason why the move does not continue.
    fn refusal(&mut self) -> Option<String> {
        let channel = self.channel.as_mut()?;
        let until = Instant::now() + MOMENT;
        loop {
            match channel.recv(until) {
                Ok(Some(FromDestination::Failed { reason })) => return Some(reason),
                Ok(Some(FromDestination::Pages { .. } | FromDestination::Incomplete { .. })) if Instant::now() < until => {}
                _ => return None,
            }
        }
    }

    /// The next event of the destination, if there is one by `until`.
    fn poll_destination(&mut self, until: Instant) -> Option<Event> {
        let Some(channel) = &mut self.channel else {
            return Some(Event::Lost);
        };
        let message = match channel.recv(until) {
            Ok(message) => message?,
            Err(error) => return Some(self.disconnected(error)),
        };
        let event = match &message {
            FromDestination::Pages { line } => {
                let failed = match self.report.pages(line) {
                    None => None,
                    Some(Pages::At(arrival)) => self.pages_at(&arrival).err(),
                    Some(Pages::Verified(verified)) => self.verified(&verified).err(),
                };
                return failed.map(|cause| self.fail(cause));
            }
            FromDestination::Incomplete { reason } => {
                self.report.note(&format!("destination: {}", printable(reason)));
                return None;
            }
            FromDestination::Ready { rounds, verify } => {
                if let Err(cause) = self.check_can_verify(*verify) {
                    return Some(self.fail(cause));
                }
                self.ready(*rounds, *verify).unwrap_or(Event::Trouble)
            }
            FromDestination::Failed { .. } => Event::Refused,
            // REFUSE says that the destination does not know the guest. It does not say that the guest has not run.
            FromDestination::Refuse { .. } if self.owner.state() == State::Offering => Event::Refused,
            FromDestination::Running => Event::Running,
            FromDestination::Complete { .. } => Event::Complete,
            FromDestination::Gone { .. } => Event::Gone,
            FromDestination::Refuse { .. } | FromDestination::Welcome { .. } => Event::Trouble,
        };
        if event == Event::Trouble || Source::step(self.owner.state(), event).is_none() {
            return Some(self.fail(unexpected(&message)));
        }
        match message {
            FromDestination::Failed { reason } if self.owner.state() == State::Committed => {
                let what = format!("the guest has not run at the destination: {}", printable(&reason));
                self.cause = Some(Cause::other(what));
            }
            FromDestination::Failed { reason } | FromDestination::Refuse { reason } => self.cause = Some(refused(&reason)),
            FromDestination::Complete { summary } => self.report.complete(&summary),
            FromDestination::Gone { reason } => self.gone = Some(printable(&reason)),
            FromDestination::Running => {
                if let Err(cause) = self.check_stands_still() {
                    return Some(self.fail(cause));
                }
                if self.owner.state() == State::Away {
                    self.announce();
                }
            }
            _ => {}
        }
        Some(event)
    }

    /// Reports once that the guest runs at the destination.
    fn announce(&mut self) {
        if std::mem::replace(&mut self.announced, true) {
            return;
        }
        self.deadline = None;
        self.report.running(self.stopped.map(|stopped| stopped.elapsed()));
        if let Err(cause) = &self.qmp {
            self.report
                .note(&format!("{}; its memory is served without it", chain(cause)));
        }
    }

    fn disconnected(&mut self, error: ChannelError) -> Event {
        if matches!(self.owner.state(), State::Committed | State::Away) {
            let text = format!("the destination's vmemctl: {}; trying again", chain(&error));
            self.report.note(&text);
        }
        self.channel = None;
        self.cause = Some(lost(error));
        Event::Lost
    }

    /// Returns an error if the destination owns the guest and it runs here: it was started by hand after an earlier vmemctl had ended.
    fn check_stands_still(&mut self) -> Result<(), Cause> {
        // Without QEMU, the guest does not run here.
        let Ok(qmp) = &mut self.qmp else { return Ok(()) };
        if self.resumed && guest::status(qmp)? == "running" {
            self.runs_twice = true;
            return Err(Cause::other("it was started at the source by hand"));
        }
        Ok(())
    }

    fn stream(&self) -> Result<&Relay, Cause> {
        self.stream.as_ref().ok_or_else(|| Cause::other("QEMU has no stream"))
    }

    fn qmp(&mut self) -> Result<&mut Qmp, Cause> {
        self.qmp.as_mut().map_err(|cause| Cause::other(chain(cause)))
    }
}

fn within(limit: Duration) -> Option<(Instant, Duration)> {
    Some((Instant::now() + limit, limit))
}

fn refused(reason: &str) -> Cause {
    Cause::other(format!("the destination refuses: {}", printable(reason)))
}

fn unexpected(message: &FromDestination) -> Cause {
    Cause::other(format!("the destination has sent a message out of order: {message:?}"))
}
