// SPDX-License-Identifier: GPL-2.0-or-later
//! The connection between the two processes.

/// What the source says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum ToDestination {
    Start,
    Commit,
    Abort,
    Heard,
}

/// What the destination says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum ToSource {
    Ready,
    Running,
    Failed,
    Gone,
    Complete,
}

/// The latest connection. What is on an earlier one is lost when this one is made: a process that had read it before could not tell.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Link {
    /// The network has lost it, with all that was on its way.
    pub(crate) broken: bool,
    /// The source's process has its end.
    pub(crate) source: bool,
    /// The destination's process has its end.
    pub(crate) destination: bool,
    /// It waits to be taken by the destination's process.
    pub(crate) arrives: bool,
    pub(crate) to_destination: Vec<ToDestination>,
    pub(crate) to_source: Vec<ToSource>,
}

impl Link {
    /// One that the source has just made, on which it has said this.
    pub(crate) fn again(word: ToDestination) -> Self {
        Self {
            source: true,
            arrives: true,
            to_destination: vec![word],
            ..Self::default()
        }
    }

    /// The source says something. If nobody hears it, nobody knows.
    pub(crate) fn tell_destination(&mut self, word: ToDestination) {
        if !self.broken && self.source && (self.destination || self.arrives) {
            self.to_destination.push(word);
        }
    }

    /// The destination says something.
    pub(crate) fn tell_source(&mut self, word: ToSource) {
        if !self.broken && self.source && self.destination {
            self.to_source.push(word);
        }
    }

    /// The source's process finds that the connection is over: it has read all that came.
    pub(crate) fn is_lost_at_source(&self) -> bool {
        self.source && (self.broken || (!self.destination && !self.arrives && self.to_source.is_empty()))
    }

    /// The destination's process finds that the connection is over.
    pub(crate) fn is_lost_at_destination(&self) -> bool {
        self.destination && (self.broken || (!self.source && self.to_destination.is_empty()))
    }

    /// The network loses the connection.
    pub(crate) fn sever(&mut self) {
        self.broken = true;
        self.to_destination.clear();
        self.to_source.clear();
    }
}
