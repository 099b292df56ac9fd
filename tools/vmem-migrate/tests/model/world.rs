// SPDX-License-Identifier: GPL-2.0-or-later
//! Both hosts and the network.

mod destination;
mod environment;
mod source;

use vmem_migrate::Phase;
use vmem_migrate::destination::{self as there, Destination};
use vmem_migrate::source::{self as here, Source};

use super::explore::System;
use super::link::{Link, ToSource};
use super::process::Process;

/// The source's QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum SourceQemu {
    Running,
    /// It has stopped the guest, and waits for the word to save the devices.
    Stopped,
    /// It saves the devices, which may change the guest's memory.
    Saving,
    /// As before, and it never finishes.
    SavingForever,
    /// It has saved everything, and the source keeps that.
    Saved,
    /// The source lets through what was kept.
    Draining,
    /// The other QEMU has said that it has loaded the state.
    Postmigrate,
    Ended,
}

/// The destination's QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum DestinationQemu {
    Incoming,
    /// It has the state, and the guest paused.
    Loaded,
    Running,
    Ended,
}

/// How far QEMU's stream is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Stream {
    None,
    Flowing,
    /// The destination's relay has seen QEMU's word that the state is loaded.
    Seen,
    /// Nothing goes through any more, and that word has not.
    Cut,
    /// Nothing goes through any more, and that word may be on its way.
    CutAfterSeen,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    /// So many may still happen.
    pub(crate) faults: u8,
    /// QEMU may be killed, too.
    pub(crate) qemus_die: bool,
    /// Pages could be fetched before QEMU had saved everything, so they may be old.
    pub(crate) started_early: bool,
    pub(crate) source: Option<Process<here::State, here::Action>>,
    pub(crate) source_record: Option<Phase>,
    pub(crate) source_qemu: SourceQemu,
    pub(crate) destination: Option<Process<there::State, there::Action>>,
    pub(crate) destination_record: Option<Phase>,
    pub(crate) destination_qemu: DestinationQemu,
    /// A command to run the guest that QEMU has not answered.
    pub(crate) unanswered_cont: bool,
    /// A vmemd serves the source's pages.
    pub(crate) served: bool,
    /// A process or a connection was lost, or a process has given up, and a word with it: nobody may be left to say it again.
    pub(crate) word_lost: bool,
    /// A record could not be removed: somebody has to do that.
    pub(crate) record_stays: bool,
    /// The guest has run at the destination.
    pub(crate) has_run_there: bool,
    /// All pages are at the destination.
    pub(crate) complete: bool,
    /// The QEMU that had the guest was killed, or died of it.
    pub(crate) guest_ended: bool,
    pub(crate) stream: Stream,
    pub(crate) link: Link,
    /// What must not be has been.
    pub(crate) broken: Option<&'static str>,
}

impl World {
    /// The guest is offered: the destination is ready, or refuses.
    pub(crate) fn initial(faults: u8, qemus_die: bool) -> [Self; 2] {
        let link = |word, destination| Link {
            source: true,
            destination,
            to_source: vec![word],
            ..Link::default()
        };
        let ready = Self {
            faults,
            qemus_die,
            started_early: false,
            source: Some(Process::new((here::State::Offering, &[]), false)),
            source_record: Some(Phase::Prepared),
            source_qemu: SourceQemu::Running,
            destination: Some(Process::new((there::State::Prepared, &[]), false)),
            destination_record: Some(Phase::Prepared),
            destination_qemu: DestinationQemu::Incoming,
            unanswered_cont: false,
            served: true,
            word_lost: false,
            record_stays: false,
            has_run_there: false,
            complete: false,
            guest_ended: false,
            stream: Stream::None,
            link: link(ToSource::Ready, true),
            broken: None,
        };
        let refused = Self {
            destination: None,
            destination_record: None,
            destination_qemu: DestinationQemu::Ended,
            link: link(ToSource::Failed, false),
            ..ready.clone()
        };
        [ready, refused]
    }

    /// The same, after something that counts as a fault; `None` if there may be no more.
    pub(crate) fn faulted(&self) -> Option<Self> {
        let faults = self.faults.checked_sub(1)?;
        Some(Self { faults, ..self.clone() })
    }

    /// Whether the destination's process takes connections of this guest's source.
    pub(crate) fn is_listening(&self) -> bool {
        self.destination
            .as_ref()
            .is_some_and(|process| !process.is_over::<Destination>())
    }

    /// Nothing goes through QEMU's stream any more.
    pub(crate) fn cut_stream(&mut self) {
        self.stream = match self.stream {
            Stream::Seen | Stream::CutAfterSeen => Stream::CutAfterSeen,
            _ => Stream::Cut,
        };
    }

    /// Whether the destination's side has nothing left to do.
    fn is_destination_settled(&self) -> bool {
        let over = self.destination.as_ref().is_none_or(Process::is_over::<Destination>);
        over && (self.destination_record.is_none() || self.record_stays)
    }

    /// Whether the source's side has nothing left to do.
    fn is_source_settled(&self) -> bool {
        let over = self.source.as_ref().is_none_or(Process::is_over::<Source>);
        over && (self.source_record.is_none() || self.record_stays)
    }
}

/// Things that can happen next, with their names.
type Steps = Vec<(String, World)>;

impl System for World {
    fn steps(&self) -> Vec<(String, Self)> {
        let mut steps = Vec::new();
        self.source_steps(&mut steps);
        self.destination_steps(&mut steps);
        self.environment_steps(&mut steps);
        steps
    }

    fn violation(&self) -> Option<&'static str> {
        let runs_here = self.source_qemu == SourceQemu::Running;
        let runs_there = self.destination_qemu == DestinationQemu::Running;
        match self.broken {
            None if runs_here && runs_there => Some("the guest runs on both sides"),
            None if runs_there && self.started_early => Some("the guest runs at the destination with pages that may be old"),
            None if runs_here && self.has_run_there => Some("the guest runs at the source after it has run at the destination"),
            broken => broken,
        }
    }

    fn is_good(&self) -> bool {
        let runs_here = self.source_qemu == SourceQemu::Running;
        let runs_there = self.destination_qemu == DestinationQemu::Running;
        let is_settled = self.is_source_settled() && (self.word_lost || self.is_destination_settled());
        self.guest_ended || is_settled && (runs_here || (runs_there && self.complete))
    }
}
