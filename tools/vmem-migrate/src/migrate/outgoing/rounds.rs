// SPDX-License-Identifier: GPL-2.0-or-later
//! The rounds of the source's vmemd, from their beginning to the remainder.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use vmem_cli::chain;
use vmem_control::Finished;
use vmem_process::printable;

use super::{OutgoingMigration, STALL, within};
use crate::error::Cause;
use crate::options::Mode;
use crate::page_server::News;
use crate::source::{Event, State};

/// The rounds of a move that has some.
#[derive(Debug)]
pub(in crate::migrate) struct Rounds {
    mode: Mode,
    /// The destination takes the rounds. If not, the log ends unused.
    is_staged: bool,
    /// The source's vmemd has said that the guest should stop. It says so once, and may do so before READY arrives.
    is_settled: bool,
    /// What is left can be sent while the guest stands still.
    fits: bool,
    /// The source's vmemd has been told that the guest has stopped.
    is_ending: bool,
    /// The last take is done.
    is_over: bool,
    /// Where they stood when vmemd last said so.
    standing: Option<vmem_control::Rounds>,
    /// Bytes that had been staged at the destination at the latest report.
    staged: u64,
    /// The device state is kept until all pages are at the destination.
    awaits_pages: bool,
}

impl Rounds {
    /// Rounds that the source's vmemd is ready to send.
    pub(in crate::migrate) fn new(mode: Mode) -> Self {
        Self {
            mode,
            is_staged: false,
            is_settled: false,
            fits: false,
            is_ending: false,
            is_over: false,
            standing: None,
            staged: 0,
            awaits_pages: false,
        }
    }
}

impl OutgoingMigration {
    /// The destination is ready; whether it takes rounds, and compares the memory. `None` if it does although that was not offered.
    pub(super) fn ready(&mut self, takes_rounds: bool, verifies: bool) -> Option<Event> {
        if verifies && self.verification.is_none() {
            return None;
        }
        match &mut self.rounds {
            Some(rounds) => {
                rounds.is_staged = takes_rounds;
                if !takes_rounds {
                    self.report
                        .note("the destination takes no rounds: all pages follow after the switch (post-copy)");
                }
                Some(Event::Ready)
            }
            None => (!takes_rounds).then_some(Event::Ready),
        }
    }

    /// Begins the rounds. Without rounds, the guest can be moved at once.
    pub(super) fn copy(&mut self) -> Option<Event> {
        self.deadline = None;
        if self
            .rounds
            .as_ref()
            .is_none_or(|rounds| !rounds.is_staged || rounds.is_settled)
        {
            return Some(Event::Settled);
        }
        // Rounds end by themselves, but not if the destination takes no pages.
        self.deadline = within(STALL);
        self.report.note("the guest's memory is sent in rounds while the guest runs");
        None
    }

    /// Whether a `vmemd` that ends takes the rounds with it.
    fn needs_rounds(&self) -> bool {
        let state = self.owner.state();
        matches!(state, State::Offering | State::Copying | State::Sending | State::Saving)
            && self.rounds.as_ref().is_some_and(|rounds| !rounds.is_over)
    }

    /// Handles what the source's vmemd has reported.
    pub(super) fn poll_pages(&mut self) -> Result<Option<Event>, Cause> {
        let mut event = None;
        for news in self.export.news() {
            match news {
                News::Note(text) => self.report.note(&text),
                News::Ended(why) if self.needs_rounds() => {
                    return Err(Cause::other(format!("the rounds of the guest's memory are lost: {why}")));
                }
                News::Ended(why) => self.report.note(&why),
                News::Rounds(standing) => self.stands(standing),
                News::Round(round) => {
                    if self.owner.state() == State::Copying {
                        self.deadline = within(STALL);
                    }
                    self.report.round(&round);
                }
                News::Settled(settled) => {
                    // On a new connection, vmemd says it again.
                    let Some(rounds) = self.rounds.as_mut().filter(|rounds| !rounds.is_settled) else {
                        continue;
                    };
                    (rounds.is_settled, rounds.fits) = (true, settled.fits);
                    self.report.note(&settled.reason);
                    if self.owner.state() == State::Copying {
                        event = Some(Event::Settled);
                    }
                }
                News::Finished(finished) => event = self.finished(finished).or(event),
                News::FinishRefused(why) if self.is_ending() => {
                    return Err(Cause::other(format!(
                        "the source's vmemd does not take the last pages of the guest: {why}"
                    )));
                }
                // It was given to a vmemd that was started after the last pages were taken, or to one that has taken them.
                News::FinishRefused(_) => {}
                News::Failed(why) if self.needs_rounds() => return Err(Cause::other(why)),
                News::Failed(why) => self.report.note(&why),
            }
        }
        Ok(event)
    }

    /// vmemd has said where its rounds stand.
    fn stands(&mut self, standing: vmem_control::Rounds) {
        let Some(rounds) = self.rounds.as_mut().filter(|rounds| !rounds.is_over) else {
            return;
        };
        // A user may have changed it.
        if let Ok(mode) = Mode::from_str(&standing.mode, false) {
            rounds.mode = mode;
        }
        if rounds.is_staged && matches!(self.owner.state(), State::Copying | State::Sending) {
            self.report.rounds(&standing);
        }
        rounds.standing = Some(standing);
    }

    /// Where the rounds stand, as long as they run.
    pub(super) fn standing(&self) -> Option<&vmem_control::Rounds> {
        let rounds = self.rounds.as_ref().filter(|rounds| rounds.is_staged && !rounds.is_over);
        rounds?.standing.as_ref()
    }

    /// The name of the mode; empty if it is not known.
    pub(super) fn mode(&self) -> &'static str {
        match self.rounds.as_ref().map(|rounds| rounds.mode) {
            Some(Mode::Auto) => "auto",
            Some(Mode::Precopy) => "precopy",
            Some(Mode::Hybrid) => "hybrid",
            None if self.resumed => "",
            Some(Mode::Postcopy) | None => "postcopy",
        }
    }

    /// vmemd has taken the last pages. On a new connection, it gets the order again, and answers again.
    fn finished(&mut self, finished: Finished) -> Option<Event> {
        let rounds = self.rounds.as_mut().filter(|rounds| rounds.is_ending && !rounds.is_over)?;
        rounds.is_over = true;
        let did_fit = rounds.fits;
        // What counts is left now, and not what was left when the guest was told to stop.
        rounds.fits = finished.fits.unwrap_or(did_fit);
        let is_late = rounds.is_staged && rounds.mode == Mode::Auto && did_fit && !rounds.fits;
        self.report.remainder(finished.remainder_bytes);
        if is_late {
            self.report
                .note("the guest has written more before it stopped than can be sent within the downtime: the rest follows after the switch");
        }
        Some(Event::Saved)
    }

    /// Stores why the rounds are lost. The destination may have ended them, and says why.
    pub(super) fn lost_rounds(&mut self, cause: Cause) -> Event {
        match self.refusal() {
            Some(reason) => {
                self.cause = Some(Cause::other(format!(
                    "{}; the destination: {}",
                    chain(&cause),
                    printable(&reason)
                )));
                Event::Refused
            }
            None => self.fail(cause),
        }
    }

    /// QEMU has saved all devices. Without rounds, the memory does not change any more; with rounds, the last pages are taken first.
    pub(super) fn saved(&mut self) -> Option<Event> {
        let Some(rounds) = &mut self.rounds else {
            return Some(Event::Saved);
        };
        if !std::mem::replace(&mut rounds.is_ending, true) {
            self.export.finish();
        }
        None
    }

    /// Whether the last pages are being taken, and QEMU has nothing more to say.
    pub(super) fn is_ending(&self) -> bool {
        self.rounds.as_ref().is_some_and(|rounds| rounds.is_ending && !rounds.is_over)
    }

    /// START was said: lets the device state through, or keeps it until all pages are there.
    pub(super) fn let_state_through(&mut self) -> Result<(), Cause> {
        if let Some(rounds) = self.rounds.as_mut().filter(|rounds| rounds.is_staged) {
            rounds.awaits_pages = match rounds.mode {
                Mode::Precopy => true,
                Mode::Auto => rounds.fits,
                Mode::Hybrid | Mode::Postcopy => false,
            };
        }
        self.begin_verification();
        if self.awaits_pages() { Ok(()) } else { self.release_state() }
    }

    /// Whether the guest stands still until all pages are at the destination.
    pub(super) fn awaits_pages(&self) -> bool {
        self.awaits_verification() || self.rounds.as_ref().is_some_and(|rounds| rounds.awaits_pages)
    }

    fn release_state(&self) -> Result<(), Cause> {
        let failed = Cause::call("cannot send the guest's state");
        self.stream()?.release().map_err(failed)
    }

    /// The destination has reported how far its pages are.
    pub(super) fn pages_at(&mut self, progress: &crate::report::Arrival) -> Result<(), Cause> {
        self.verification_at(progress);
        let is_copying = self.owner.state() == State::Copying;
        let Some(rounds) = &mut self.rounds else { return Ok(()) };
        if progress.staged > rounds.staged {
            rounds.staged = progress.staged;
            if is_copying {
                self.deadline = within(STALL);
            }
        }
        if progress.is_complete && rounds.awaits_pages && !self.awaits_verification() {
            self.report.note("all pages are at the destination");
            self.pages_are_there()?;
        }
        Ok(())
    }

    /// The guest need not stand still for its pages any more.
    pub(super) fn pages_are_there(&mut self) -> Result<(), Cause> {
        if let Some(rounds) = &mut self.rounds {
            rounds.awaits_pages = false;
        }
        self.release_state()
    }

    /// How long to wait for QEMU at once.
    pub(super) fn qemu_until(&self) -> Instant {
        // What the guest stands still for comes from elsewhere.
        let pause = if self.awaits_pages() || self.is_ending() {
            Duration::from_millis(2)
        } else {
            super::POLL_INTERVAL
        };
        Instant::now() + pause
    }
}
