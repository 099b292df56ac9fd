// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that runs one of the machines: its state, and what it has yet to do.

use vmem_migrate::Machine;

/// A process, between two of its actions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Process<S, A> {
    pub(crate) state: S,
    /// The next one first.
    pub(crate) due: Vec<A>,
    /// It was begun again after the death of another one.
    pub(crate) resumed: bool,
}

impl<S: Copy, A: Copy + 'static> Process<S, A> {
    pub(crate) fn new((state, due): (S, &[A]), resumed: bool) -> Self {
        Self {
            state,
            due: due.to_vec(),
            resumed,
        }
    }

    /// Takes an event; whether the machine has a row for it.
    pub(crate) fn on<M: Machine<State = S, Action = A>>(&mut self, event: M::Event) -> bool {
        assert!(self.due.is_empty(), "an event before the last action");
        match M::step(self.state, event) {
            Some((state, due)) => {
                (self.state, self.due) = (state, due.to_vec());
                true
            }
            None => false,
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_over<M: Machine<State = S, Action = A>>(&self) -> bool {
        self.due.is_empty() && M::is_end(self.state)
    }
}
