// SPDX-License-Identifier: GPL-2.0-or-later
//! When it is time to switch: pure, without a clock.

use std::time::Duration;

use crate::decision::{Decision, Reason, time_to_send};
use crate::limits::{Limits, Mode};

/// Decides at the end of each round whether to switch.
///
/// The stall rule is that of KubeVirt's VEP 248, with rounds in the place of most of its times: [`Policy::end_round`] has the details.
#[derive(Debug, Clone)]
pub struct Policy {
    mode: Mode,
    limits: Limits,
    /// Pages of all memory.
    pages: u64,
    /// The rounds that count for the stall rule.
    past: Vec<Past>,
    /// What was left when the last round ended; all pages at first.
    left: u64,
    /// The smoothed bandwidth when the last round ended.
    bandwidth: Option<u64>,
    stall: Option<Stall>,
}

/// A round that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundEnd {
    /// The round, from 1.
    pub round: u32,
    /// When it ended, since the first round began.
    pub at: Duration,
    /// Pages that are left: never sent, or written since.
    pub left: u64,
    /// Pages sent in the round.
    pub sent: u64,
    /// Pages sent in all rounds.
    pub total: u64,
    /// Bytes per second in the round, while there was something to send.
    pub rate: Option<u64>,
    /// The smoothed bandwidth, of bytes on the network.
    pub bandwidth: Option<u64>,
    /// Bytes that a page took on the network lately, if it was compressed; `None`: all of its bytes.
    pub page_bytes: Option<u64>,
}

impl RoundEnd {
    /// How long it takes to send what is left.
    fn time_to_send(&self) -> Option<Duration> {
        time_to_send(self.left, self.page_bytes, self.bandwidth)
    }
}

#[derive(Debug, Clone, Copy)]
struct Past {
    round: u32,
    at: Duration,
    left: u64,
}

/// What is left does not become less: the policy waits for a local minimum.
#[derive(Debug, Clone)]
struct Stall {
    /// What was left after each round of the stall.
    seen: Vec<u64>,
    /// The level at which to switch.
    best: u64,
    /// Rounds to wait for that level.
    patience: u32,
    waited: u32,
}

impl Policy {
    /// A change of what is left by less than so many percent is none.
    const TOLERANCE: u64 = 4;
    /// Rounds that must not have made progress, and the time that they must have taken: many short rounds say as little as one.
    const STALL_ROUNDS: u32 = 2;
    const STALL_TIME: Duration = Duration::from_secs(1);
    /// Rounds to wait for a level that was seen before.
    const PATIENCE: u32 = 6;
    /// Pages sent for a page less that is left.
    const GAIN: u64 = 4;

    /// A policy for memory of so many pages.
    #[must_use]
    pub fn new(mode: Mode, limits: Limits, pages: u64) -> Self {
        Self {
            mode,
            limits,
            pages,
            past: Vec::new(),
            left: pages,
            bandwidth: None,
            stall: None,
        }
    }

    /// The user has set another limit of the bandwidth: a later round that is slower than the ones before tells of that, and not of the network.
    pub fn forget_bandwidth(&mut self) {
        self.bandwidth = None;
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the mode from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes the limits from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether the limit of bytes is reached when so many pages are sent; it can be in the middle of a round.
    #[must_use]
    pub fn is_over_factor(&self, total: u64) -> bool {
        u128::from(total) >= u128::from(self.pages) * u128::from(self.limits.factor)
    }

    /// A decision for this reason.
    #[must_use]
    pub fn decide(&self, reason: Reason, end: &RoundEnd) -> Decision {
        Decision {
            reason,
            mode: self.mode,
            round: end.round,
            pages_left: end.left,
            bandwidth: end.bandwidth,
            expected: end.time_to_send(),
            limit: self.limits.downtime,
        }
    }

    /// Notes that a round has ended. Returns a decision if it is time to switch, in this order:
    ///
    /// 1. What is left can be sent within the downtime at the smoothed bandwidth, or is less than the limit of pages.
    /// 2. Not in the mode [`Mode::Precopy`]: what is left has *stalled*. It is not 4 % less than the least of the rounds that ended two
    ///    rounds and a second ago. Then the best level is the least since that round. The switch is at the first round whose end is within
    ///    4 % of that level, which may be this one: at a local minimum. If none is for 6 rounds, the next lowest level counts for half as
    ///    many rounds, and so on. If what is left becomes less after all, the stall is over.
    /// 3. In the mode [`Mode::Auto`]: the round sent four pages or more for each page less that is left, and less was never left.
    /// 4. A limit: rounds, or pages sent.
    ///
    /// A round that ran at less than half of the bandwidth does not count for 2 and 3: it tells of the network, not of the program. If the
    /// network stays slow, the bandwidth follows.
    pub fn end_round(&mut self, end: &RoundEnd) -> Option<Decision> {
        let is_slow = matches!((end.rate, self.bandwidth), (Some(rate), Some(usual)) if rate < usual / 2);
        let before = std::mem::replace(&mut self.left, end.left);
        self.bandwidth = end.bandwidth;
        let reason = if end.time_to_send().is_some_and(|time| time <= self.limits.downtime) {
            Some(Reason::Fits)
        } else if end.left < self.limits.pages_left {
            Some(Reason::FewPages)
        } else if !is_slow && self.has_stalled(end) && self.mode != Mode::Precopy {
            Some(Reason::Stalled)
        } else if !is_slow && self.mode == Mode::Auto && self.gains_little(end, before) {
            Some(Reason::LittleGain)
        } else if end.round >= self.limits.rounds {
            Some(Reason::Rounds)
        } else if self.is_over_factor(end.total) {
            Some(Reason::Factor)
        } else {
            None
        };
        reason.map(|reason| self.decide(reason, end))
    }

    fn gains_little(&self, end: &RoundEnd, before: u64) -> bool {
        let least = self.past.iter().map(|past| past.left).min().unwrap_or(u64::MAX);
        let gain = before.saturating_sub(end.left);
        end.round > 1 && gain.saturating_mul(Self::GAIN) <= end.sent && is_within(end.left, least)
    }

    /// Whether what is left has stalled and is at a local minimum.
    fn has_stalled(&mut self, end: &RoundEnd) -> bool {
        let reference = self
            .past
            .iter()
            .filter(|past| past.round + Self::STALL_ROUNDS <= end.round && past.at + Self::STALL_TIME <= end.at);
        let reference = reference.map(|past| past.left).min();
        self.past.push(Past {
            round: end.round,
            at: end.at,
            left: end.left,
        });
        let Some(reference) = reference.filter(|reference| !is_less(end.left, *reference)) else {
            self.stall = None;
            return false;
        };
        let past = &self.past;
        let stall = self.stall.get_or_insert_with(|| {
            let begin = past.iter().position(|past| past.left == reference).unwrap_or(0);
            let seen: Vec<u64> = past[begin..].iter().map(|past| past.left).collect();
            Stall {
                best: seen.iter().copied().min().unwrap_or(end.left),
                seen,
                patience: Self::PATIENCE,
                waited: 0,
            }
        });
        stall.is_local_minimum(end.left)
    }
}

impl Stall {
    fn is_local_minimum(&mut self, left: u64) -> bool {
        self.seen.push(left);
        if is_within(left, self.best) {
            return true;
        }
        self.waited += 1;
        if self.waited >= self.patience {
            let next = self.seen.iter().copied().filter(|seen| !is_within(*seen, self.best)).min();
            self.best = next.unwrap_or(left);
            self.patience = (self.patience / 2).max(1);
            self.waited = 0;
        }
        is_within(left, self.best)
    }
}

/// Whether `left` is less than `reference` by more than the tolerance.
fn is_less(left: u64, reference: u64) -> bool {
    u128::from(left) * 100 < u128::from(reference) * u128::from(100 - Policy::TOLERANCE)
}

/// Whether `left` is more than `best` by the tolerance at most.
fn is_within(left: u64, best: u64) -> bool {
    u128::from(left) * 100 <= u128::from(best) * u128::from(100 + Policy::TOLERANCE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGES: u64 = 100_000;
    /// 1000 pages fit into the downtime of 100 ms.
    const BANDWIDTH: u64 = 4096 * 10_000;

    /// Rounds of a second, after each of which so much is left; each sends what the one before left.
    fn run(mode: Mode, lefts: &[u64]) -> Option<Decision> {
        run_with(mode, Limits::XEN, lefts, |_| BANDWIDTH)
    }

    fn run_with(mode: Mode, limits: Limits, lefts: &[u64], rate: impl Fn(u32) -> u64) -> Option<Decision> {
        let mut policy = Policy::new(mode, limits, PAGES);
        let (mut before, mut total) = (PAGES, 0);
        (1..).zip(lefts).find_map(|(round, left)| {
            let sent = std::mem::replace(&mut before, *left);
            total += sent;
            policy.end_round(&RoundEnd {
                round,
                at: Duration::from_secs(round.into()),
                left: *left,
                sent,
                total,
                rate: Some(rate(round)),
                bandwidth: Some(BANDWIDTH),
                page_bytes: None,
            })
        })
    }

    fn reason(decision: Option<Decision>) -> Option<(Reason, u32)> {
        decision.map(|decision| (decision.reason, decision.round))
    }

    #[test]
    fn pages_that_are_compressed_fit_into_less_time_and_none_takes_more_than_its_bytes() {
        let fits = |left, page_bytes| {
            let end = RoundEnd {
                round: 1,
                left,
                bandwidth: Some(BANDWIDTH),
                page_bytes,
                ..RoundEnd::default()
            };
            reason(Policy::new(Mode::Hybrid, Limits::XEN, PAGES).end_round(&end)) == Some((Reason::Fits, 1))
        };
        assert!(fits(1000, None) && !fits(1001, None));
        assert!(fits(4000, Some(1024)) && !fits(4001, Some(1024)));
        assert!(fits(1000, Some(5000)) && !fits(1001, Some(5000)));
    }

    #[test]
    fn switch_when_what_is_left_fits_the_downtime_and_not_before() {
        for mode in [Mode::Precopy, Mode::Hybrid, Mode::Auto] {
            assert_eq!(reason(run(mode, &[40_000, 10_000, 1001])), None);
            let decision = run(mode, &[40_000, 10_000, 1000]);
            assert_eq!(reason(decision), Some((Reason::Fits, 3)));
            let decision = decision.unwrap();
            assert_eq!(decision.expected, Some(Duration::from_millis(100)));
            assert!(decision.fits() && !decision.is_longer());
            assert_eq!(
                decision.to_string(),
                "switch after round 3: the 1000 pages that are left can be sent within the downtime (100 ms of 100 ms)"
            );
        }
    }

    #[test]
    fn few_pages_are_enough_on_a_slow_link() {
        let limits = Limits {
            downtime: Duration::from_millis(1),
            ..Limits::XEN
        };
        assert_eq!(reason(run_with(Mode::Precopy, limits, &[50], |_| BANDWIDTH)), None);
        let decision = run_with(Mode::Precopy, limits, &[49], |_| BANDWIDTH);
        assert_eq!(reason(decision), Some((Reason::FewPages, 1)));
        assert!(decision.unwrap().is_longer());
    }

    #[test]
    fn stall_switches_at_a_local_minimum() {
        // Round 4 is not less than round 2, and more than round 3.
        let lefts = [40_000, 20_000, 18_000, 25_000, 24_000, 22_000, 18_500];
        assert_eq!(reason(run(Mode::Hybrid, &lefts)), Some((Reason::Stalled, 7)));
        assert_eq!(reason(run(Mode::Precopy, &lefts)), None);
        // At once where the level is as low as it has been.
        assert_eq!(
            reason(run(Mode::Hybrid, &[40_000, 20_000, 20_000, 20_000])),
            Some((Reason::Stalled, 4))
        );
    }

    #[test]
    fn level_that_does_not_come_back_is_raised() {
        let mut lefts = vec![20_000, 5000, 10_000, 11_000, 11_600];
        lefts.extend([12_000; 10]);
        // The stall is seen at round 4. After six rounds the level is 10,000, after three more 11,000, and then 11,600 after one.
        assert_eq!(reason(run(Mode::Hybrid, &lefts)), Some((Reason::Stalled, 13)));
    }

    #[test]
    fn stall_that_ends_is_forgotten() {
        let lefts = [40_000, 20_000, 30_000, 30_000, 30_000, 15_000, 8000, 4000, 900];
        assert_eq!(reason(run(Mode::Hybrid, &lefts)), Some((Reason::Fits, 9)));
    }

    #[test]
    fn auto_does_not_wait_when_a_round_gains_little() {
        let lefts = [40_000, 31_000, 23_500];
        assert_eq!(reason(run(Mode::Auto, &lefts)), Some((Reason::LittleGain, 2)));
        assert_eq!(reason(run(Mode::Hybrid, &lefts)), None);
        assert_eq!(reason(run(Mode::Auto, &[40_000, 29_000, 21_000])), None);
        // A burst: more is left than was, so that a later switch is a better one.
        assert_eq!(
            reason(run(Mode::Auto, &[20_000, 60_000, 10_000, 500])),
            Some((Reason::Fits, 4))
        );
    }

    #[test]
    fn slow_network_of_one_round_is_no_stall() {
        let lefts = [40_000, 20_000, 19_900, 19_800];
        let slow = |round| if round >= 3 { BANDWIDTH / 3 } else { BANDWIDTH };
        assert_eq!(reason(run_with(Mode::Hybrid, Limits::XEN, &lefts, slow)), None);
        assert_eq!(
            reason(run_with(Mode::Hybrid, Limits::XEN, &lefts, |_| BANDWIDTH)),
            Some((Reason::Stalled, 4))
        );
    }

    #[test]
    fn limited_bandwidth_is_no_slow_network() {
        let ends = |forget: bool| {
            let mut policy = Policy::new(Mode::Hybrid, Limits::XEN, PAGES);
            (1..).zip([40_000, 20_000, 20_000, 20_000]).find_map(|(round, left)| {
                // The limit is set in round 4, and the rate falls to a tenth.
                let share = if round == 4 { 10 } else { 1 };
                if forget && round == 4 {
                    policy.forget_bandwidth();
                }
                policy.end_round(&RoundEnd {
                    round,
                    at: Duration::from_secs(round.into()),
                    left,
                    sent: left,
                    total: PAGES,
                    rate: Some(BANDWIDTH / share),
                    bandwidth: Some(BANDWIDTH / share),
                    page_bytes: None,
                })
            })
        };
        assert_eq!(reason(ends(false)), None);
        assert_eq!(reason(ends(true)), Some((Reason::Stalled, 4)));
    }

    #[test]
    fn mode_and_downtime_that_are_changed_apply_from_the_next_round_on() {
        let mut policy = Policy::new(Mode::Precopy, Limits::XEN, PAGES);
        let end = |policy: &mut Policy, round: u32, left| {
            policy.end_round(&RoundEnd {
                round,
                at: Duration::from_secs(round.into()),
                left,
                sent: left,
                total: PAGES,
                rate: Some(BANDWIDTH),
                bandwidth: Some(BANDWIDTH),
                page_bytes: None,
            })
        };
        assert!((1..9).all(|round| end(&mut policy, round, 20_000).is_none()));
        let mut hybrid = policy.clone();
        hybrid.set_mode(Mode::Hybrid);
        assert_eq!(reason(end(&mut hybrid, 9, 20_000)), Some((Reason::Stalled, 9)));
        policy.set_limits(Limits {
            downtime: Duration::from_secs(2),
            ..Limits::XEN
        });
        assert_eq!(reason(end(&mut policy, 9, 20_000)), Some((Reason::Fits, 9)));
    }

    #[test]
    fn limits_end_rounds_that_nothing_else_ends() {
        let decision = run(Mode::Precopy, &[2000; 40]);
        assert_eq!(reason(decision), Some((Reason::Rounds, 29)));
        let text = decision.unwrap().to_string();
        assert_eq!(
            text,
            "switch after round 29: the limit of rounds is reached, with 2000 pages left; the downtime will be longer than 100 ms: about 200 ms and the time for the devices"
        );
        assert_eq!(
            reason(run_with(Mode::Precopy, Limits::PALACIOS, &[2000; 40], |_| BANDWIDTH)),
            Some((Reason::Rounds, 32))
        );
        assert_eq!(reason(run(Mode::Precopy, &[60_000; 40])), Some((Reason::Factor, 5)));
    }

    #[test]
    fn no_sequence_of_rounds_is_endless() {
        for seed in 0..200_u64 {
            let mut state = seed;
            let lefts: Vec<u64> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % PAGES
                })
                .collect();
            for mode in Mode::ALL {
                assert!(run(mode, &lefts).is_some(), "{mode}: {lefts:?}");
            }
        }
    }
}
