// SPDX-License-Identifier: GPL-2.0-or-later
//! Every state that can be reached, and whether an end can be reached from each.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

/// What is explored.
pub(crate) trait System: Clone + Eq + Hash + Debug {
    /// Everything that can happen next, with its name.
    fn steps(&self) -> Vec<(String, Self)>;

    /// What must never be, if it is so.
    fn violation(&self) -> Option<&'static str>;

    /// Whether all is as somebody who has patience, and no more faults, wants it.
    fn is_good(&self) -> bool;
}

/// All reachable states, the first ones first.
pub(crate) struct Reached<S> {
    pub(crate) states: Vec<S>,
    /// From which state, and by what, each was reached first.
    parents: Vec<Option<(usize, String)>>,
    predecessors: Vec<Vec<usize>>,
}

impl<S: System> Reached<S> {
    /// Explores from these states on. Panics at the first violation, with the way to it.
    pub(crate) fn from(initial: impl IntoIterator<Item = S>) -> Self {
        let mut reached = Self {
            states: Vec::new(),
            parents: Vec::new(),
            predecessors: Vec::new(),
        };
        let mut numbers = HashMap::new();
        let mut queue = VecDeque::new();
        for state in initial {
            queue.extend(reached.add(&mut numbers, state, None));
        }
        while let Some(number) = queue.pop_front() {
            let state = reached.states[number].clone();
            if let Some(what) = state.violation() {
                panic!("{what}:\n{}", reached.way(number));
            }
            for (name, next) in state.steps() {
                let known = numbers.get(&next).copied();
                let next = match known {
                    Some(next) => next,
                    None => {
                        let new = reached.add(&mut numbers, next, Some((number, name)));
                        queue.extend(new);
                        new.expect("a new state")
                    }
                };
                reached.predecessors[next].push(number);
            }
        }
        reached
    }

    fn add(&mut self, numbers: &mut HashMap<S, usize>, state: S, parent: Option<(usize, String)>) -> Option<usize> {
        let number = self.states.len();
        if numbers.insert(state.clone(), number).is_some() {
            return None;
        }
        self.states.push(state);
        self.parents.push(parent);
        self.predecessors.push(Vec::new());
        Some(number)
    }

    /// Panics if there is a state from which no good one can be reached, with the way to it.
    pub(crate) fn expect_good_end(&self) {
        let mut can = vec![false; self.states.len()];
        let mut queue: Vec<usize> = (0..self.states.len())
            .filter(|number| self.states[*number].is_good())
            .collect();
        queue.iter().for_each(|number| can[*number] = true);
        while let Some(number) = queue.pop() {
            for before in &self.predecessors[number] {
                if !std::mem::replace(&mut can[*before], true) {
                    queue.push(*before);
                }
            }
        }
        if let Some(number) = can.iter().position(|can| !can) {
            panic!("no good end can be reached any more:\n{}", self.way(number));
        }
    }

    /// How a state is reached.
    fn way(&self, number: usize) -> String {
        let mut steps = vec![format!("{:#?}", self.states[number])];
        let mut at = number;
        while let Some((before, name)) = &self.parents[at] {
            steps.push(name.clone());
            at = *before;
        }
        steps.reverse();
        steps.join("\n")
    }
}
