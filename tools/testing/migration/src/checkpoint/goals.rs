// SPDX-License-Identifier: GPL-2.0-or-later
//! The goals that vmem has set itself for checkpoints, and what a run has reached of them.

use vmem_figures::Figure;

use super::names::{
    ALONE, ARMING, BACKGROUND, CHUNKS, DIRTY_PAGES, FIRST_ANSWER, FIRST_ANSWER_FAR, FIRST_WRITE, FULL, FULL_LOAD, GAP, INCREMENT,
    LAST, PRUNED, RESTORE, RESTORE_READS, RESTORE_TIME, STOP_FILE_CONT, STORED, UFFD_ALL, UFFD_PAGE, UFFD_WP, VMEM, VMEM_BENCH,
    WITH_ORDER, WITHOUT_ORDER,
};
use super::results::Results;

/// One way's figure over another's, and the most that it may be.
pub(super) struct Goal {
    pub(super) text: &'static str,
    what: &'static str,
    ours: &'static str,
    /// Of several, the best.
    theirs: &'static [&'static str],
    pub(super) limit: f64,
}

const fn goal(text: &'static str, what: &'static str, ours: &'static str, theirs: &'static [&'static str], limit: f64) -> Goal {
    Goal {
        text,
        what,
        ours,
        theirs,
        limit,
    }
}

/// All goals.
pub(super) const GOALS: [Goal; 12] = [
    goal(
        "guest's pause / QEMU stop + mapped-ram file + cont",
        GAP,
        VMEM,
        &[STOP_FILE_CONT],
        0.1,
    ),
    goal("guest's pause / QEMU background-snapshot", GAP, VMEM, &[BACKGROUND], 0.5),
    goal("arming / userfaultfd-wp", ARMING, VMEM_BENCH, &[UFFD_WP], 1.0),
    goal(
        "first write after it / userfaultfd-wp, copying handler",
        FIRST_WRITE,
        VMEM_BENCH,
        &[UFFD_WP],
        0.3,
    ),
    goal(
        "bytes of an increment / dirty pages x 4 KiB",
        INCREMENT,
        RESTORE,
        &[DIRTY_PAGES],
        1.02,
    ),
    goal("bytes of an increment / chunks of 64 KiB", INCREMENT, RESTORE, &[CHUNKS], 0.4),
    goal("first answer / full load", FIRST_ANSWER, RESTORE, &[FULL_LOAD], 0.2),
    goal(
        "first answer / the better userfaultfd handler",
        FIRST_ANSWER,
        RESTORE,
        &[UFFD_PAGE, UFFD_ALL],
        0.7,
    ),
    goal(
        "first answer, 25 ms store, with access order / without",
        FIRST_ANSWER_FAR,
        WITH_ORDER,
        &[WITHOUT_ORDER],
        0.5,
    ),
    goal(
        "time of a restore, last checkpoint / a full one of the same memory",
        RESTORE_TIME,
        LAST,
        &[FULL],
        1.1,
    ),
    goal(
        "reads of a restore, last checkpoint / a full one of the same memory",
        RESTORE_READS,
        LAST,
        &[FULL],
        1.1,
    ),
    goal("stored bytes, pruned / live checkpoints alone", STORED, PRUNED, &[ALONE], 1.5),
];

impl Goal {
    /// The ratio, its median and spread over the rounds; None if it was not measured.
    pub(super) fn ratio(&self, results: &Results) -> Option<Figure> {
        let best = results.line(self.what)?.best_of(self.theirs)?;
        results.ratio(self.what, self.ours, &best.by)
    }

    /// In words.
    pub(super) fn verdict(&self, results: &Results) -> &'static str {
        match self.ratio(results) {
            None => "not measured",
            Some(ratio) if ratio.median <= self.limit => "reached",
            Some(_) => "missed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn goals_are_judged_against_the_better_peer() {
        let results = results(&[
            (FIRST_ANSWER, RESTORE, 1.0),
            (FIRST_ANSWER, FULL_LOAD, 6.0),
            (FIRST_ANSWER, UFFD_PAGE, 1.2),
            (FIRST_ANSWER, UFFD_ALL, 3.0),
        ]);
        let verdict = |text: &str| {
            let goal = GOALS.iter().find(|goal| goal.text == text).expect("this goal");
            goal.verdict(&results)
        };
        assert_eq!(verdict("first answer / full load"), "reached");
        assert_eq!(verdict("first answer / the better userfaultfd handler"), "missed");
        assert_eq!(verdict("arming / userfaultfd-wp"), "not measured");
    }
}
