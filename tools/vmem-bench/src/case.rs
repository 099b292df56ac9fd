// SPDX-License-Identifier: GPL-2.0-or-later
//! The cases.

mod backed;
mod fill;
mod footprint;
mod guest;
mod one_fault;
mod plain;
mod prefetch;
mod processes;
mod snapshot;
mod stream;
mod threads;
mod tracking;
mod untracked;

use std::sync::Arc;

use vmem_figures::Book;

use crate::contents::Contents;
use crate::failure::Outcome;
use crate::peer::Kind;

/// What a case works with.
pub(crate) struct Bench {
    /// Where results go.
    pub(crate) book: Book,
    /// What pages are filled with.
    pub(crate) contents: Arc<Contents>,
    /// Rounds of each case. In a round everything that is compared has its turn.
    pub(crate) rounds: usize,
    /// Whether each figure is shown at once.
    pub(crate) show: bool,
    /// If not empty, only what is called so is measured.
    pub(crate) only: Vec<String>,
}

impl Bench {
    /// Whether what is called so is to be measured.
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Those of `kinds` that are to be measured.
    fn chosen<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = Kind> + 'a {
        kinds.iter().copied().filter(|kind| self.wants(kind.name()))
    }
}

/// A case.
pub(crate) struct Case {
    /// Its number, as in Documentation/performance.rst.
    pub(crate) number: u8,
    /// What it measures.
    pub(crate) title: &'static str,
    /// Measures one round. The results of round 0 are thrown away: caches are cold, emulated code is not translated.
    round: fn(&Bench, u64, &mut Round) -> Outcome,
}

/// All cases.
pub(crate) const CASES: &[Case] = &[
    Case {
        number: 1,
        title: "one fault, one thread",
        round: one_fault::round,
    },
    Case {
        number: 2,
        title: "many threads",
        round: threads::round,
    },
    Case {
        number: 3,
        title: "background fill, then touch",
        round: fill::round,
    },
    Case {
        number: 4,
        title: "a stream over a socket, and faults",
        round: stream::round,
    },
    Case {
        number: 5,
        title: "after conversion to plain memory",
        round: plain::round,
    },
    Case {
        number: 6,
        title: "several processes",
        round: processes::round,
    },
    Case {
        number: 7,
        title: "memory",
        round: footprint::round,
    },
    // Case 8, instructions, is all of these on a machine that counts them.
    Case {
        number: 9,
        title: "prefetch",
        round: prefetch::round,
    },
    Case {
        number: 10,
        title: "writes that are logged",
        round: tracking::round,
    },
    Case {
        number: 11,
        title: "after tracking has ended",
        round: untracked::round,
    },
    Case {
        number: 12,
        title: "snapshots",
        round: snapshot::round,
    },
    Case {
        number: 13,
        title: "a guest's writes that are logged",
        round: guest::round,
    },
    Case {
        number: 14,
        title: "pages that lie in a local file",
        round: backed::round,
    },
];

/// Figures of one round.
pub(crate) struct Round {
    figures: Vec<(String, &'static str, &'static str, f64)>,
    show: bool,
}

impl Round {
    /// What was measured, in what, of whom, and the figure.
    pub(crate) fn add(&mut self, what: impl Into<String>, unit: &'static str, by: &'static str, value: f64) {
        let what = what.into();
        if self.show {
            eprintln!("{what}: {by}: {value:.3} {unit}");
        }
        self.figures.push((what, unit, by, value));
    }
}

impl Case {
    /// Measures all rounds.
    pub(crate) fn run(&self, bench: &mut Bench) -> Outcome {
        for number in 0..=bench.rounds {
            let mut round = Round {
                figures: Vec::new(),
                show: bench.show,
            };
            (self.round)(bench, number as u64, &mut round)?;
            if number > 0 {
                for (what, unit, by, value) in round.figures {
                    bench.book.add(self.number, &what, unit, by, value);
                }
            }
        }
        Ok(())
    }
}
