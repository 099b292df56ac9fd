// SPDX-License-Identifier: GPL-2.0-or-later
//! Which checkpoints of a guest are kept: pure, without a clock. The rules are those of restic's `forget`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::Error;

/// What is to be kept. A checkpoint is kept if one rule wants it, and the newest one (that with the highest number) always. Times are in UTC, and
/// weeks begin on Monday.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many, by their numbers.
    pub last: u32,
    /// Of each of the newest so many hours that have any, the newest.
    pub hourly: u32,
    /// The same for days.
    pub daily: u32,
    /// The same for weeks.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
    /// All that are no older than this before the newest one.
    pub within: Option<Duration>,
    /// All that have one of these tags.
    pub tags: BTreeSet<String>,
}

/// A checkpoint, as far as the rules ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its number.
    pub sequence: u64,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// Whether it is protected.
    pub protected: bool,
    /// Whether a reader has a lease on it: it is being restored.
    pub read: bool,
}

/// The reason of a checkpoint that is protected.
pub(crate) const PROTECTED: &str = "protected";

/// The reason of a checkpoint that a reader has a lease on.
pub(crate) const READ: &str = "being read";

/// What becomes of a checkpoint, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its number.
    pub sequence: u64,
    /// Why it is kept; it is removed if there is no reason.
    pub reasons: Vec<String>,
}

impl Decision {
    /// Whether it is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

const DAY: u64 = 86_400_000;

/// Year and month of a day since 1970, in the Gregorian calendar.
fn month(day: u64) -> (u64, u64) {
    // Years that begin in March put the leap day last. 1970-01-01 is day 306 of such a year, 719468 days after 0000-03-01.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let year = era * 400 + year + u64::from(month >= 10);
    (year, if month < 10 { month + 3 } else { month - 9 })
}

impl Policy {
    /// What becomes of these checkpoints; the newest first.
    ///
    /// # Errors
    ///
    /// If the policy has no rule: it would remove everything.
    pub fn decide(&self, items: &[Item]) -> Result<Vec<Decision>, Error> {
        if *self == Self::default() {
            return Err(Error::Policy(
                "the policy has no rule, and would remove every checkpoint".to_owned(),
            ));
        }
        let mut order: Vec<&Item> = items.iter().collect();
        order.sort_by_key(|item| std::cmp::Reverse((item.created, item.sequence)));
        let mut decisions: Vec<Decision> = order
            .iter()
            .map(|item| Decision {
                sequence: item.sequence,
                reasons: Vec::new(),
            })
            .collect();
        // Numbers only grow, and the clock may have been set back: a new checkpoint is not older than those before it.
        let mut numbers: Vec<u64> = items.iter().map(|item| item.sequence).collect();
        numbers.sort_unstable_by_key(|sequence| std::cmp::Reverse(*sequence));
        let highest = numbers.first().copied();
        numbers.truncate(self.last as usize);
        for decision in decisions.iter_mut().filter(|decision| numbers.contains(&decision.sequence)) {
            decision.reasons.push("last".to_owned());
        }
        type Bucket = fn(u64) -> u64;
        let rules: [(u32, &str, Bucket); 5] = [
            (self.hourly, "hourly", |time| time / 3_600_000),
            (self.daily, "daily", |time| time / DAY),
            // 1970-01-01 was a Thursday.
            (self.weekly, "weekly", |time| (time / DAY + 3) / 7),
            (self.monthly, "monthly", |time| month(time / DAY).0 * 12 + month(time / DAY).1),
            (self.yearly, "yearly", |time| month(time / DAY).0),
        ];
        for (count, name, bucket) in rules {
            let mut last = None;
            let mut left = count;
            for (item, decision) in order.iter().zip(&mut decisions) {
                let of = Some(bucket(item.created));
                if left > 0 && of != last {
                    last = of;
                    left -= 1;
                    decision.reasons.push(name.to_owned());
                }
            }
        }
        let newest = order.first().map_or(0, |item| item.created);
        for (item, decision) in order.iter().zip(&mut decisions) {
            if self
                .within
                .is_some_and(|within| u128::from(newest - item.created) <= within.as_millis())
            {
                decision.reasons.push("within".to_owned());
            }
            decision
                .reasons
                .extend(item.tags.intersection(&self.tags).map(|tag| format!("tag {tag}")));
            if item.protected {
                decision.reasons.push(PROTECTED.to_owned());
            }
            if item.read {
                decision.reasons.push(READ.to_owned());
            }
            // The next checkpoint goes on from it.
            if highest == Some(item.sequence) && decision.reasons.is_empty() {
                decision.reasons.push("newest".to_owned());
            }
        }
        decisions.sort_unstable_by_key(|decision| std::cmp::Reverse(decision.sequence));
        Ok(decisions)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn item(sequence: u64, hours: u64) -> Item {
        Item {
            sequence,
            created: hours * 3_600_000,
            tags: BTreeSet::new(),
            protected: false,
            read: false,
        }
    }

    fn kept(policy: &Policy, items: &[Item]) -> Vec<u64> {
        let mut kept: Vec<u64> = policy
            .decide(items)
            .unwrap()
            .iter()
            .filter(|decision| decision.is_kept())
            .map(|decision| decision.sequence)
            .collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        for (day, expected) in [
            (0, (1970, 1)),
            (30, (1970, 1)),
            (31, (1970, 2)),
            (59, (1970, 3)),
            (364, (1970, 12)),
            (365, (1971, 1)),
            (11_016, (2000, 2)),
            (11_017, (2000, 3)),
            (20_784, (2026, 11)),
        ] {
            assert_eq!(month(day), expected, "{day}");
        }
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        // Four checkpoints a day, for a year.
        let items: Vec<Item> = (0..365 * 4).map(|at| item(at, at * 6)).collect();
        let last = 365 * 4 - 1;
        let only = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            kept(&policy, &items)
        };
        assert_eq!(only(|policy| policy.last = 2), [last - 1, last]);
        assert_eq!(only(|policy| policy.hourly = 2), [last - 1, last]);
        assert_eq!(only(|policy| policy.daily = 3), [last - 8, last - 4, last]);
        // The last day, a Thursday; the Sunday before; the Sunday before that.
        assert_eq!(only(|policy| policy.weekly = 3), [last - 4 * 11, last - 4 * 4, last]);
        assert_eq!(only(|policy| policy.monthly = 2), [334 * 4 - 1, last]);
        assert_eq!(only(|policy| policy.yearly = 5), [last]);
        assert_eq!(
            only(|policy| policy.within = Some(Duration::from_secs(12 * 3600))),
            [last - 2, last - 1, last]
        );
    }

    #[test]
    fn tags_and_protection_keep_and_reasons_are_told() {
        let mut items = vec![item(1, 0), item(2, 1), item(3, 2), item(4, 3)];
        items[0].tags.insert("release".to_owned());
        items[1].protected = true;
        let policy = Policy {
            last: 1,
            tags: BTreeSet::from(["release".to_owned()]),
            ..Policy::default()
        };
        let reasons: Vec<_> = policy
            .decide(&items)
            .unwrap()
            .into_iter()
            .map(|decision| (decision.sequence, decision.reasons.join(", ")))
            .collect();
        let expected = [(4, "last"), (3, ""), (2, "protected"), (1, "tag release")];
        assert_eq!(reasons, expected.map(|(sequence, why)| (sequence, why.to_owned())));
    }

    #[test]
    fn new_checkpoints_are_kept_after_the_clock_was_set_back() {
        let mut items: Vec<Item> = (1..=20).map(|at| item(at, 100 + at)).collect();
        items.push(item(21, 50));
        let last = Policy {
            last: 3,
            ..Policy::default()
        };
        assert_eq!(kept(&last, &items), [19, 20, 21]);
        let within = Policy {
            within: Some(Duration::ZERO),
            ..Policy::default()
        };
        assert_eq!(kept(&within, &items), [20, 21], "the newest is kept without a rule");
    }

    #[test]
    fn checkpoint_that_is_being_read_is_kept() {
        let mut items = vec![item(1, 0), item(2, 1), item(3, 2)];
        items[0].read = true;
        let last = Policy {
            last: 1,
            ..Policy::default()
        };
        assert_eq!(kept(&last, &items), [1, 3]);
    }

    #[test]
    fn policy_without_rule_is_refused() {
        assert!(Policy::default().decide(&[item(1, 0)]).is_err());
    }
}
