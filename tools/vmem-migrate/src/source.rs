// SPDX-License-Identifier: GPL-2.0-or-later
//! The state machine of the source.
//!
//! The source owns the guest until it has recorded [`Phase::Committed`]. From then on the guest does not run here again, unless the
//! destination says FAILED: that it has not run the guest and never will.

use crate::machine::{Machine, Row};
use crate::phase::Phase;

/// The source's machine.
#[derive(Debug)]
pub enum Source {}

/// What the source knows of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// The guest runs here, and the destination prepares for it.
    Offering,
    /// The guest runs here, and the destination fetches pages in rounds.
    Copying,
    /// The guest runs here, and QEMU sends the state that is sent while it runs.
    Sending,
    /// QEMU has stopped the guest, and saves its devices. That may change the guest's memory. The state is kept here.
    Saving,
    /// QEMU has saved all devices: the guest's memory does not change any more. The kept state is sent.
    Stopped,
    /// The destination's QEMU has the state. The source records that the destination owns the guest.
    Committing,
    /// The destination owns the guest.
    Committed,
    /// The destination has said FAILED. The source records that it owns the guest again.
    Reclaiming,
    /// The source owns the guest, and QEMU is to run it again.
    Resuming,
    /// The guest runs at the destination, and pages are served.
    Away,
    /// The end: the guest continues here.
    AtSource,
    /// The end: the guest is here, and QEMU cannot run it. The record stays.
    Stranded,
    /// The destination does not need the source any more. The source records that.
    Parting,
    /// The end: the destination has all of the guest, or the guest has ended there.
    Moved,
    /// The end of this process: the destination owns the guest, and has not said whether the guest runs. The record stays.
    Undecided,
    /// The end of this process: the guest runs at the destination and lacks pages. vmemd continues to serve them. The record stays.
    Unfinished,
}

/// What happens to the source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The destination has said READY.
    Ready,
    /// The rounds are over, or there are none.
    Settled,
    /// QEMU has stopped the guest.
    Stopped,
    /// QEMU has written all of its device state: the guest's memory does not change any more.
    Saved,
    /// The state was sent, and the destination's QEMU has said that it has loaded all of it.
    Sent,
    /// The destination has said FAILED, or in answer to the offer REFUSE.
    Refused,
    /// The destination has said RUNNING.
    Running,
    /// The destination has said COMPLETE.
    Complete,
    /// The destination has said GONE.
    Gone,
    /// The connection to the destination's vmemctl is lost.
    Lost,
    /// The connection could not be made again.
    Unreachable,
    /// The record was written.
    Recorded,
    /// The record could not be written.
    NotRecorded,
    /// QEMU runs the guest, or has it paused as it was before the move.
    Resumed,
    /// QEMU does not run the guest.
    NotResumed,
    /// A signal has asked this process to end.
    Signal,
    /// Anything else that prevents the move from continuing: a time limit, a message out of order, QEMU.
    Trouble,
}

/// What the source does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Begins the rounds in which pages are copied while the guest runs. Answers [`Event::Settled`] if there are none.
    Copy,
    /// Has QEMU send the guest's state. Answers [`Event::Trouble`] or [`Event::Signal`] if that cannot begin.
    SendState,
    /// Has QEMU save the guest's devices. What QEMU writes is kept. Answers [`Event::Trouble`] if that cannot begin.
    Save,
    /// Says START: pages may be fetched. Then lets the kept state through. Answers [`Event::Trouble`] if that fails.
    Start,
    /// Records that the destination owns the guest. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordCommitted,
    /// Says COMMIT. Answers [`Event::Lost`] if that fails.
    Commit,
    /// Connects again, and says COMMIT again. Answers [`Event::Unreachable`] or [`Event::Signal`] if that fails.
    Reconnect,
    /// Records that the guest runs at the destination. If that fails, [`Action::Reconnect`] finds it out again.
    RecordRunning,
    /// Records that the destination does not need the source any more. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordComplete,
    /// Has a supervised vmemd serve, and lets it free pages here that the destination has.
    Release,
    /// Records that the source owns the guest again. Answers [`Event::Recorded`] or [`Event::NotRecorded`].
    RecordPrepared,
    /// Says HEARD: the destination may forget the guest. A destination that does not receive HEARD repeats its final message until a user
    /// ends it.
    Heard,
    /// Says ABORT. If a destination that may have the whole state does not answer, ABORT is said once more, on a new connection.
    Abort,
    /// Cancels QEMU's migration and has QEMU run the guest if it ran before. Answers [`Event::Resumed`] or [`Event::NotResumed`].
    ResumeGuest,
    /// Makes sure that pages are served. A vmemd that serves them is not disturbed.
    Serve,
    /// Ends the serving of pages.
    StopServing,
    /// Leaves the serving of pages to a vmemd without a supervisor.
    LeaveServing,
    /// Ends QEMU, unless its guest was started by hand.
    EndQemu,
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

impl Machine for Source {
    type State = State;
    type Event = Event;
    type Action = Action;

    const TABLE: &'static [Row<S, E, A>] = &[
        // The source owns the guest.
        row(S::Offering, &[E::Ready], S::Copying, &[A::Copy]),
        row(S::Offering, &[E::Refused], S::Resuming, &[A::ResumeGuest]),
        row(
            S::Offering,
            &[E::Lost, E::Trouble, E::Signal],
            S::Resuming,
            &[A::Abort, A::ResumeGuest],
        ),
        row(S::Copying, &[E::Settled], S::Sending, &[A::SendState]),
        row(S::Copying, &[E::Refused], S::Resuming, &[A::ResumeGuest]),
        row(
            S::Copying,
            &[E::Lost, E::Trouble, E::Signal],
            S::Resuming,
            &[A::Abort, A::ResumeGuest],
        ),
        row(S::Sending, &[E::Stopped], S::Saving, &[A::Save]),
        row(S::Sending, &[E::Refused], S::Resuming, &[A::ResumeGuest]),
        row(
            S::Sending,
            &[E::Lost, E::Trouble, E::Signal],
            S::Resuming,
            &[A::Abort, A::ResumeGuest],
        ),
        row(S::Saving, &[E::Saved], S::Stopped, &[A::Start]),
        row(S::Saving, &[E::Refused], S::Resuming, &[A::ResumeGuest]),
        row(
            S::Saving,
            &[E::Lost, E::Trouble, E::Signal],
            S::Resuming,
            &[A::Abort, A::ResumeGuest],
        ),
        row(S::Stopped, &[E::Sent], S::Committing, &[A::RecordCommitted]),
        row(S::Stopped, &[E::Refused], S::Resuming, &[A::ResumeGuest]),
        row(
            S::Stopped,
            &[E::Lost, E::Trouble, E::Signal],
            S::Resuming,
            &[A::Abort, A::ResumeGuest],
        ),
        row(S::Committing, &[E::NotRecorded], S::Resuming, &[A::Abort, A::ResumeGuest]),
        // The destination owns the guest.
        row(S::Committing, &[E::Recorded], S::Committed, &[A::Commit]),
        row(S::Committed, &[E::Lost], S::Committed, &[A::Reconnect]),
        row(S::Committed, &[E::Running], S::Away, &[A::RecordRunning, A::Release]),
        row(S::Committed, &[E::Refused], S::Reclaiming, &[A::RecordPrepared]),
        row(
            S::Committed,
            &[E::Unreachable, E::Trouble, E::Signal],
            S::Undecided,
            &[A::LeaveServing],
        ),
        row(S::Away, &[E::Running], S::Away, &[A::Release]),
        row(S::Away, &[E::Lost], S::Away, &[A::Reconnect]),
        row(S::Away, &[E::Complete, E::Gone], S::Parting, &[A::RecordComplete]),
        row(
            S::Parting,
            &[E::Recorded],
            S::Moved,
            &[A::Heard, A::StopServing, A::EndQemu, A::Forget],
        ),
        // The destination must not forget the guest before this host does: `recover` would ask in vain.
        row(
            S::Parting,
            &[E::NotRecorded],
            S::Moved,
            &[A::StopServing, A::EndQemu, A::Forget, A::Heard],
        ),
        row(
            S::Away,
            &[E::Unreachable, E::Trouble, E::Signal],
            S::Unfinished,
            &[A::LeaveServing],
        ),
        // The source owns the guest again.
        row(S::Reclaiming, &[E::Recorded], S::Resuming, &[A::Heard, A::ResumeGuest]),
        // The destination must not forget the guest before this host has recorded whose it is.
        row(S::Reclaiming, &[E::NotRecorded], S::Resuming, &[A::ResumeGuest]),
        // A destination that has said FAILED waits for HEARD.
        row(
            S::Resuming,
            &[E::Resumed],
            S::AtSource,
            &[A::StopServing, A::Forget, A::Heard],
        ),
        row(S::Resuming, &[E::NotResumed], S::Stranded, &[]),
    ];
}

/// The state and actions from which the source resumes after a death, by what it has recorded.
pub fn resume(recorded: Phase) -> (State, &'static [Action]) {
    match recorded {
        // The source has not said COMMIT, or has received FAILED.
        Phase::Prepared => (S::Resuming, &[A::Abort, A::ResumeGuest]),
        // The guest may need its pages before the destination can answer.
        Phase::Running => (S::Away, &[A::Serve, A::Reconnect]),
        // The source has received COMPLETE or GONE.
        Phase::Complete => (S::Moved, &[A::StopServing, A::EndQemu, A::Forget, A::Heard]),
        _ => (S::Committed, &[A::Serve, A::Reconnect]),
    }
}
