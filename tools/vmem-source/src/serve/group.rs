// SPDX-License-Identifier: GPL-2.0-or-later
//! The connections of one destination's rounds: which of them sends which pages.
//!
//! One thread at a time asks the [`Rounds`], whichever has nothing to send. Each part of what they choose is sent over the connection that its
//! chunk belongs to ([`ChunkOwners`]), and read there just before it is sent. `Documentation/precopy.rst` says why no page is overtaken by its
//! older contents.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmem::PageRange;

use crate::chunks::{ChunkOwners, chunks_of};
use crate::error::Error;
use crate::export::{Export, ExportRanges};
use crate::holes::Holes;
use crate::rounds::{Batch, Rounds, RoundsError};
use crate::wire::ProtocolError;
use crate::wire::session::{MAX_CONNECTIONS, Token};

/// How long a connection without pages waits before it answers without any.
const WAIT: Duration = Duration::from_secs(1);

/// How many pages may wait for a connection before the others stop to ask for more (2 MiB of contents, a chunk): what waits longer is more likely
/// to be written again, and is sent while the program stands still if it waits at the end.
const MAX_QUEUED: u64 = 512;

/// The connections of a destination, and what waits for each.
pub(super) struct Group {
    rounds: Arc<dyn Rounds>,
    token: Token,
    state: Mutex<State>,
    /// There are new pages, or the rounds are over or lost.
    changed: Condvar,
}

struct State {
    /// The first one is that which began the rounds.
    members: Vec<Member>,
    owners: ChunkOwners,
    /// A thread asks the rounds for pages, or for holes.
    is_asking: bool,
    /// A connection has asked for pages: holes would come too late for pages that are sent over another one.
    has_begun: bool,
    /// The latest round.
    round: u32,
    /// No more pages are chosen.
    is_over: bool,
    is_lost: bool,
    /// The end of the list of the remaining pages is being sent, or was sent.
    is_finished: bool,
}

#[derive(Default)]
struct Member {
    queue: VecDeque<Part>,
    /// Pages in the queue.
    queued: u64,
    /// All that it was sent has arrived.
    has_ended: bool,
}

/// A part of what the rounds have chosen at once.
struct Part {
    round: u32,
    pages: ExportRanges,
}

impl Group {
    /// A group of one connection.
    pub(super) fn new(rounds: Arc<dyn Rounds>, token: Token, exports: &[Export]) -> Self {
        Self {
            rounds,
            token,
            state: Mutex::new(State {
                members: vec![Member::default()],
                owners: ChunkOwners::new(exports),
                is_asking: false,
                has_begun: false,
                round: 1,
                is_over: false,
                is_lost: false,
                is_finished: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn rounds(&self) -> &dyn Rounds {
        &*self.rounds
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// Adds a connection that has this token. Returns its number.
    pub(super) fn join(&self, token: Token) -> Result<u8, Error> {
        let mut state = self.lock();
        if token != self.token {
            return Err(ProtocolError::Token("JOIN").into());
        }
        if state.is_over || state.is_lost || state.members.len() >= MAX_CONNECTIONS {
            return Err(Error::StagingBusy);
        }
        state.members.push(Member::default());
        Ok((state.members.len() - 1) as u8)
    }

    /// The next pages for a connection, at most `max`. If there are none, this waits, a second at most, and returns a batch without pages. It is
    /// over for the first connection once all others have ended, and for another one once nothing waits for it.
    pub(super) fn next(&self, number: u8, max: u64, exports: &[Export]) -> Result<Batch, RoundsError> {
        let until = Instant::now() + WAIT;
        let mut state = self.lock();
        state.has_begun = true;
        loop {
            if state.is_lost {
                return Err(lost());
            }
            if let Some(batch) = state.take(number, max) {
                self.changed.notify_all();
                return Ok(batch);
            }
            let nothing = Batch {
                round: state.round,
                pages: None,
                over: state.is_over_for(number),
            };
            if nothing.over {
                return Ok(nothing);
            }
            if !state.is_asking && !state.is_over && state.has_room() {
                state.is_asking = true;
                drop(state);
                // If this panics, the connection ends, and the rounds are lost.
                let asked = self.rounds.next(max);
                state = self.lock();
                state.is_asking = false;
                // Also after an error: another thread may be about to ask.
                self.changed.notify_all();
                let batch = asked?;
                batch.check(exports, max, state.round)?;
                let is_empty = batch.pages.is_none() && !batch.over;
                state.add(batch, number);
                if is_empty {
                    // The rounds have waited themselves.
                    return Ok(Batch {
                        round: state.round,
                        pages: None,
                        over: false,
                    });
                }
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(nothing);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Asks the rounds for holes, before any connection has asked for pages.
    pub(super) fn map(&self, export: usize, pages: PageRange, holes: &mut dyn FnMut(PageRange) -> Holes) -> Result<Holes, Error> {
        let mut state = self.lock();
        if state.is_lost {
            return Err(lost().into());
        }
        if state.has_begun {
            return Err(ProtocolError::LateMap.into());
        }
        // No other thread asks before a connection has asked for pages; those that do now wait.
        state.is_asking = true;
        drop(state);
        let holes = self.rounds.map(export, pages, holes);
        self.lock().is_asking = false;
        self.changed.notify_all();
        Ok(holes?)
    }

    /// All that a connection was sent has arrived.
    pub(super) fn end(&self, number: u8) {
        if let Some(member) = self.lock().members.get_mut(usize::from(number)) {
            member.has_ended = true;
        }
        self.changed.notify_all();
    }

    /// The end of the list of the remaining pages is sent next: from now on connections may end, but for the first one.
    pub(super) fn finish(&self) -> Result<(), RoundsError> {
        let mut state = self.lock();
        if state.is_lost {
            return Err(lost());
        }
        state.is_finished = true;
        Ok(())
    }

    /// A connection has ended before the rounds were finished. Returns whether they are lost with it, which they are once.
    pub(super) fn lose(&self, is_first: bool) -> bool {
        let mut state = self.lock();
        let loses = !state.is_lost && (is_first || !state.is_finished);
        state.is_lost |= loses;
        drop(state);
        self.changed.notify_all();
        loses
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with it is that of a connection, which ends: the rounds are lost.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> RoundsError {
    RoundsError::new("another connection of the destination was lost")
}

impl State {
    fn has_room(&self) -> bool {
        self.members.iter().all(|member| member.queued < MAX_QUEUED)
    }

    /// Whether a connection has nothing more to send, now that nothing waits for it.
    fn is_over_for(&self, number: u8) -> bool {
        self.is_over && (number > 0 || self.members.iter().skip(1).all(|member| member.has_ended))
    }

    /// Queues what the rounds have chosen when `number` asked.
    fn add(&mut self, batch: Batch, number: u8) {
        self.round = batch.round;
        self.is_over |= batch.over;
        let parts = batch.pages.map(|pages| self.owners.divide(&pages, number));
        for (owner, pages) in parts.into_iter().flatten() {
            if let Some(member) = self.members.get_mut(usize::from(owner)) {
                member.queued += pages.pages();
                member.queue.push_back(Part {
                    round: batch.round,
                    pages,
                });
            }
        }
    }

    /// Takes what waits for a connection, at most `max` pages: of one export and round, and none twice.
    fn take(&mut self, number: u8, max: u64) -> Option<Batch> {
        let member = self.members.get_mut(usize::from(number))?;
        let Part { round, pages } = member.queue.pop_front()?;
        let mut taken = pages;
        let mut chunks: HashSet<u64> = chunks_of(&taken.ranges).collect();
        while let Some(next) = member.queue.front() {
            // The rounds choose no page twice at once, but may choose a page again.
            let fits = (next.round, next.pages.export) == (round, taken.export) && taken.pages() < max;
            if !fits || chunks_of(&next.pages.ranges).any(|chunk| chunks.contains(&chunk)) {
                break;
            }
            chunks.extend(chunks_of(&next.pages.ranges));
            let next = member.queue.pop_front();
            taken.ranges.extend(next.into_iter().flat_map(|next| next.pages.ranges));
        }
        let rest = split(&mut taken, max);
        member.queued -= taken.pages();
        if let Some(pages) = rest {
            member.queue.push_front(Part { round, pages });
        }
        let is_empty = member.queue.is_empty();
        Some(Batch {
            round,
            pages: Some(taken),
            over: is_empty && self.is_over_for(number),
        })
    }
}

/// Cuts pages off behind the first `max`, and returns them.
fn split(pages: &mut ExportRanges, max: u64) -> Option<ExportRanges> {
    let (mut kept, mut rest, mut room) = (Vec::new(), Vec::new(), max);
    for range in pages.ranges.drain(..) {
        let (front, back) = match room {
            0 => (None, Some(range)),
            _ => range.split_at(room),
        };
        room -= front.map_or(0, |front| front.count());
        kept.extend(front);
        rest.extend(back);
    }
    pages.ranges = kept;
    let export = pages.export;
    (!rest.is_empty()).then_some(ExportRanges { export, ranges: rest })
}

#[cfg(test)]
mod tests {
    use vmem::Name;

    use super::*;
    use crate::rounds::Sent;

    /// Rounds that choose these pages of one export, one after the other, all in round 1.
    struct Script(Mutex<VecDeque<Vec<(u64, u64)>>>);

    impl Rounds for Script {
        fn next(&self, _: u64) -> Result<Batch, RoundsError> {
            let next = self.0.lock().expect("no panic").pop_front();
            let range = |(first, count): &(u64, u64)| PageRange::from_pgoff(*first, *count).expect("a range");
            let over = next.is_none();
            let pages = next.map(|ranges| ExportRanges {
                export: 0,
                ranges: ranges.iter().map(range).collect(),
            });
            Ok(Batch { round: 1, pages, over })
        }

        fn sent(&self, _: &Batch, _: &Sent) {}

        fn remainder(&self) -> Result<Vec<ExportRanges>, RoundsError> {
            Ok(Vec::new())
        }

        fn lost(&self) {}
    }

    fn exports() -> Vec<Export> {
        vec![Export {
            name: Name::new("ram").expect("a name"),
            pages: PageRange::of_pages(1 << 20).expect("pages"),
            padding: 0,
            identity: 0,
        }]
    }

    fn group(chosen: &[&[(u64, u64)]], connections: u8) -> Group {
        let script = Script(Mutex::new(chosen.iter().map(|ranges| ranges.to_vec()).collect()));
        let token = Token::from_bits(1);
        let group = Group::new(Arc::new(script), token, &exports());
        (1..connections).for_each(|number| assert_eq!(group.join(token).expect("room"), number));
        group
    }

    fn next(group: &Group, number: u8, max: u64) -> (Vec<(u64, u64)>, bool) {
        let batch = group.next(number, max, &exports()).expect("a batch");
        let ranges = batch.pages.map(|pages| pages.ranges).unwrap_or_default();
        let ranges = ranges.iter().map(|range| (range.first().get(), range.count())).collect();
        (ranges, batch.over)
    }

    #[test]
    fn page_that_is_chosen_again_is_in_another_answer() {
        let group = group(&[&[(0, 1)], &[(5, 2)], &[(600, 1), (7, 1)], &[(5, 1)], &[(700, 1)]], 2);
        assert_eq!(next(&group, 0, 10), (vec![(0, 1)], false));
        // It asks until there is something of its own: 600, and then 700. All else waits for the first connection.
        assert_eq!(next(&group, 1, 10), (vec![(600, 1)], false));
        assert_eq!(next(&group, 1, 10), (vec![(700, 1)], false));
        assert_eq!(next(&group, 0, 10), (vec![(5, 2)], false));
        assert_eq!(next(&group, 0, 10), (vec![(7, 1)], false));
        assert_eq!(next(&group, 0, 10), (vec![(5, 1)], false));
        assert_eq!(next(&group, 1, 10), (vec![], true));
        group.end(1);
        assert_eq!(next(&group, 0, 10), (vec![], true));
    }

    #[test]
    fn parts_of_other_chunks_are_put_together_up_to_the_limit() {
        let group = group(
            &[
                &[(0, 1), (512, 1), (1024, 1), (1536, 1)],
                &[(1, 1)],
                &[(513, 4), (1030, 9)],
                &[(4096, 1)],
            ],
            2,
        );
        assert_eq!(next(&group, 0, 4), (vec![(0, 1), (512, 1), (1024, 1), (1536, 1)], false));
        assert_eq!(next(&group, 1, 20), (vec![(4096, 1)], false));
        assert_eq!(next(&group, 0, 4), (vec![(1, 1), (513, 3)], false));
        assert_eq!(next(&group, 0, 4), (vec![(516, 1), (1030, 3)], false));
        assert_eq!(next(&group, 0, 4096), (vec![(1033, 6)], false));
    }

    #[test]
    fn pages_of_one_connection_are_sent_with_the_end_of_the_rounds() {
        let group = group(&[], 1);
        assert_eq!(next(&group, 0, 10), (vec![], true));
        assert!(matches!(group.join(group.token()), Err(Error::StagingBusy)));
    }

    #[test]
    fn loss_is_told_once_and_after_the_list_it_is_none_but_for_the_first() {
        let group = group(&[&[(0, 1)]], 3);
        group.finish().expect("not lost");
        assert!(!group.lose(false));
        assert!(group.lose(true));
        let lost = self::group(&[&[(0, 1)]], 3);
        assert!(lost.lose(false));
        assert!(!lost.lose(true) && !lost.lose(false));
        assert!(lost.finish().is_err() && lost.next(0, 1, &exports()).is_err());
        assert!(matches!(lost.join(lost.token()), Err(Error::StagingBusy)));
    }
}
