// SPDX-License-Identifier: GPL-2.0-or-later
//! The goals that vmem has set itself for moves, and what a run has reached of them.

use crate::book::{Book, Figures, p99};
use crate::method::Method;
use crate::seconds::seconds;

/// A goal, the figure for each load, and what has come of it.
pub(crate) struct Goal {
    pub(crate) text: String,
    /// In the order of the loads; empty where there is none.
    pub(crate) figures: Vec<String>,
    pub(crate) verdict: String,
}

/// QEMU's ways that end by themselves.
const QEMU: [Method; 7] = [
    Method::Precopy,
    Method::PrecopyAutoConverge,
    Method::PrecopyXbzrle,
    Method::Multifd,
    Method::Postcopy,
    Method::PostcopyAfterRound,
    Method::PostcopyPreempt,
];

/// A figure, and the most (or least) that it may be.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn sign(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::AtLeast(limit) => format!(">= {limit}"),
        }
    }
}

fn gap(figures: &Figures) -> Option<f64> {
    Some(figures.guest_gap)
}

fn stop_to_complete(figures: &Figures) -> Option<f64> {
    figures.stop_to_complete
}

fn total(figures: &Figures) -> Option<f64> {
    Some(figures.total)
}

fn pace(figures: &Figures) -> Option<f64> {
    figures.pace
}

/// All goals.
pub(crate) fn goals(book: &Book) -> Vec<Goal> {
    let ratio = |ours, theirs, of: fn(&Figures) -> Option<f64>| {
        move |load: &str| Some(book.median_of(ours, load, of)? / book.median_of(theirs, load, of)?)
    };
    let hybrid = Method::VmemHybrid;
    let best = |load: &str, of: fn(&Figures) -> Option<f64>, better: fn(f64, f64) -> f64| {
        let figures = QEMU.iter().filter_map(|method| book.median_of(*method, load, of));
        figures.reduce(better)
    };
    vec![
        by_load(
            book,
            "guest's own gap, hybrid / QEMU post-copy after a round",
            Bound::AtMost(0.5),
            ratio(hybrid, Method::PostcopyAfterRound, gap),
        ),
        by_load(
            book,
            "guest's own gap, post-copy / QEMU post-copy",
            Bound::AtMost(0.5),
            ratio(Method::VmemPostcopy, Method::Postcopy, gap),
        ),
        by_load(
            book,
            "guest's own gap, hybrid / QEMU pre-copy, where that ends",
            Bound::AtMost(0.5),
            ratio(hybrid, Method::Precopy, gap),
        ),
        by_load(
            book,
            "guest's own gap, hybrid / the same of an idle guest, where QEMU pre-copy does not end",
            Bound::AtMost(1.5),
            |load| {
                let does_not_end = book.line(Method::Precopy, load).iter().any(|figures| !figures.done);
                let idle = book.median_of(hybrid, "idle", gap)?;
                does_not_end.then_some(book.median_of(hybrid, load, gap)? / idle)
            },
        ),
        stop_to_runs(book),
        by_load(
            book,
            "stop -> complete, hybrid / QEMU post-copy",
            Bound::AtMost(1.0),
            ratio(hybrid, Method::Postcopy, stop_to_complete),
        ),
        by_load(
            book,
            "stop -> complete, post-copy / QEMU post-copy",
            Bound::AtMost(1.0),
            ratio(Method::VmemPostcopy, Method::Postcopy, stop_to_complete),
        ),
        by_load(
            book,
            "order -> complete, hybrid / QEMU's fastest way",
            Bound::AtMost(1.1),
            |load| Some(book.median_of(hybrid, load, total)? / best(load, total, f64::min)?),
        ),
        by_load(
            book,
            "bytes / memory that is not zero, hybrid, idle guest",
            Bound::AtMost(1.02),
            |load| {
                let bytes = book.median_of(hybrid, load, |figures| Some(figures.bytes as f64))?;
                (load == "idle").then_some(bytes / book.data_bytes(load)?)
            },
        ),
        by_load(
            book,
            "guest's work meanwhile, hybrid / QEMU's best way",
            Bound::AtLeast(1.0),
            |load| Some(book.median_of(hybrid, load, pace)? / best(load, pace, f64::max)?),
        ),
    ]
}

/// A goal for each load of which there is a figure.
fn by_load(book: &Book, text: &str, bound: Bound, figure: impl Fn(&str) -> Option<f64>) -> Goal {
    let figures: Vec<Option<f64>> = book.loads().into_iter().map(figure).collect();
    let known: Vec<f64> = figures.iter().copied().flatten().collect();
    let missed = known.iter().filter(|value| !bound.holds(**value)).count();
    Goal {
        text: format!("{text} {}", bound.sign()),
        figures: figures
            .iter()
            .map(|figure| figure.map_or_else(String::new, |figure| format!("{figure:.2}")))
            .collect(),
        verdict: match (known.len(), missed) {
            (0, _) => "not measured".into(),
            // The count says where there was nothing to judge by.
            (all, 0) => format!("reached in all {all}"),
            (all, missed) => format!("missed in {missed} of {all}"),
        },
    }
}

/// The time from the stop until the guest runs, of all moves by vmem.
fn stop_to_runs(book: &Book) -> Goal {
    const LIMIT: f64 = 0.3;
    let of = |load: Option<&str>| {
        let ours = book.trials.iter().filter(move |figures| {
            let is_of_load = load.is_none_or(|load| figures.trial.load == load);
            figures.trial.method.mode().is_some() && is_of_load
        });
        p99(ours.filter_map(|figures| figures.stop_to_runs))
    };
    Goal {
        text: format!("stop -> runs, p99 of all moves by vmem <= {}", seconds(LIMIT)),
        figures: book
            .loads()
            .into_iter()
            .map(|load| of(Some(load)).map_or_else(String::new, seconds))
            .collect(),
        verdict: match of(None) {
            None => "not measured".into(),
            Some(p99) if p99 <= LIMIT => format!("reached: {}", seconds(p99)),
            Some(p99) => format!("missed: {}", seconds(p99)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::tests::book;

    fn verdict(book: &Book, text: &str) -> String {
        let goals = goals(book);
        let goal = goals.iter().find(|goal| goal.text.starts_with(text)).expect("this goal");
        goal.verdict.clone()
    }

    #[test]
    fn goals_are_judged_by_the_medians_of_each_load() {
        let postcopy = "guest's own gap, post-copy";
        let mut moves = vec![
            (Method::VmemPostcopy, "idle", 0.2, 1.0),
            (Method::Postcopy, "idle", 0.5, 1.0),
            (Method::VmemPostcopy, "writing", 0.4, 2.0),
            (Method::Postcopy, "writing", 0.5, 1.0),
        ];
        assert_eq!(verdict(&book(&moves[..2]), postcopy), "reached in all 1");
        assert_eq!(verdict(&book(&moves), postcopy), "missed in 1 of 2");
        assert_eq!(verdict(&book(&moves[2..]), postcopy), "missed in 1 of 1");
        assert_eq!(verdict(&book(&moves), "stop -> runs"), "missed: 400 ms");
        assert_eq!(verdict(&book(&moves), "stop -> complete, hybrid"), "not measured");
        moves.truncate(1);
        assert_eq!(verdict(&book(&moves), postcopy), "not measured");
    }

    #[test]
    fn gap_is_compared_with_that_of_an_idle_guest_where_precopy_does_not_end() {
        let mut book = book(&[
            (Method::VmemHybrid, "idle", 0.2, 1.0),
            (Method::Precopy, "idle", 0.5, 1.0),
            (Method::VmemHybrid, "writing", 0.4, 1.0),
            (Method::Precopy, "writing", 0.0, 1.0),
        ]);
        book.trials[3].done = false;
        assert_eq!(verdict(&book, "guest's own gap, hybrid / the same"), "missed in 1 of 1");
        assert_eq!(verdict(&book, "guest's own gap, hybrid / QEMU pre-copy"), "reached in all 1");
        book.trials[2].guest_gap = 0.3;
        assert_eq!(verdict(&book, "guest's own gap, hybrid / the same"), "reached in all 1");
    }
}
