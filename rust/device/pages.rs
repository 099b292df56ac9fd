// SPDX-License-Identifier: GPL-2.0

//! The pages of a region: which are here, which are wanted, and who waits for them.

use super::shard::Shard;
use crate::{
    model::{
        page_map::{
            Counts,
            PageMap,
            Touch,
            Verdict, //
        },
        range::{
            BlockBits,
            PageRange,
            BLOCK_PAGES, //
        },
        shards::{
            Shards,
            Slots, //
        }, //
    },
    sys::wait::{
        Patience,
        WaitQueue,
        Woken, //
    }, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed, //
    }, //
};

/// A counter that many threads count up.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    /// At zero.
    pub(super) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts one.
    pub(crate) fn count(&self) {
        self.0.add(1u64, Relaxed);
    }

    /// The count.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The pages.
#[pin_data]
pub(crate) struct Pages {
    nr: u64,
    layout: Shards,
    shards: KVec<Pin<KBox<Shard>>>,
    /// The daemon, when it waits for requests.
    #[pin]
    pub(crate) takers: WaitQueue,
    /// One bit for each shard that has requests in its queue. Changed with the shard locked.
    queued: Atomic<u64>,
    /// Where the next search for requests begins, so that no shard is left waiting.
    next_shard: Atomic<u32>,
    /// Faults on absent pages since creation.
    pub(crate) faults: Counter,
    /// Requests raised since creation.
    pub(crate) requests: Counter,
}

impl Pages {
    /// `nr` pages, all absent.
    pub(crate) fn new(nr: u64) -> Result<impl PinInit<Self>> {
        let layout = Shards::new(nr);
        let shards = Shard::allocate(layout.count(), layout.slots_per_shard())?;
        Ok(pin_init!(Self {
            nr,
            layout,
            shards,
            takers <- WaitQueue::new(),
            queued: Atomic::new(0),
            next_shard: Atomic::new(0),
            faults: Counter::new(),
            requests: Counter::new(),
        }))
    }

    /// How many there are.
    pub(crate) fn nr(&self) -> u64 {
        self.nr
    }

    /// The pages `[pgoff, pgoff + nr)`; `EINVAL` if they are not a run among these.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.nr).ok_or(EINVAL)
    }

    /// Where `range` is, which lies in one block.
    pub(crate) fn locate(&self, range: PageRange) -> Result<(&Shard, Slots)> {
        let slots = self.layout.locate(range);
        let shard = self.shards.get(slots.shard).ok_or(EINVAL)?;
        Ok((shard, slots))
    }

    fn page(&self, pgoff: u64) -> Result<(&Shard, Slots)> {
        self.locate(self.range(pgoff, 1)?)
    }

    /// Whether all of `range` is present, as far as there are such pages.
    pub(crate) fn all_present(&self, range: PageRange) -> bool {
        let nr = range.end().min(self.nr).saturating_sub(range.start());
        let Ok(range) = self.range(range.start(), nr) else {
            return false;
        };
        range.blocks().all(|block| {
            self.locate(block)
                .is_ok_and(|(shard, slots)| shard.map.lock().all_present(slots))
        })
    }

    /// Which pages of a block are present: bit `i % 64` of word `i / 64` for the page `i` after the
    /// first of the block.
    pub(crate) fn present_bits(&self, block: PageRange) -> Result<BlockBits> {
        let (shard, slots) = self.locate(block)?;
        let map = shard.map.lock();
        let first = slots.first - slots.first % BLOCK_PAGES as usize;
        let mut bits = BlockBits::default();
        for (at, word) in bits.iter_mut().enumerate() {
            *word = map.present_word(first / 64 + at);
        }
        Ok(bits)
    }

    /// The runs of pages, in a range within one block, that are not present. The caller holds the
    /// shard's `fill`, so they stay so.
    pub(crate) fn absent_runs(&self, range: PageRange) -> Result<impl Iterator<Item = PageRange>> {
        Ok(range.runs_without(self.present_bits(range)?))
    }

    /// A touch of a page: what it finds. Requests the page if it is absent.
    pub(crate) fn touch(&self, pgoff: u64) -> Touch {
        let Ok((shard, slots)) = self.page(pgoff) else {
            return Touch::Unreadable;
        };
        let touch = self.change(shard, slots.shard, |map| map.touch(slots));
        match touch {
            Touch::Requested => {
                self.requests.count();
                self.faults.count();
                self.takers.wake_all();
            }
            Touch::Waiting => self.faults.count(),
            Touch::Present | Touch::Unreadable => {}
        }
        touch
    }

    /// Whether the page has its final answer.
    pub(crate) fn is_settled(&self, pgoff: u64) -> bool {
        self.page(pgoff)
            .map_or(true, |(shard, slots)| shard.map.lock().is_settled(slots))
    }

    /// Waits until the page has its answer or `in_vain`, for `limit_ms` if that is not 0.
    pub(crate) fn wait(
        &self,
        pgoff: u64,
        patience: Patience,
        limit_ms: u32,
        in_vain: impl Fn() -> bool,
    ) -> Woken {
        let Ok((shard, _)) = self.page(pgoff) else {
            return Woken::Done;
        };
        shard.waiters.wait(pgoff, patience, limit_ms, || {
            self.is_settled(pgoff) || in_vain()
        })
    }

    /// Settles pages within one block and wakes who waits for them. Returns how many have changed.
    ///
    /// The caller holds the shard's `fill`, or has nothing that another fill could undo.
    pub(crate) fn settle(&self, range: PageRange, verdict: Verdict) -> Result<u64> {
        let (shard, slots) = self.locate(range)?;
        let settled = self.change(shard, slots.shard, |map| map.settle(slots, verdict));
        if settled.wake {
            shard.waiters.wake(range.start(), range.end());
        }
        Ok(settled.changed)
    }

    /// Whether there are requests to take.
    pub(crate) fn has_requests(&self) -> bool {
        self.queued.load(Acquire) != 0
    }

    /// Takes requests into `pages`, up to `max`, for which it has room.
    pub(crate) fn take_requests(&self, pages: &mut KVec<u64>, max: usize) {
        let first = self.next_shard.load(Relaxed) % u64::BITS;
        // From `first` on, then the rest.
        let mut left = self.queued.load(Acquire).rotate_right(first);
        while left != 0 && pages.len() < max {
            let step = left.trailing_zeros();
            left &= left - 1;
            let at = ((first + step) % u64::BITS) as usize;
            let Some(shard) = self.shards.get(at) else {
                continue;
            };
            let room = max - pages.len();
            self.change(shard, at, |map| {
                map.take(room, |slot| {
                    // There is room, so this does not fail.
                    let _ = pages.push_within_capacity(self.layout.pgoff(at, slot));
                })
            });
            self.next_shard.store(at as u32 + 1, Relaxed);
        }
    }

    /// Puts requests back that were taken and could not be handed over.
    pub(crate) fn put_back(&self, pages: &[u64]) {
        for &pgoff in pages {
            if let Ok((shard, slots)) = self.page(pgoff) {
                self.requeue(shard, slots);
            }
        }
        self.takers.wake_all();
    }

    /// Puts all requests back that were taken and not answered: who took them is gone.
    pub(crate) fn put_all_back(&self) {
        let nr = self.layout.slots_per_shard();
        for (at, shard) in self.shards.iter().enumerate() {
            let all = Slots {
                shard: at,
                first: 0,
                nr,
            };
            self.requeue(shard, all);
        }
        self.takers.wake_all();
    }

    fn requeue(&self, shard: &Shard, slots: Slots) {
        self.change(shard, slots.shard, |map| map.requeue(slots));
    }

    /// Changes the map of the shard `at`, and the bit that says whether it has requests.
    fn change<R>(
        &self,
        shard: &Shard,
        at: usize,
        change: impl FnOnce(&mut PageMap<KVVec<u64>>) -> R,
    ) -> R {
        // There are no more shards than bits.
        let bit = 1u64 << (at % u64::BITS as usize);
        let mut map = shard.map.lock();
        let before = map.counts().queued > 0;
        let result = change(&mut map);
        match (before, map.counts().queued > 0) {
            (false, true) => self.queued.add(bit, Relaxed),
            (true, false) => self.queued.add(bit.wrapping_neg(), Relaxed),
            _ => {}
        }
        result
    }

    /// Lets everybody who waits look again whether it is in vain.
    pub(crate) fn wake_all(&self) {
        for shard in &self.shards {
            shard.waiters.wake_all();
        }
    }

    /// How many are in which state.
    pub(crate) fn counts(&self) -> Counts {
        self.shards.iter().fold(Counts::default(), |sum, shard| {
            let counts = shard.map.lock().counts();
            Counts {
                present: sum.present + counts.present,
                unreadable: sum.unreadable + counts.unreadable,
                requested: sum.requested + counts.requested,
                queued: sum.queued + counts.queued,
            }
        })
    }

    /// How many threads wait, and for how many nanoseconds the longest of them has.
    pub(crate) fn waiters(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(nr, oldest), shard| {
            let (more, age) = shard.waiters.census();
            (nr + more, age.max(oldest))
        })
    }
}
