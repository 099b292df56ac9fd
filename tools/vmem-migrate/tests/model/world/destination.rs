// SPDX-License-Identifier: GPL-2.0-or-later
//! What the destination's process does.

use vmem_migrate::destination::{Action, Destination, Event, State, resume};
use vmem_migrate::{Machine, Phase};

use super::{DestinationQemu, Steps, Stream, World};
use crate::link::{ToDestination, ToSource};
use crate::process::Process;

impl World {
    pub(super) fn destination_steps(&self, steps: &mut Steps) {
        match &self.destination {
            Some(process) if !process.due.is_empty() => self.destination_acts(steps),
            Some(process) if !process.is_over::<Destination>() => self.destination_hears(steps),
            // Somebody runs `receive --resume`.
            _ => {
                if let Some(recorded) = self.destination_record {
                    let mut next = self.clone();
                    let lives = self.destination_qemu != DestinationQemu::Ended;
                    next.destination = Some(Process::new(resume(recorded, lives), true));
                    next.link.destination = false;
                    steps.push(("destination: receive --resume".to_owned(), next));
                }
            }
        }
    }

    fn destination_on(mut self, event: Event, steps: &mut Steps) {
        let Some(process) = &mut self.destination else { return };
        if !process.on::<Destination>(event) {
            self.broken = Some("the destination's table lacks a row");
        }
        self.destination_did(&format!("{event:?}"), steps);
    }

    /// The process has done something. If it has ended, so have its connections.
    fn destination_did(mut self, what: &str, steps: &mut Steps) {
        if self.destination.as_ref().is_some_and(Process::is_over::<Destination>) {
            self.destination_is_over();
        }
        steps.push((format!("destination: {what}"), self));
    }

    /// The process has ended, and its connections have.
    pub(super) fn destination_is_over(&mut self) {
        self.link.destination = false;
        self.link.arrives = false;
        self.cut_stream();
    }

    fn destination_hears(&self, steps: &mut Steps) {
        let Some(process) = &self.destination else { return };
        let has_row = |event| Destination::step(process.state, event).is_some();
        let is_last_word = matches!(process.state, State::Failed | State::Complete | State::Gone);
        if self.link.destination && !self.link.to_destination.is_empty() {
            let mut next = self.clone();
            let event = match next.link.to_destination.remove(0) {
                // A source that asks has been answered when it connected.
                ToDestination::Start | ToDestination::Commit if is_last_word => None,
                ToDestination::Abort if is_last_word => Some(Event::Heard),
                ToDestination::Start => Some(Event::Start),
                ToDestination::Commit => Some(Event::Commit),
                ToDestination::Abort => Some(Event::Abort),
                ToDestination::Heard => Some(Event::Heard),
            };
            match event {
                Some(event) => next.destination_on(event, steps),
                None => next.destination_did("has answered already", steps),
            }
        }
        if self.link.arrives && has_row(Event::Back) {
            let mut next = self.clone();
            (next.link.arrives, next.link.destination) = (false, true);
            next.destination_on(Event::Back, steps);
        }
        if self.link.is_lost_at_destination() && has_row(Event::Lost) {
            let mut next = self.clone();
            next.link.destination = false;
            next.destination_on(Event::Lost, steps);
        }
        if process.state == State::Running {
            if self.complete {
                self.clone().destination_on(Event::Complete, steps);
            }
            if self.destination_qemu == DestinationQemu::Ended {
                self.clone().destination_on(Event::QemuEnded, steps);
            }
        }
        if process.state == State::Prepared && self.destination_qemu == DestinationQemu::Ended {
            self.clone().destination_on(Event::Trouble, steps);
        }
        for event in [Event::Signal, Event::Trouble, Event::Unheard] {
            if let Some(mut next) = self.faulted().filter(|_| has_row(event)) {
                next.word_lost = true;
                next.destination_on(event, steps);
            }
        }
    }

    /// The first action that is due, in each way that it can go.
    fn destination_acts(&self, steps: &mut Steps) {
        let mut next = self.clone();
        let Some(process) = &mut next.destination else { return };
        let action = process.due.remove(0);
        let resumed = process.resumed;
        let name = format!("{action:?}");
        match action {
            Action::RecordCommitted => return next.destination_records(Phase::Committed, steps),
            Action::RecordStarting => return next.destination_records(Phase::Starting, steps),
            Action::RecordComplete => return next.destination_records(Phase::Complete, steps),
            Action::RecordFailed => return next.destination_records(Phase::Failed, steps),
            Action::CutState => return next.judge_state(resumed, steps),
            Action::AwaitState => return next.await_state(steps),
            Action::ContinueGuest => return next.continue_guest(steps),
            Action::EndUnstartedQemu => {
                let runs = next.destination_qemu == DestinationQemu::Running;
                if let Some(alive) = next.faulted().filter(|_| next.destination_qemu != DestinationQemu::Ended) {
                    alive.destination_on(Event::QemuLives, steps);
                }
                if !runs {
                    next.destination_qemu = DestinationQemu::Ended;
                }
                return next.destination_on(if runs { Event::QemuLives } else { Event::QemuEnded }, steps);
            }
            Action::LookAtQemu => {
                let ended = next.destination_qemu == DestinationQemu::Ended;
                return next.destination_on(if ended { Event::QemuEnded } else { Event::QemuLives }, steps);
            }
            Action::RecordRunning => {
                if let Some(unwritten) = next.faulted() {
                    unwritten.destination_did(&name, steps);
                }
                next.destination_record = Some(Phase::Running);
            }
            Action::EndQemu => {
                if next.destination_qemu == DestinationQemu::Running {
                    next.broken = Some("the destination ends a QEMU that runs the guest");
                }
                next.destination_qemu = DestinationQemu::Ended;
            }
            Action::SayRunning => next.link.tell_source(ToSource::Running),
            Action::SayFailed => {
                if next.has_run_there {
                    next.broken = Some("FAILED is said of a guest that has run here");
                }
                next.link.tell_source(ToSource::Failed);
            }
            Action::SayComplete | Action::SayGone => {
                // A source that has just come back asks first whether the guest runs.
                next.link.tell_source(ToSource::Running);
                let is_complete = action == Action::SayComplete;
                if !is_complete && next.destination_qemu != DestinationQemu::Ended {
                    next.broken = Some("GONE is said of a guest whose QEMU lives");
                }
                // QEMU was killed when the guest was about to run, or later.
                next.guest_ended |= !is_complete;
                next.link
                    .tell_source(if is_complete { ToSource::Complete } else { ToSource::Gone });
            }
            Action::Forget => {
                if let Some(mut kept) = next.faulted() {
                    (kept.record_stays, kept.word_lost) = (true, true);
                    kept.destination_did("Forget fails", steps);
                }
                next.destination_record = None;
            }
            Action::StartPages | Action::KeepPages | Action::Release | Action::StopPages | Action::LeavePages => {}
        }
        next.destination_did(&name, steps);
    }

    fn destination_records(mut self, phase: Phase, steps: &mut Steps) {
        if let Some(unwritten) = self.faulted() {
            unwritten.destination_on(Event::NotRecorded, steps);
        }
        self.destination_record = Some(phase);
        self.destination_on(Event::Recorded, steps);
    }

    /// A process that was begun again has not seen what passed: it asks QEMU.
    fn judge_state(mut self, resumed: bool, steps: &mut Steps) {
        let seen = matches!(self.stream, Stream::Seen | Stream::CutAfterSeen);
        self.cut_stream();
        let is_empty = self.destination_qemu == DestinationQemu::Incoming;
        let may_have = if resumed { [true, !is_empty] } else { [seen, seen] };
        if may_have.contains(&true) {
            self.clone().destination_on(Event::MayHaveLoaded, steps);
        }
        if may_have.contains(&false) {
            self.destination_on(Event::HasNotLoaded, steps);
        }
    }

    fn await_state(self, steps: &mut Steps) {
        let loaded = matches!(self.destination_qemu, DestinationQemu::Loaded | DestinationQemu::Running);
        if let Some(silent) = self.faulted().filter(|_| loaded) {
            silent.clone().destination_on(Event::NotLoaded, steps);
            silent.destination_on(Event::Signal, steps);
        }
        self.destination_on(if loaded { Event::Loaded } else { Event::NotLoaded }, steps);
    }

    /// QEMU runs the guest, refuses to, dies of it, or does not answer and runs it later, or never.
    fn continue_guest(mut self, steps: &mut Steps) {
        match self.destination_qemu {
            DestinationQemu::Loaded => {
                if let Some(refused) = self.faulted() {
                    refused.clone().destination_on(Event::NotContinued, steps);
                    if self.qemus_die {
                        let mut died = refused.clone();
                        died.run_there();
                        died.kill_destination_qemu();
                        died.destination_on(Event::Trouble, steps);
                    }
                    let mut silent = refused;
                    silent.unanswered_cont = true;
                    silent.clone().destination_on(Event::Signal, steps);
                    silent.destination_on(Event::Trouble, steps);
                }
                self.run_there();
                self.destination_on(Event::Continued, steps);
            }
            DestinationQemu::Running => self.destination_on(Event::Continued, steps),
            DestinationQemu::Incoming | DestinationQemu::Ended => self.destination_on(Event::Trouble, steps),
        }
    }

    pub(super) fn run_there(&mut self) {
        self.destination_qemu = DestinationQemu::Running;
        self.has_run_there = true;
        self.unanswered_cont = false;
    }

    /// The guest ends with it if it has run in it.
    pub(super) fn kill_destination_qemu(&mut self) {
        self.guest_ended |= self.has_run_there;
        self.destination_qemu = DestinationQemu::Ended;
        self.unanswered_cont = false;
    }
}
