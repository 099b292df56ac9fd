// SPDX-License-Identifier: GPL-2.0-or-later
//! What happens by itself: in QEMU, on the network, and what kills.

use vmem_migrate::Phase;
use vmem_migrate::destination::Destination;
use vmem_migrate::source::Source;

use super::{DestinationQemu, SourceQemu, Steps, Stream, World};

impl World {
    pub(super) fn environment_steps(&self, steps: &mut Steps) {
        self.stream_steps(steps);
        if self.unanswered_cont && self.destination_qemu == DestinationQemu::Loaded {
            self.then("destination's QEMU runs the guest, late", steps, Self::run_there);
        }
        if self.destination_qemu == DestinationQemu::Running && !self.complete {
            self.then("all pages are there", steps, |next| next.complete = true);
        }
        if let Some(next) = self.faulted() {
            next.fault_steps(steps);
        }
    }

    /// As [`then`](Self::then), and a word may be lost.
    fn then_lost(&self, name: &str, steps: &mut Steps, change: impl FnOnce(&mut Self)) {
        self.then(name, steps, |next| {
            next.word_lost = true;
            change(next);
        });
    }

    fn then(&self, name: &str, steps: &mut Steps, change: impl FnOnce(&mut Self)) {
        let mut next = self.clone();
        change(&mut next);
        steps.push((name.to_owned(), next));
    }

    /// QEMU's own part of the move.
    fn stream_steps(&self, steps: &mut Steps) {
        let flows = self.stream == Stream::Flowing;
        if flows && self.source_qemu == SourceQemu::Running {
            self.then("source's QEMU stops the guest", steps, |next| {
                next.source_qemu = SourceQemu::Stopped
            });
        }
        if flows && self.source_qemu == SourceQemu::Saving {
            self.then("source's QEMU has saved everything", steps, |next| {
                next.source_qemu = SourceQemu::Saved
            });
        }
        if flows && self.source_qemu == SourceQemu::Draining && self.destination_qemu == DestinationQemu::Incoming {
            self.then("destination's QEMU has the state", steps, |next| {
                next.destination_qemu = DestinationQemu::Loaded;
            });
        }
        if flows && self.destination_qemu == DestinationQemu::Loaded {
            self.then("destination's relay sees that", steps, |next| next.stream = Stream::Seen);
        }
        let seen = matches!(self.stream, Stream::Seen | Stream::CutAfterSeen);
        if seen && self.source_qemu == SourceQemu::Draining {
            self.then("source's QEMU hears that", steps, |next| {
                next.source_qemu = SourceQemu::Postmigrate
            });
        }
        let fails = matches!(self.stream, Stream::Cut | Stream::CutAfterSeen);
        let migrates = matches!(
            self.source_qemu,
            SourceQemu::Stopped | SourceQemu::Saving | SourceQemu::Saved | SourceQemu::Draining
        );
        if fails && migrates {
            // It runs the guest again by itself.
            self.then("source's QEMU gives the migration up", steps, |next| {
                next.source_qemu = SourceQemu::Running;
                next.stream = Stream::Cut;
            });
        }
    }

    /// This world has one fault less already.
    fn fault_steps(self, steps: &mut Steps) {
        if self.source.as_ref().is_some_and(|process| !process.is_over::<Source>()) {
            self.then_lost("source's vmemctl is killed", steps, |next| {
                next.source = None;
                next.link.source = false;
                // The relay was its own.
                next.cut_stream();
            });
        }
        if self
            .destination
            .as_ref()
            .is_some_and(|process| !process.is_over::<Destination>())
        {
            self.then_lost("destination's vmemctl is killed", steps, |next| {
                next.destination = None;
                next.destination_is_over();
            });
        }
        if self.source_qemu == SourceQemu::Saving {
            self.then("source's QEMU never finishes saving", steps, |next| {
                next.source_qemu = SourceQemu::SavingForever;
            });
        }
        if self.qemus_die && self.source_qemu != SourceQemu::Ended {
            self.then("source's QEMU is killed", steps, |next| {
                // Its memory stays in files. Until the guest is given away, the guest ends with it.
                let is_given = matches!(next.source_record, Some(Phase::Committed | Phase::Running | Phase::Complete));
                next.guest_ended |= !is_given;
                next.source_qemu = SourceQemu::Ended;
                next.cut_stream();
            });
        }
        if self.qemus_die && self.destination_qemu != DestinationQemu::Ended {
            self.then("destination's QEMU is killed", steps, |next| {
                next.kill_destination_qemu();
                next.cut_stream();
            });
        }
        if !self.link.broken {
            self.then_lost("the network loses the connection", steps, |next| {
                next.link.sever();
                next.cut_stream();
            });
        }
    }
}
