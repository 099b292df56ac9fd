// SPDX-License-Identifier: GPL-2.0-or-later
//! What vmem is to reach, and whether it does.

use vmem_figures::{Book, Cell, Figure, Line};

use crate::keeper::WP_COPIES;
use crate::peer::{MINOR, MINOR_HUGE, MINOR_STORE, MISSING, VMEM, VMEM_BACKED, VMEM_HUGE, VMEM_MAPPED};
use crate::tracker::{KVM_LOG, PLAIN, WP_ASYNC, WP_DAEMON};

/// Against what a figure is held.
enum Against {
    /// The userfaultfd mode that does best.
    BestUserfault,
    /// This one.
    One(&'static str),
    /// Nothing: the figure itself counts.
    Nothing,
}

/// Where a figure, or a ratio, is to be.
#[derive(Clone, Copy)]
enum Aim {
    AtMost(f64),
    AtLeast(f64),
    /// At most this far from 1.
    Same(f64),
}

/// A goal.
struct Goal {
    what: &'static str,
    case: u8,
    /// The lines that it is about: those that begin and end so.
    line: (&'static str, &'static str),
    of: &'static [&'static str],
    against: Against,
    aim: Aim,
}

const FILLERS: &[&str] = &[VMEM, VMEM_MAPPED];

const GOALS: &[Goal] = &[
    Goal {
        what: "one fault, p50: no slower than the faster userfaultfd",
        case: 1,
        line: ("", ", p50"),
        of: &[VMEM],
        against: Against::BestUserfault,
        aim: Aim::AtMost(1.0),
    },
    Goal {
        what: "one fault, p50: at most 0.8 of MINOR",
        case: 1,
        line: ("", ", p50"),
        of: &[VMEM],
        against: Against::One(MINOR),
        aim: Aim::AtMost(0.8),
    },
    Goal {
        what: "64 threads, distinct pages: at least 3 times userfaultfd",
        case: 2,
        line: ("64 threads", "distinct pages"),
        of: &[VMEM],
        against: Against::BestUserfault,
        aim: Aim::AtLeast(3.0),
    },
    Goal {
        what: "64 threads, same pages: one request a page",
        case: 2,
        line: ("64 threads", "requests"),
        of: &[VMEM],
        against: Against::Nothing,
        aim: Aim::AtMost(1.0),
    },
    Goal {
        what: "64 threads, same pages: at least 10 times userfaultfd",
        case: 2,
        line: ("64 threads", "same pages"),
        of: &[VMEM],
        against: Against::BestUserfault,
        aim: Aim::AtLeast(10.0),
    },
    Goal {
        what: "fill and touch: at most half of the better userfaultfd",
        case: 3,
        line: ("", "fill + touch"),
        of: FILLERS,
        against: Against::BestUserfault,
        aim: Aim::AtMost(0.5),
    },
    Goal {
        what: "the same with huge pages",
        case: 3,
        line: ("", "fill + touch"),
        of: &[VMEM_HUGE],
        against: Against::BestUserfault,
        aim: Aim::AtMost(0.5),
    },
    Goal {
        what: "fault p99 with the stream on: at most 1.5 times that with it off",
        case: 4,
        line: ("fault p99", ""),
        of: &["stream on"],
        against: Against::One("stream off"),
        aim: Aim::AtMost(1.5),
    },
    Goal {
        what: "stream: at least 0.9 of copying into tmpfs",
        case: 4,
        line: ("throughput", ""),
        of: &[VMEM],
        against: Against::One("socket to tmpfs"),
        aim: Aim::AtLeast(0.9),
    },
    Goal {
        what: "after conversion: as plain memory",
        case: 5,
        line: ("", ""),
        of: &[VMEM],
        against: Against::One("anonymous"),
        aim: Aim::Same(0.02),
    },
    Goal {
        what: "kernel: at most 4 bits a page",
        case: 7,
        line: ("kernel", ""),
        of: &[VMEM],
        against: Against::Nothing,
        aim: Aim::AtMost(4.0),
    },
    Goal {
        what: "daemon: at most 16 MiB",
        case: 7,
        line: ("vmemd", ""),
        of: &[VMEM],
        against: Against::Nothing,
        aim: Aim::AtMost(16.0),
    },
    Goal {
        what: "first write: at most 0.15 of uffd-wp with a daemon",
        case: 10,
        line: ("first write", ""),
        of: &[VMEM],
        against: Against::One(WP_DAEMON),
        aim: Aim::AtMost(0.15),
    },
    Goal {
        what: "first write: at most 1.2 of uffd-wp async",
        case: 10,
        line: ("first write", ""),
        of: &[VMEM],
        against: Against::One(WP_ASYNC),
        aim: Aim::AtMost(1.2),
    },
    Goal {
        what: "arming: at most 1.5 of uffd-wp",
        case: 10,
        line: ("arming", "CPU"),
        of: &[VMEM],
        against: Against::One(WP_ASYNC),
        aim: Aim::AtMost(1.5),
    },
    Goal {
        what: "cleaning: at most 5 of PAGEMAP_SCAN",
        case: 10,
        line: ("cleaning", "all dirty"),
        of: &[VMEM],
        against: Against::One(WP_ASYNC),
        aim: Aim::AtMost(5.0),
    },
    Goal {
        what: "not tracked any more: as plain memory",
        case: 11,
        line: ("", ""),
        of: &[VMEM],
        against: Against::One(PLAIN),
        aim: Aim::Same(0.02),
    },
    Goal {
        what: "snapshot: first write at most 0.25 of uffd-wp with a daemon that copies",
        case: 12,
        line: ("first write", ""),
        of: &[VMEM],
        against: Against::One(WP_COPIES),
        aim: Aim::AtMost(0.25),
    },
    Goal {
        what: "a guest: cleaning and its write at most 1.5 of KVM's own log",
        case: 13,
        line: ("cleaning and the write", "all dirty"),
        of: &[VMEM],
        against: Against::One(KVM_LOG),
        aim: Aim::AtMost(1.5),
    },
    Goal {
        what: "one fault with backing: at most 0.35 of the best userfaultfd",
        case: 14,
        line: ("one page a fault", "p50"),
        of: &[VMEM_BACKED],
        against: Against::BestUserfault,
        aim: Aim::AtMost(0.35),
    },
    Goal {
        what: "16 pages a fault with backing: at most 0.8 of the best userfaultfd",
        case: 14,
        line: ("16 pages a fault", ""),
        of: &[VMEM_BACKED],
        against: Against::BestUserfault,
        aim: Aim::AtMost(0.8),
    },
    Goal {
        what: "64 threads with backing, distinct pages: at least 3 times userfaultfd",
        case: 14,
        line: ("64 threads", "distinct pages"),
        of: &[VMEM_BACKED],
        against: Against::BestUserfault,
        aim: Aim::AtLeast(3.0),
    },
    Goal {
        what: "64 threads with backing, same pages: at least 10 times userfaultfd",
        case: 14,
        line: ("64 threads", "same pages"),
        of: &[VMEM_BACKED],
        against: Against::BestUserfault,
        aim: Aim::AtLeast(10.0),
    },
];

/// How a goal fares in one line.
pub(crate) struct Verdict {
    /// The goal.
    pub(crate) goal: &'static str,
    /// The line.
    pub(crate) line: String,
    /// The figure or the ratio that counts.
    pub(crate) figure: Figure,
    /// Whether it is reached. `None`: the spread reaches to both sides.
    pub(crate) reached: Option<bool>,
}

/// How all goals fare of which the book has figures.
pub(crate) fn verdicts(book: &Book) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for goal in GOALS {
        for line in book.lines.iter().filter(|line| goal.is_about(line)) {
            if let Some(figure) = goal.figure(line) {
                verdicts.push(Verdict {
                    goal: goal.what,
                    line: line.what.clone(),
                    figure,
                    reached: goal.aim.reached(figure),
                });
            }
        }
    }
    verdicts
}

impl Goal {
    fn is_about(&self, line: &Line) -> bool {
        line.case == self.case && line.what.starts_with(self.line.0) && line.what.ends_with(self.line.1)
    }

    fn figure(&self, line: &Line) -> Option<Figure> {
        let own = line.best_of(self.of)?;
        match self.against {
            Against::Nothing => Figure::of(&own.rounds),
            Against::One(name) => Figure::of_ratio(own, line.cell(name)?),
            Against::BestUserfault => Figure::of_ratio(own, best_userfault(line, own)?),
        }
    }
}

impl Aim {
    fn reached(self, figure: Figure) -> Option<bool> {
        let (worst, best) = match self {
            Self::AtMost(limit) => (figure.high <= limit, figure.low <= limit),
            Self::AtLeast(limit) => (figure.low >= limit, figure.high >= limit),
            Self::Same(tolerance) => {
                let (least, most) = (1.0 - tolerance, 1.0 + tolerance);
                (
                    figure.low >= least && figure.high <= most,
                    figure.low <= most && figure.high >= least,
                )
            }
        };
        match (worst, best) {
            (true, _) => Some(true),
            (false, false) => Some(false),
            (false, true) => None,
        }
    }
}

/// The userfaultfd mode that does best in this line, of those that had what `cell` had: huge pages, or none.
pub(crate) fn best_userfault<'a>(line: &'a Line, cell: &Cell) -> Option<&'a Cell> {
    let huge = [VMEM_HUGE, MINOR_HUGE].contains(&cell.by.as_str());
    line.best_of(if huge {
        &[MISSING, MINOR, MINOR_STORE, MINOR_HUGE]
    } else {
        &[MISSING, MINOR, MINOR_STORE, WP_ASYNC, WP_DAEMON, WP_COPIES]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(low: f64, high: f64) -> Figure {
        let median = (low + high) / 2.0;
        Figure { low, median, high }
    }

    #[test]
    fn a_spread_to_both_sides_of_the_limit_decides_nothing() {
        assert_eq!(Aim::AtMost(1.0).reached(figure(0.8, 1.0)), Some(true));
        assert_eq!(Aim::AtMost(1.0).reached(figure(0.8, 1.1)), None);
        assert_eq!(Aim::AtMost(1.0).reached(figure(1.1, 1.2)), Some(false));
        assert_eq!(Aim::AtLeast(3.0).reached(figure(3.0, 4.0)), Some(true));
        assert_eq!(Aim::AtLeast(3.0).reached(figure(2.0, 4.0)), None);
        assert_eq!(Aim::AtLeast(3.0).reached(figure(1.0, 2.0)), Some(false));
    }

    #[test]
    fn the_same_is_what_hardly_differs_and_not_what_noise_hides() {
        assert_eq!(Aim::Same(0.02).reached(figure(0.99, 1.02)), Some(true));
        assert_eq!(Aim::Same(0.02).reached(figure(0.7, 1.2)), None);
        assert_eq!(Aim::Same(0.02).reached(figure(1.01, 1.03)), None);
        assert_eq!(Aim::Same(0.02).reached(figure(1.1, 1.2)), Some(false));
        assert_eq!(Aim::Same(0.02).reached(figure(0.8, 0.9)), Some(false));
    }
}
