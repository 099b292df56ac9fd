// SPDX-License-Identifier: GPL-2.0-or-later
//! State machines that are tables.

use std::fmt::Debug;
use std::hash::Hash;

/// One row of a table: in `state`, after one of `events`, `next` follows and `actions` are due.
#[derive(Debug)]
pub struct Row<S: 'static, E: 'static, A: 'static> {
    /// The state before.
    pub state: S,
    /// What happens.
    pub events: &'static [E],
    /// The state after.
    pub next: S,
    /// What is to be done then, in this order. Only the last one may answer with an event.
    pub actions: &'static [A],
}

/// A state machine.
pub trait Machine {
    /// Its states.
    type State: Copy + Eq + Hash + Debug + 'static;
    /// What happens to it.
    type Event: Copy + Eq + Hash + Debug + 'static;
    /// What it has done.
    type Action: Copy + Eq + Hash + Debug + 'static;

    /// The table: every transition of the machine.
    const TABLE: &'static [Row<Self::State, Self::Event, Self::Action>];

    /// The next state and the due actions after `event` in `state`. `None`: the table has no such row.
    fn step(state: Self::State, event: Self::Event) -> Option<(Self::State, &'static [Self::Action])> {
        let row = Self::TABLE
            .iter()
            .find(|row| row.state == state && row.events.contains(&event))?;
        Some((row.next, row.actions))
    }

    /// Whether nothing follows this state.
    fn is_end(state: Self::State) -> bool {
        !Self::TABLE.iter().any(|row| row.state == state)
    }
}

/// The table has no row for this event in this state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{event} does not belong to the state {state}")]
pub struct Unexpected {
    /// The state, which stays as it is.
    pub state: String,
    /// The event.
    pub event: String,
}

/// The state of one guest's move at one host.
#[derive(Debug)]
pub struct Owner<M: Machine> {
    state: M::State,
}

impl<M: Machine> Owner<M> {
    /// Begins in this state.
    pub fn new(state: M::State) -> Self {
        Self { state }
    }

    /// The state.
    pub fn state(&self) -> M::State {
        self.state
    }

    /// Whether nothing follows any more.
    pub fn is_over(&self) -> bool {
        M::is_end(self.state)
    }

    /// Takes the event, and returns what is to be done.
    ///
    /// # Errors
    ///
    /// [`Unexpected`] if the table has no such row. The state stays as it is.
    pub fn on(&mut self, event: M::Event) -> Result<&'static [M::Action], Unexpected> {
        let (next, actions) = M::step(self.state, event).ok_or_else(|| Unexpected {
            state: format!("{:?}", self.state),
            event: format!("{event:?}"),
        })?;
        self.state = next;
        Ok(actions)
    }
}
