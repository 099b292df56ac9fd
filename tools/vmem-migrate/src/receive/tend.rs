// SPDX-License-Identifier: GPL-2.0
//! The guest runs here, and its memory follows: what the supervisor of vmemd and the guest's pauser report is put together, and told to the
//! source. Nothing here waits for QEMU.

use std::time::{Duration, Instant};

use crate::destination::{Action, Destination, Event};
use crate::{Owner, Phase};
use serde_json::Value;
use vmem::Control;
use vmem_cli::{Signals, chain};
use vmem_control::Event as Told;

use super::arrival::Arrival;
use super::door::{Door, Visitor};
use super::farewell::LastWord;
use super::loss::Loss;
use super::missing;
use super::pages::{self, End, Pages};
use super::pause::{self, Pauser};
use crate::channel::Channel;
use crate::error::Error;
use crate::guest::LIMIT;
use crate::message::{FromDestination, FromSource};
use crate::options::Receive;
use crate::record::{Incoming, Place};
use crate::report::Report;

/// How often everything is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// A guest whose memory follows.
struct Tending<'a> {
    owner: Owner<Destination>,
    channel: Option<Channel>,
    pages: Pages,
    pauser: Pauser,
    place: Place,
    record: Incoming,
    args: &'a Receive,
    control: &'a Control,
    report: &'a mut Report,
    signals: &'a Signals,
    /// The source is gone, and which pages are missing has been listed.
    listed: bool,
}

/// Stays until all pages are here, and the source has heard that.
pub(super) fn tend(
    args: &Receive,
    control: &Control,
    door: &mut Door,
    arrival: Arrival,
    report: &mut Report,
    signals: &Signals,
) -> Result<(), Error> {
    let Arrival {
        owner,
        channel,
        pages,
        monitor,
        place,
        record,
        ..
    } = arrival;
    let pauser = Pauser::start(monitor, record.settings.clone(), &place)?;
    let tending = Tending {
        owner,
        channel,
        pages,
        pauser,
        place,
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
    tending.run(door)
}

impl Tending<'_> {
    fn run(mut self, door: &mut Door) -> Result<(), Error> {
        loop {
            if let Err(stopped) = self.signals.check() {
                // The guest runs on, and a vmemd goes on fetching its pages.
                self.on(Event::Signal);
                return Err(Error::Detached(stopped.into()));
            }
            while let Some(news) = self.pauser.news() {
                match news {
                    pause::News::Note(text) => self.tell(text),
                    pause::News::Restored => self.restored(),
                    pause::News::Gone | pause::News::Finished => return self.gone(door),
                }
            }
            if let Some(news) = self.pages.news(GLANCE) {
                match news {
                    pages::News::Told(event) => self.told(&event),
                    pages::News::Flow => self.source_back(),
                    pages::News::Trouble(reason) => self.tell(reason),
                    pages::News::SourceLost(why) => self.source_lost(&why),
                    pages::News::Ended(End::Complete(summary)) => return self.complete(summary, door),
                    pages::News::Ended(end) => {
                        let failure = self.lost(&end);
                        self.on(Event::Trouble);
                        return Err(failure);
                    }
                }
            }
            self.answer();
            if let Some(Visitor::Recover(channel)) = door.glance() {
                self.report.note("the source is back");
                self.channel = Some(channel);
                self.on(Event::Back);
            }
        }
    }

    /// Tells the state machine, and carries out what is due.
    fn on(&mut self, event: Event) {
        let due = match self.owner.on(event) {
            Ok(due) => due,
            Err(error) => return self.report.note(&chain(&error)),
        };
        tracing::debug!("{event:?}: {:?}, {due:?}", self.owner.state());
        for action in due {
            match action {
                Action::SayRunning => self.say(&FromDestination::Running),
                Action::StopPages => self.pages.stop(),
                Action::LeavePages => self.pages.leave(),
                Action::RecordComplete => {
                    self.record.phase = Phase::Complete;
                    let is_recorded = self.write();
                    self.on(if is_recorded { Event::Recorded } else { Event::NotRecorded });
                }
                // The last word is said until it is heard, by `farewell`. The others are done before the guest runs.
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

    /// The source has to hear how it ended.
    fn say_last(self, word: FromDestination, door: &mut Door) -> Result<(), Error> {
        let last = LastWord {
            owner: self.owner,
            channel: self.channel,
            place: self.place,
            word,
        };
        last.say(door, self.report, self.signals)
    }

    /// Tells people on both sides.
    fn tell(&mut self, reason: String) {
        self.report.note(&reason);
        self.say(&FromDestination::Incomplete { reason });
    }

    /// What vmemd says. One that is ready has reached the source.
    fn told(&mut self, event: &Told) {
        if let Told::Ready { .. } = event {
            self.source_back();
        }
        let line = pages::line(event);
        self.report.pages(&line);
        self.say(&FromDestination::Pages { line });
    }

    fn source_back(&mut self) {
        self.listed = false;
        self.pauser.source_back();
    }

    fn source_lost(&mut self, why: &str) {
        self.pauser.source_gone();
        // Once, and not each time that it is not reached.
        if !std::mem::replace(&mut self.listed, true) {
            let missing = missing::list(&self.record.regions, &self.place);
            self.tell(format!("{why}; {missing}"));
        }
    }

    /// QEMU's settings need not be put back by whoever takes this up.
    fn restored(&mut self) {
        self.record.settings = None;
        let _ = self.write();
    }

    fn write(&self) -> bool {
        let written = self.place.write(&self.record);
        if let Err(error) = &written {
            self.report.note(&chain(error));
        }
        written.is_ok()
    }

    /// QEMU has ended before the memory was complete.
    fn gone(mut self, door: &mut Door) -> Result<(), Error> {
        self.on(Event::QemuEnded);
        let reason = "QEMU has ended".to_owned();
        self.say_last(FromDestination::Gone { reason }, door)
    }

    /// The guest needs nobody any more. QEMU's socket is let go first: whoever manages the guest may be waiting for it.
    fn complete(mut self, summary: Value, door: &mut Door) -> Result<(), Error> {
        self.pauser.finish();
        let until = Instant::now() + 2 * LIMIT;
        while let Some(news) = self.pauser.news_within(until.saturating_duration_since(Instant::now())) {
            match news {
                pause::News::Note(text) => self.report.note(&text),
                pause::News::Restored => self.record.settings = None,
                // That QEMU has ended by now changes nothing: it had all of its memory.
                pause::News::Gone | pause::News::Finished => break,
            }
        }
        self.on(Event::Complete);
        self.report.complete(&summary);
        self.say_last(FromDestination::Complete { summary }, door)
    }

    /// Pages of the guest will not come.
    fn lost(&mut self, end: &End) -> Error {
        let loss = Loss {
            regions: &self.record.regions,
            place: &self.place,
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
        self.say(&FromDestination::Incomplete { reason });
        failure
    }

    /// The source asks on each connection whether the guest runs.
    fn answer(&mut self) {
        let heard = self.channel.as_mut().map(|channel| channel.hear(Instant::now()));
        match heard {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(FromSource::Commit { .. }))) => self.on(Event::Commit),
            Some(Ok(Some(FromSource::Heard))) => self.on(Event::Heard),
            Some(Ok(Some(other))) => self
                .report
                .note(&format!("the source said something out of order: {other:?}")),
            Some(Err(error)) => self.disconnected(&chain(&error)),
        }
    }

    fn say(&mut self, message: &FromDestination) {
        let said = self.channel.as_ref().map(|channel| channel.say(message));
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
