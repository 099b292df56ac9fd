// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest runs here, and its memory follows. The events of vmemd's supervisor and of the guest's pauser meet here, and are reported to
//! the source. Nothing here waits for QEMU.

use std::time::{Duration, Instant};

use crate::destination::{Action, Destination, Event};
use crate::{Owner, Phase};
use serde_json::Value;
use vmem::Control;
use vmem_cli::{Signals, chain};
use vmem_control::Event as DaemonReport;
use vmem_qemu::COMMAND_LIMIT;

use super::final_message::FinalMessage;
use super::incoming::IncomingMigration;
use super::listener::{IncomingConnection, Listener};
use super::loss::Loss;
use super::missing;
use super::page_fetcher::{self, End, PageFetcher};
use super::pause::{self, Pauser};
use crate::channel::Channel;
use crate::error::Error;
use crate::message::{FromDestination, FromSource};
use crate::options::Receive;
use crate::record::{Incoming, StateDir};
use crate::report::Report;

/// How often the loop polls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A guest that runs here while its memory follows.
struct RunningGuest<'a> {
    owner: Owner<Destination>,
    channel: Option<Channel>,
    pages: PageFetcher,
    pauser: Pauser,
    state_dir: StateDir,
    record: Incoming,
    args: &'a Receive,
    control: &'a Control,
    report: &'a mut Report,
    signals: &'a Signals,
    /// The source is lost, and the missing pages have been listed.
    listed: bool,
}

/// Supervises vmemd until every page is present and the source has confirmed COMPLETE.
pub(super) fn supervise(
    args: &Receive,
    control: &Control,
    listener: &mut Listener,
    incoming: IncomingMigration,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Error> {
    let IncomingMigration {
        owner,
        channel,
        pages,
        monitor,
        state_dir,
        record,
        ..
    } = incoming;
    let pauser = Pauser::start(monitor, record.settings.clone(), &state_dir)?;
    let tending = RunningGuest {
        owner,
        channel,
        pages,
        pauser,
        state_dir,
        record,
        args,
        control,
        report,
        signals,
        listed: false,
    };
    if tending.pages.source_is_there() {
        tending.pauser.source_back();
    }
    tending.run(listener)
}

impl RunningGuest<'_> {
    fn run(mut self, listener: &mut Listener) -> Result<(), Error> {
        loop {
            if let Err(stopped) = self.signals.check() {
                // The guest continues to run, and a vmemd continues to fetch its pages.
                self.on(Event::Signal);
                return Err(Error::Detached(stopped.into()));
            }
            while let Some(news) = self.pauser.news() {
                match news {
                    pause::News::Note(text) => self.report_incomplete(text),
                    pause::News::Restored => self.restored(),
                    pause::News::Gone | pause::News::Finished => return self.gone(listener),
                }
            }
            if let Some(news) = self.pages.news(POLL_INTERVAL) {
                match news {
                    page_fetcher::News::DaemonReport(event) => self.forward(&event),
                    page_fetcher::News::Flow => self.source_back(),
                    page_fetcher::News::Trouble(reason) => self.report_incomplete(reason),
                    page_fetcher::News::SourceLost(why) => self.source_lost(&why),
                    page_fetcher::News::Ended(End::Complete(summary)) => return self.complete(summary, listener),
                    page_fetcher::News::Ended(end) => {
                        let failure = self.lost(&end);
                        self.on(Event::Trouble);
                        return Err(failure);
                    }
                }
            }
            self.answer();
            if let Some(IncomingConnection::Recover(channel)) = listener.poll() {
                self.report.note("the source is back");
                self.channel = Some(channel);
                self.on(Event::Back);
            }
        }
    }

    /// Passes the event to the state machine, and executes the actions that are due.
    fn on(&mut self, event: Event) {
        let due = match self.owner.on(event) {
            Ok(due) => due,
            Err(error) => return self.report.note(&chain(&error)),
        };
        tracing::debug!("{event:?}: {:?}, {due:?}", self.owner.state());
        for action in due {
            match action {
                Action::SayRunning => self.send(&FromDestination::Running),
                Action::StopPages => self.pages.stop(),
                Action::LeavePages => self.pages.leave(),
                Action::RecordComplete => {
                    self.record.phase = Phase::Complete;
                    let is_recorded = self.write();
                    self.on(if is_recorded { Event::Recorded } else { Event::NotRecorded });
                }
                // `FinalMessage` sends these messages until the source confirms them. The actions below belong to the time before the guest
                // runs.
                Action::SayComplete | Action::SayGone | Action::SayFailed => {}
                Action::StartPages
                | Action::RecordCommitted
                | Action::CutState
                | Action::KeepPages
                | Action::AwaitState
                | Action::RecordStarting
                | Action::ContinueGuest
                | Action::RecordRunning
                | Action::Release
                | Action::EndUnstartedQemu
                | Action::LookAtQemu
                | Action::RecordFailed
                | Action::EndQemu
                | Action::Forget => {}
            }
        }
    }

    /// Sends the final message to the source.
    fn send_final(self, word: FromDestination, listener: &mut Listener) -> Result<(), Error> {
        let last = FinalMessage {
            owner: self.owner,
            channel: self.channel,
            state_dir: self.state_dir,
            word,
        };
        last.send(listener, self.report, self.signals)
    }

    /// Reports `reason` to the users on both hosts.
    fn report_incomplete(&mut self, reason: String) {
        self.report.note(&reason);
        self.send(&FromDestination::Incomplete { reason });
    }

    /// Passes an event of vmemd to the source and to the user. A vmemd that is ready has reached the source.
    fn forward(&mut self, event: &DaemonReport) {
        if let DaemonReport::Ready { .. } = event {
            self.source_back();
        }
        let line = page_fetcher::line(event);
        self.report.pages(&line);
        self.send(&FromDestination::Pages { line });
    }

    fn source_back(&mut self) {
        self.listed = false;
        self.pauser.source_back();
    }

    fn source_lost(&mut self, why: &str) {
        self.pauser.source_gone();
        // The missing pages are listed once, and not at each failed attempt to reconnect.
        if !std::mem::replace(&mut self.listed, true) {
            let missing = missing::list(&self.record.regions, &self.state_dir);
            self.report_incomplete(format!("{why}; {missing}"));
        }
    }

    /// QEMU has its settings back, so a later `receive --resume` need not restore them.
    fn restored(&mut self) {
        self.record.settings = None;
        let _ = self.write();
    }

    fn write(&self) -> bool {
        let written = self.state_dir.write(&self.record);
        if let Err(error) = &written {
            self.report.note(&chain(error));
        }
        written.is_ok()
    }

    /// Ends the move: QEMU has ended before the memory was complete.
    fn gone(mut self, listener: &mut Listener) -> Result<(), Error> {
        self.on(Event::QemuEnded);
        let reason = "QEMU has ended".to_owned();
        self.send_final(FromDestination::Gone { reason }, listener)
    }

    /// Ends the move: the guest has all of its memory. QEMU's socket is closed first, because the management software may be waiting for
    /// it.
    fn complete(mut self, summary: Value, listener: &mut Listener) -> Result<(), Error> {
        self.pauser.finish();
        let until = Instant::now() + 2 * COMMAND_LIMIT;
        while let Some(news) = self.pauser.news_within(until.saturating_duration_since(Instant::now())) {
            match news {
                pause::News::Note(text) => self.report.note(&text),
                pause::News::Restored => self.record.settings = None,
                // It does not matter if QEMU has ended by now: it had all of its memory.
                pause::News::Gone | pause::News::Finished => break,
            }
        }
        self.on(Event::Complete);
        self.report.complete(&summary);
        self.send_final(FromDestination::Complete { summary }, listener)
    }

    /// Handles pages that will never arrive. Returns the error of the command.
    fn lost(&mut self, end: &End) -> Error {
        let loss = Loss {
            regions: &self.record.regions,
            state_dir: &self.state_dir,
            pauser: &self.pauser,
            control: self.control,
            on_lost: self.args.on_lost,
        };
        let failure = match end {
            End::OtherMemory(why) => loss.of_other_memory(why),
            End::SourceLost(why) => loss.of_source(why),
            End::Unreadable | End::Complete(_) => loss.of_pages(),
        };
        let reason = chain(&failure);
        self.send(&FromDestination::Incomplete { reason });
        failure
    }

    /// Answers the source, which asks on each connection whether the guest runs.
    fn answer(&mut self) {
        let heard = self.channel.as_mut().map(|channel| channel.recv(Instant::now()));
        match heard {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(FromSource::Commit { .. }))) => self.on(Event::Commit),
            Some(Ok(Some(FromSource::Heard))) => self.on(Event::Heard),
            Some(Ok(Some(other))) => self
                .report
                .note(&format!("the source has sent a message out of order: {other:?}")),
            Some(Err(error)) => self.disconnected(&chain(&error)),
        }
    }

    fn send(&mut self, message: &FromDestination) {
        let said = self.channel.as_ref().map(|channel| channel.send(message));
        if let Some(Err(error)) = said {
            self.disconnected(&chain(&error));
        }
    }

    fn disconnected(&mut self, error: &str) {
        self.report
            .note(&format!("the source's vmemctl: {error}; pages go on coming"));
        self.channel = None;
        self.on(Event::Lost);
    }
}
