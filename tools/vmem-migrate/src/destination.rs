// SPDX-License-Identifier: GPL-2.0-or-later
//! The state machine of the destination.
//!
//! The destination owns the guest once it has recorded [`Phase::Committed`]. It records [`Phase::Starting`] before it has QEMU run the
//! guest: from then on the guest may have run here, and FAILED is never said.

use crate::machine::{Machine, Row};
use crate::phase::Phase;

/// The destination's machine.
#[derive(Debug)]
pub enum Destination {}

/// What the destination knows of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Everything is prepared, and the guest's state arrives.
    Prepared,
    /// The connection to the source is lost. Has QEMU told the source's QEMU that it has the whole state?
    Judging,
    /// The connection to the source is lost, and the source may have said COMMIT: QEMU keeps the guest ready and paused.
    Orphaned,
    /// The guest cannot be received. Has QEMU told the source's QEMU that it has the whole state?
    Failing,
    /// The source has said COMMIT. The destination records that it owns the guest.
    Committing,
    /// The destination owns the guest, and QEMU loads the rest of its state.
    Committed,
    /// QEMU is ready. The destination records that the guest may run from now on.
    Starting,
    /// QEMU is told to run the guest.
    Continuing,
    /// QEMU has refused to run the guest. The destination records that it has not run.
    Unstarting,
    /// An earlier process may have told QEMU to run the guest, and QEMU is asked for the guest's state.
    Restarting,
    /// QEMU is told to run a guest that may have run before.
    Recontinuing,
    /// The guest runs here, and its pages arrive.
    Running,
    /// All pages are present. The destination records that.
    Completing,
    /// All pages are present, and the source must receive COMPLETE.
    Complete,
    /// The guest has not run here. QEMU must end, so that no process can run the guest later.
    Ending,
    /// A signal has arrived, and the guest has not run here. Does QEMU live?
    Interrupted,
    /// The guest may have run here. Does QEMU live?
    Doubting,
    /// The guest has not run here and QEMU has ended. The destination records that.
    Returning,
    /// The guest has not run here and never will, and the source must receive FAILED.
    Failed,
    /// The guest may have run here, QEMU has ended, and the source must receive GONE.
    Gone,
    /// The end: the source owns the guest, and this host has nothing of it.
    Refused,
    /// The end: the source owns the guest again.
    Returned,
    /// The end: the guest is here with all its memory.
    Finished,
    /// The end: the guest has ended here.
    Ended,
    /// The end of this process: QEMU, vmemd and what is recorded stay as they are.
    Left,
}

/// What happens to the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The source has said START.
    Start,
    /// The source has said COMMIT.
    Commit,
    /// The source has said ABORT.
    Abort,
    /// The source has said HEARD, or ABORT in answer to FAILED.
    Heard,
    /// The connection to the source's vmemctl is lost.
    Lost,
    /// The source has connected again.
    Back,
    /// QEMU may have told the source's QEMU that it has the whole state: the source may have said COMMIT.
    MayHaveLoaded,
    /// QEMU has not told the source's QEMU that it has the whole state, and cannot do so any more.
    HasNotLoaded,
    /// The record was written.
    Recorded,
    /// The record could not be written.
    NotRecorded,
    /// QEMU has the whole state, and has the guest paused or runs it.
    Loaded,
    /// QEMU cannot load the state, or does not answer.
    NotLoaded,
    /// QEMU runs the guest, or has it paused if it was paused at the source.
    Continued,
    /// QEMU has refused to run the guest.
    NotContinued,
    /// QEMU is certain to have ended.
    QemuEnded,
    /// QEMU is not certain to have ended.
    QemuLives,
    /// All pages are present.
    Complete,
    /// The source has not reconnected for the final message.
    Unheard,
    /// A signal has asked this process to end.
    Signal,
    /// Anything else that prevents the move from continuing.
    Trouble,
}

/// What the destination does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Has vmemd fetch pages.
    StartPages,
    /// Records that the destination owns the guest. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordCommitted,
    /// Lets no more of the state through in either direction. Answers [`Event::MayHaveLoaded`] or [`Event::HasNotLoaded`].
    CutState,
    /// Has vmemd started again whenever it ends.
    KeepPages,
    /// Waits until QEMU has the guest's state. Answers [`Event::Loaded`], [`Event::NotLoaded`] or [`Event::Signal`].
    AwaitState,
    /// Records that QEMU is about to be told to run the guest. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordStarting,
    /// Has QEMU run the guest if it ran at the source. Answers [`Event::Continued`], [`Event::NotContinued`] if QEMU refuses the first
    /// attempt, [`Event::Trouble`] or [`Event::Signal`].
    ContinueGuest,
    /// Records that the guest runs here. If that fails, `starting` says nearly the same.
    RecordRunning,
    /// Says RUNNING. If the source does not hear it, the source asks again.
    SayRunning,
    /// Lets the source free the pages that are present here.
    Release,
    /// Records that all pages are present. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordComplete,
    /// Says COMPLETE.
    SayComplete,
    /// Ends QEMU, unless the guest runs in it. Answers [`Event::QemuEnded`] or [`Event::QemuLives`].
    EndUnstartedQemu,
    /// Checks whether QEMU lives. Answers [`Event::QemuEnded`] or [`Event::QemuLives`].
    LookAtQemu,
    /// Records that the guest has not run here and never will. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordFailed,
    /// Ends vmemd: no more pages arrive.
    StopPages,
    /// Ends QEMU.
    EndQemu,
    /// Says FAILED.
    SayFailed,
    /// Says GONE.
    SayGone,
    /// Leaves the guest's pages to a vmemd without a supervisor.
    LeavePages,
    /// Removes the record.
    Forget,
}

use Action as A;
use Event as E;
use State as S;

const fn row(state: S, events: &'static [E], next: S, actions: &'static [A]) -> Row<S, E, A> {
    Row {
        state,
        events,
        next,
        actions,
    }
}

/// This host has never owned the guest.
const REFUSE: &[A] = &[A::StopPages, A::EndQemu, A::SayFailed, A::Forget];

impl Machine for Destination {
    type State = State;
    type Event = Event;
    type Action = Action;

    const TABLE: &'static [Row<S, E, A>] = &[
        // The source owns the guest, or may own it.
        row(S::Prepared, &[E::Start], S::Prepared, &[A::StartPages]),
        row(S::Prepared, &[E::Commit], S::Committing, &[A::StartPages, A::RecordCommitted]),
        row(S::Prepared, &[E::Back], S::Prepared, &[]),
        row(S::Prepared, &[E::Abort], S::Refused, REFUSE),
        row(S::Prepared, &[E::Lost], S::Judging, &[A::CutState]),
        row(S::Prepared, &[E::Trouble, E::Signal], S::Failing, &[A::CutState]),
        row(S::Judging, &[E::HasNotLoaded], S::Refused, REFUSE),
        row(S::Judging, &[E::MayHaveLoaded], S::Orphaned, &[]),
        row(S::Orphaned, &[E::Back], S::Prepared, &[]),
        row(S::Orphaned, &[E::Signal], S::Left, &[A::LeavePages]),
        row(S::Failing, &[E::HasNotLoaded], S::Refused, REFUSE),
        row(S::Failing, &[E::MayHaveLoaded], S::Ending, &[A::EndUnstartedQemu]),
        row(S::Committing, &[E::NotRecorded], S::Failing, &[A::CutState]),
        // The destination owns the guest, which has not run here.
        row(S::Committing, &[E::Recorded], S::Committed, &[A::KeepPages, A::AwaitState]),
        row(S::Committed, &[E::Loaded], S::Starting, &[A::RecordStarting]),
        row(S::Committed, &[E::NotLoaded], S::Ending, &[A::EndUnstartedQemu]),
        row(S::Committed, &[E::Signal], S::Interrupted, &[A::LookAtQemu]),
        row(S::Interrupted, &[E::QemuEnded], S::Returning, &[A::RecordFailed]),
        row(S::Interrupted, &[E::QemuLives], S::Left, &[A::LeavePages]),
        row(S::Starting, &[E::NotRecorded], S::Ending, &[A::EndUnstartedQemu]),
        row(S::Ending, &[E::QemuEnded], S::Returning, &[A::RecordFailed]),
        row(S::Ending, &[E::QemuLives], S::Left, &[A::LeavePages]),
        row(
            S::Returning,
            &[E::Recorded, E::NotRecorded],
            S::Failed,
            &[A::StopPages, A::SayFailed],
        ),
        row(S::Failed, &[E::Lost], S::Failed, &[]),
        row(S::Failed, &[E::Back], S::Failed, &[A::SayFailed]),
        row(S::Failed, &[E::Heard], S::Returned, &[A::Forget]),
        row(S::Failed, &[E::Signal], S::Left, &[]),
        // The guest may have run here.
        row(S::Starting, &[E::Recorded], S::Continuing, &[A::ContinueGuest]),
        row(S::Continuing, &[E::NotContinued], S::Unstarting, &[A::RecordCommitted]),
        row(S::Continuing, &[E::Trouble, E::Signal], S::Doubting, &[A::LookAtQemu]),
        row(S::Unstarting, &[E::Recorded], S::Ending, &[A::EndUnstartedQemu]),
        row(S::Unstarting, &[E::NotRecorded], S::Doubting, &[A::LookAtQemu]),
        row(S::Restarting, &[E::Loaded], S::Recontinuing, &[A::ContinueGuest]),
        row(S::Restarting, &[E::NotLoaded, E::Signal], S::Doubting, &[A::LookAtQemu]),
        row(
            S::Recontinuing,
            &[E::NotContinued, E::Trouble, E::Signal],
            S::Doubting,
            &[A::LookAtQemu],
        ),
        row(S::Doubting, &[E::QemuEnded], S::Gone, &[A::StopPages, A::SayGone]),
        row(S::Doubting, &[E::QemuLives], S::Left, &[A::LeavePages]),
        // The guest runs here.
        row(
            S::Continuing,
            &[E::Continued],
            S::Running,
            &[A::RecordRunning, A::SayRunning, A::Release],
        ),
        row(
            S::Recontinuing,
            &[E::Continued],
            S::Running,
            &[A::RecordRunning, A::SayRunning, A::Release],
        ),
        row(S::Running, &[E::Commit], S::Running, &[A::SayRunning]),
        // HEARD answers an earlier process, whose record of COMPLETE is lost.
        row(S::Running, &[E::Lost, E::Back, E::Heard], S::Running, &[]),
        row(S::Running, &[E::Complete], S::Completing, &[A::RecordComplete]),
        row(S::Running, &[E::QemuEnded], S::Gone, &[A::StopPages, A::SayGone]),
        row(S::Running, &[E::Trouble, E::Signal], S::Left, &[A::LeavePages]),
        row(S::Completing, &[E::Recorded, E::NotRecorded], S::Complete, &[A::SayComplete]),
        row(S::Complete, &[E::Lost], S::Complete, &[]),
        row(S::Complete, &[E::Back], S::Complete, &[A::SayComplete]),
        row(S::Complete, &[E::Heard], S::Finished, &[A::Forget]),
        row(S::Complete, &[E::Unheard, E::Signal], S::Left, &[]),
        row(S::Gone, &[E::Lost], S::Gone, &[]),
        row(S::Gone, &[E::Back], S::Gone, &[A::SayGone]),
        row(S::Gone, &[E::Heard], S::Ended, &[A::Forget]),
        row(S::Gone, &[E::Unheard, E::Signal], S::Left, &[]),
    ];
}

/// The state and actions from which the destination resumes after a death, by what it has recorded and whether QEMU lives.
pub fn resume(recorded: Phase, qemu_lives: bool) -> (State, &'static [Action]) {
    match (recorded, qemu_lives) {
        (Phase::Prepared, true) => (S::Orphaned, &[A::KeepPages]),
        (Phase::Committed, true) => (S::Committed, &[A::KeepPages, A::AwaitState]),
        (Phase::Prepared | Phase::Committed, false) => (S::Returning, &[A::RecordFailed]),
        (Phase::Starting, true) => (S::Restarting, &[A::KeepPages, A::AwaitState]),
        (Phase::Running, true) => (S::Running, &[A::KeepPages, A::SayRunning, A::Release]),
        (Phase::Starting | Phase::Running, false) => (S::Gone, &[A::StopPages, A::SayGone]),
        (Phase::Complete, _) => (S::Complete, &[A::SayComplete]),
        (Phase::Failed, _) => (S::Failed, &[A::StopPages, A::SayFailed]),
    }
}
