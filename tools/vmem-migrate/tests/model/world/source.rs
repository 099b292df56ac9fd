// SPDX-License-Identifier: GPL-2.0-or-later
//! What the source's process does.

use vmem_migrate::source::{Action, Event, Source, State, resume};
use vmem_migrate::{Machine, Phase};

use super::{SourceQemu, Steps, Stream, World};
use crate::link::{Link, ToDestination, ToSource};
use crate::process::Process;

impl World {
    pub(super) fn source_steps(&self, steps: &mut Steps) {
        match &self.source {
            Some(process) if !process.due.is_empty() => self.source_acts(steps),
            Some(process) if !process.is_over::<Source>() => self.source_hears(steps),
            // Somebody runs `recover`.
            _ => {
                if let Some(recorded) = self.source_record {
                    let mut next = self.clone();
                    next.source = Some(Process::new(resume(recorded), true));
                    next.link.source = false;
                    steps.push(("source: recover".to_owned(), next));
                }
            }
        }
    }

    /// The process takes an event.
    fn source_on(mut self, event: Event, steps: &mut Steps) {
        let Some(process) = &mut self.source else { return };
        if !process.on::<Source>(event) {
            self.broken = Some("the source's table lacks a row");
        }
        self.source_did(&format!("{event:?}"), steps);
    }

    /// The process has done something. If it has ended, its end of the connection is closed.
    fn source_did(mut self, what: &str, steps: &mut Steps) {
        if self.source.as_ref().is_some_and(Process::is_over::<Source>) {
            self.link.source = false;
        }
        steps.push((format!("source: {what}"), self));
    }

    fn source_hears(&self, steps: &mut Steps) {
        let Some(process) = &self.source else { return };
        let has_row = |event| Source::step(process.state, event).is_some();
        if self.link.source && !self.link.to_source.is_empty() {
            let mut next = self.clone();
            let event = match next.link.to_source.remove(0) {
                ToSource::Ready => Event::Ready,
                ToSource::Running => Event::Running,
                ToSource::Failed => Event::Refused,
                ToSource::Gone => Event::Gone,
                ToSource::Complete => Event::Complete,
            };
            next.source_on(event, steps);
        }
        if self.link.is_lost_at_source() || !self.link.source {
            self.clone().source_on(Event::Lost, steps);
        }
        let sees = match (process.state, self.source_qemu) {
            (State::Copying, _) => Some(Event::Settled),
            (State::Sending, SourceQemu::Stopped) => Some(Event::Stopped),
            (State::Saving, SourceQemu::Saved) => Some(Event::Saved),
            (State::Stopped, SourceQemu::Postmigrate) => Some(Event::Sent),
            _ => None,
        };
        if let Some(event) = sees {
            self.clone().source_on(event, steps);
        }
        // A time limit is no fault, and may be over at any moment.
        if has_row(Event::Trouble) {
            self.clone().source_on(Event::Trouble, steps);
        }
        if let Some(next) = self.faulted().filter(|_| has_row(Event::Signal)) {
            next.source_on(Event::Signal, steps);
        }
    }

    /// The first action that is due, in each way that it can go.
    fn source_acts(&self, steps: &mut Steps) {
        let mut next = self.clone();
        let Some(process) = &mut next.source else { return };
        let action = process.due.remove(0);
        let (name, state) = (format!("{action:?}"), process.state);
        match action {
            Action::RecordCommitted => return next.source_records(Phase::Committed, steps),
            Action::RecordPrepared => return next.source_records(Phase::Prepared, steps),
            Action::RecordComplete => return next.source_records(Phase::Complete, steps),
            Action::ResumeGuest => return next.resume_guest(steps),
            Action::Reconnect if !next.is_listening() => {
                next.word_lost = true;
                return next.source_on(Event::Unreachable, steps);
            }
            Action::Reconnect => {
                if let Some(mut failed) = next.faulted() {
                    failed.word_lost = true;
                    failed.clone().source_on(Event::Unreachable, steps);
                    failed.source_on(Event::Signal, steps);
                }
                next.link = Link::again(ToDestination::Commit);
            }
            Action::Abort if next.link.source && !next.link.is_lost_at_source() => {
                next.link.tell_destination(ToDestination::Abort)
            }
            Action::Abort if next.is_listening() => next.link = Link::again(ToDestination::Abort),
            // There are no rounds, or they begin.
            Action::Copy => next.clone().source_on(Event::Settled, steps),
            // The destination takes one stream, and none after it has cut that.
            Action::SendState if next.stream != Stream::None => return next.source_on(Event::Trouble, steps),
            Action::SendState => next.stream = Stream::Flowing,
            Action::Save => {
                if next.source_qemu == SourceQemu::Stopped {
                    next.source_qemu = SourceQemu::Saving;
                }
            }
            Action::Start => {
                next.link.tell_destination(ToDestination::Start);
                next.started_early |= !matches!(next.source_qemu, SourceQemu::Saved | SourceQemu::Ended);
                if matches!(next.source_qemu, SourceQemu::Saving | SourceQemu::Saved) {
                    next.source_qemu = SourceQemu::Draining;
                }
            }
            Action::Commit => next.link.tell_destination(ToDestination::Commit),
            Action::Heard if state == State::Moved && !next.link.source && next.is_listening() => {
                next.link = Link::again(ToDestination::Heard)
            }
            Action::Heard => next.link.tell_destination(ToDestination::Heard),
            Action::RecordRunning => {
                if let Some(unwritten) = next.faulted() {
                    unwritten.source_did(&name, steps);
                }
                next.source_record = Some(Phase::Running);
            }
            Action::EndQemu => {
                if !next.complete && !next.guest_ended {
                    next.broken = Some("the source ends QEMU while the guest needs its pages");
                }
                // It is looked at first: one that runs the guest is left alone.
                if next.source_qemu != SourceQemu::Running {
                    next.source_qemu = SourceQemu::Ended;
                }
            }
            Action::Forget => {
                if let Some(mut kept) = next.faulted() {
                    kept.record_stays = true;
                    kept.source_did("Forget fails", steps);
                }
                next.source_record = None;
            }
            Action::Serve => next.served = true,
            Action::Release => {
                if !next.has_run_there && !next.guest_ended {
                    next.broken = Some("pages are given back before the guest has run at the destination");
                }
                next.served = true;
            }
            Action::StopServing => {
                if next.has_run_there && !next.complete && !next.guest_ended {
                    next.broken = Some("the source serves no pages any more while the guest needs them");
                }
                next.served = false;
            }
            Action::LeaveServing => {
                if !next.served {
                    next.broken = Some("the source leaves a guest that may need pages without a vmemd");
                }
            }
            Action::Abort => {}
        }
        next.source_did(&name, steps);
    }

    fn resume_guest(mut self, steps: &mut Steps) {
        if self.source_qemu == SourceQemu::Ended {
            return self.source_on(Event::NotResumed, steps);
        }
        // `migrate_cancel`.
        if self.stream != Stream::None {
            self.cut_stream();
        }
        self.source_qemu = SourceQemu::Running;
        self.source_on(Event::Resumed, steps);
    }

    fn source_records(mut self, phase: Phase, steps: &mut Steps) {
        if let Some(unwritten) = self.faulted() {
            unwritten.source_on(Event::NotRecorded, steps);
        }
        self.source_record = Some(phase);
        self.source_on(Event::Recorded, steps);
    }
}
