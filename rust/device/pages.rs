// SPDX-License-Identifier: GPL-2.0

//! The pages of a region: their states, their requests, and the threads that wait for them.

use super::{
    primitives::WaitParams,
    shard::Shard, //
};
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
        rendezvous::Rendezvous,
        shards::{
            Shards,
            Slots, //
        }, //
    },
    sys::{
        array_vec::ArrayVec,
        fault_address::FaultAddresses,
        task::sleep_killable,
        wait::{
            PollQueue,
            WaitOutcome,
            WaitQueue, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb, //
    }, //
};

/// A counter that many threads increase.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    /// A counter at zero.
    pub(super) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts one.
    pub(crate) fn count(&self) {
        self.0.add(1u64, Relaxed);
    }

    /// Counts `nr`.
    pub(crate) fn add(&self, nr: u64) {
        self.0.add(nr, Relaxed);
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
    /// The daemon's threads that wait for requests.
    #[pin]
    pub(crate) request_waiters: PollQueue,
    /// One bit for each shard that has queued requests. It is changed with the shard locked.
    queued: Atomic<u64>,
    /// The shard at which the next search for requests begins, so that each shard gets its turn.
    next_shard: Atomic<u64>,
    /// Programs in poll() on files whose last read or write did not wait for a page.
    #[pin]
    pub(super) pollers: PollQueue,
    /// How many files there are whose last read or write did not wait for a page.
    refusals: Atomic<u64>,
    /// Faults on absent pages since creation.
    pub(crate) faults: Counter,
    /// Requests raised since creation.
    pub(crate) requests: Counter,
    /// Pages read from backing since creation.
    pub(crate) backed: Counter,
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
            request_waiters <- PollQueue::new(),
            queued: Atomic::new(0),
            next_shard: Atomic::new(0),
            pollers <- PollQueue::new(),
            refusals: Atomic::new(0),
            faults: Counter::new(),
            requests: Counter::new(),
            backed: Counter::new(),
        }))
    }

    /// How many there are.
    pub(crate) fn nr(&self) -> u64 {
        self.nr
    }

    /// The pages `[pgoff, pgoff + nr)`. `EINVAL` if there are no such pages.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.nr).ok_or(EINVAL)
    }

    /// The shard and the slots of `range`, which lies in one block.
    pub(crate) fn locate(&self, range: PageRange) -> Result<(&Shard, Slots)> {
        let slots = self.layout.locate(range);
        let shard = self.shards.get(slots.shard).ok_or(EINVAL)?;
        Ok((shard, slots))
    }

    fn page(&self, pgoff: u64) -> Result<Slots> {
        Ok(self.layout.locate(self.range(pgoff, 1)?))
    }

    /// The protocol between touches and the daemon.
    fn rendezvous(&self) -> Rendezvous<'_, Pin<KBox<Shard>>, PollQueue, Atomic<u64>> {
        Rendezvous {
            layout: self.layout,
            shards: &self.shards,
            request_waiters: &self.request_waiters,
            queued: &self.queued,
            next_shard: &self.next_shard,
        }
    }

    /// Whether all pages of `range` are present. Pages beyond the end are ignored.
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

    /// Which pages of `range`, at most 64, are present: a bit for each, the lowest for the first.
    /// Pages beyond the end are not.
    pub(crate) fn present_among(&self, range: PageRange) -> u64 {
        let nr = range.end().min(self.nr).saturating_sub(range.start());
        let Ok(range) = self.range(range.start(), nr) else {
            return 0;
        };
        range.blocks().fold(0, |bits, block| {
            let Ok((shard, slots)) = self.locate(block) else {
                return bits;
            };
            let present = shard.map.lock().present_among(slots);
            let skip = block.start().saturating_sub(range.start()) as u32;
            bits | present.checked_shl(skip).unwrap_or(0)
        })
    }

    /// Which pages of a block are present: bit `i % 64` of word `i / 64` for the page `i` after the
    /// first of the block.
    pub(crate) fn present_bits(&self, block: PageRange) -> Result<BlockBits> {
        let (shard, slots) = self.locate(block)?;
        let map = shard.map.lock();
        Ok(block_bits(slots, |word| map.present_word(word)))
    }

    /// The runs of pages, in a range within one block, that are not present. The caller holds the
    /// shard's `fill`, so they stay so.
    pub(crate) fn absent_runs(&self, range: PageRange) -> Result<impl Iterator<Item = PageRange>> {
        Ok(range.runs_without(self.present_bits(range)?))
    }

    /// The first page from `pgoff` on that is not present.
    pub(crate) fn next_absent(&self, pgoff: u64) -> Option<u64> {
        let rest = self.range(pgoff, self.nr.checked_sub(pgoff)?).ok()?;
        rest.blocks().find_map(|block| {
            let run = self.absent_runs(block).ok()?.next()?;
            Some(run.start())
        })
    }

    /// Waits until all fills that began before this call have ended. `EINTR` if the task is being
    /// killed.
    pub(crate) fn await_fills(&self) -> Result {
        for shard in &self.shards {
            // A discard waits for writes to the staging file, which may take for ever.
            while shard.fill.try_lock().is_none() {
                sleep_killable()?;
            }
        }
        Ok(())
    }

    /// Wakes all threads that wait for a page, to check whether their wait is cancelled.
    pub(crate) fn wake_waiters(&self) {
        for shard in &self.shards {
            shard.waiters.wake_all();
        }
    }

    /// Whether a page of `range`, which lies in one block, is requested.
    pub(crate) fn any_requested(&self, range: PageRange) -> Result<bool> {
        let (shard, slots) = self.locate(range)?;
        let requested = shard.map.lock().any_requested(slots);
        Ok(requested)
    }

    /// Whether a page is absent and requested.
    pub(super) fn is_requested(&self, pgoff: u64) -> bool {
        self.range(pgoff, 1)
            .and_then(|page| self.any_requested(page))
            .is_ok_and(|is_requested| is_requested)
    }

    /// A touch of a page. Requests the page if it is absent. Returns the state that the touch has
    /// found.
    pub(super) fn touch(&self, pgoff: u64) -> Touch {
        let Ok(slots) = self.page(pgoff) else {
            return Touch::Unreadable;
        };
        self.count(self.rendezvous().touch(slots))
    }

    /// The same by a thread that will see that an absent page is read, which claims the page
    /// instead.
    pub(super) fn claim(&self, pgoff: u64) -> Touch {
        let Ok(slots) = self.page(pgoff) else {
            return Touch::Unreadable;
        };
        self.count(self.rendezvous().claim(slots))
    }

    /// What a touch of a page finds. [`None`] if the page is absent, and neither requested nor
    /// claimed: then the touch is still to be counted.
    pub(super) fn look(&self, pgoff: u64) -> Option<Touch> {
        let Ok(page) = self.range(pgoff, 1).and_then(|page| self.locate(page)) else {
            return Some(Touch::Unreadable);
        };
        let (shard, slots) = page;
        let found = shard.map.lock().look(slots);
        found.map(|touch| self.count(touch))
    }

    fn count(&self, touch: Touch) -> Touch {
        match touch {
            Touch::NewlyRequested => {
                self.requests.count();
                self.faults.count();
            }
            Touch::AlreadyRequested | Touch::NewlyClaimed | Touch::AlreadyClaimed => {
                self.faults.count();
            }
            Touch::Present | Touch::Unreadable => {}
        }
        touch
    }

    /// The absent pages around `pgoff` in `window`, which lies in one block, and that page itself.
    /// [`None`] if it is present or unreadable.
    pub(super) fn absent_around(&self, window: PageRange, pgoff: u64) -> Option<PageRange> {
        self.around(window, pgoff, |map, slots, at| {
            let first = at;
            let own = Slots { first, ..slots };
            (!map.is_settled(own)).then(|| map.absent_around(slots, at))
        })
        .ok()
    }

    /// Claims these pages. The page `pgoff` is claimed already.
    pub(super) fn claim_around(&self, window: PageRange, pgoff: u64) -> Result<PageRange> {
        self.around(window, pgoff, |map, slots, at| {
            Some(map.claim_around(slots, at))
        })
    }

    fn around(
        &self,
        window: PageRange,
        pgoff: u64,
        find: impl FnOnce(&mut PageMap<KVVec<u64>>, Slots, usize) -> Option<Slots>,
    ) -> Result<PageRange> {
        let (shard, slots) = self.locate(window)?;
        let at = self.page(pgoff)?.first;
        let run = find(&mut shard.map.lock(), slots, at).ok_or(EINVAL)?;
        self.range(
            self.layout.pgoff(run.shard, run.first),
            u64::try_from(run.nr).map_err(|_| EINVAL)?,
        )
    }

    /// The claimed pages among those of a range within one block.
    pub(super) fn claimed_runs(&self, range: PageRange) -> Result<impl Iterator<Item = PageRange>> {
        let (shard, slots) = self.locate(range)?;
        let map = shard.map.lock();
        let others = block_bits(slots, |word| !map.claimed_word(word));
        Ok(range.runs_without(others))
    }

    /// Whether a page is claimed.
    pub(super) fn is_claimed(&self, pgoff: u64) -> bool {
        self.range(pgoff, 1)
            .and_then(|page| self.locate(page))
            .is_ok_and(|(shard, slots)| shard.map.lock().is_claimed(slots))
    }

    /// Whether a page is absent, and requested or claimed.
    pub(super) fn is_awaited(&self, pgoff: u64) -> bool {
        self.range(pgoff, 1)
            .and_then(|page| self.locate(page))
            .is_ok_and(|(shard, slots)| shard.map.lock().is_awaited(slots))
    }

    /// Gives up the claims to pages of a range within one block. With `requests`, these pages are
    /// then requested. Threads that wait for the pages touch them again.
    pub(super) fn release(&self, range: PageRange, requests: bool) -> Result {
        let (_, slots) = self.locate(range)?;
        let wake = self.rendezvous().release(slots, requests);
        self.wake_pollers(wake);
        Ok(())
    }

    /// Takes back the requests for pages of a range within one block. Threads that wait for the
    /// pages touch them again.
    pub(super) fn withdraw_requests(&self, range: PageRange) -> Result {
        let (_, slots) = self.locate(range)?;
        let wake = self.rendezvous().withdraw(slots);
        self.wake_pollers(wake);
        Ok(())
    }

    /// All shards.
    pub(super) fn shards(&self) -> &[Pin<KBox<Shard>>] {
        &self.shards
    }

    /// Whether the page is present or unreadable.
    pub(crate) fn is_settled(&self, pgoff: u64) -> bool {
        self.range(pgoff, 1)
            .and_then(|page| self.locate(page))
            .map_or(true, |(shard, slots)| shard.map.lock().is_settled(slots))
    }

    /// Waits until the page is present or unreadable, until it is neither requested nor claimed any
    /// more, or until `cancelled`.
    pub(crate) fn wait(
        &self,
        pgoff: u64,
        params: WaitParams,
        cancelled: impl Fn() -> bool,
    ) -> WaitOutcome {
        self.page(pgoff)
            .ok()
            .and_then(|slots| self.rendezvous().await_page(slots, params, cancelled))
            .unwrap_or(WaitOutcome::Done)
    }

    /// Settles pages within one block and wakes the threads that wait for them. Returns how many
    /// have changed.
    ///
    /// The caller holds the shard's `fill`, or does something that no other fill could undo.
    pub(crate) fn settle(&self, range: PageRange, verdict: Verdict) -> Result<u64> {
        let (_, slots) = self.locate(range)?;
        let settled = self.rendezvous().settle(slots, verdict);
        self.wake_pollers(settled.wake);
        Ok(settled.changed)
    }

    /// Settles pages as present in the same way. If threads wait for them, calls `map_filled` with
    /// the addresses of their faults before it wakes them. `map_filled` returns whether it has
    /// mapped the page at each address.
    pub(crate) fn settle_and_map(
        &self,
        range: PageRange,
        map_filled: impl FnOnce(&FaultAddresses) -> bool,
    ) -> Result<u64> {
        let (_, slots) = self.locate(range)?;
        let wake = |queue: &WaitQueue| {
            let mut addresses = FaultAddresses::new();
            queue.fault_addresses(range.start(), range.end(), &mut addresses);
            let mapped = !addresses.is_empty() && map_filled(&addresses);
            queue.wake(range.start(), range.end(), mapped);
        };
        let settled = self.rendezvous().settle_and(slots, Verdict::Present, wake);
        self.wake_pollers(settled.wake);
        Ok(settled.changed)
    }

    /// Pages have changed their state: programs that wait for one of them in poll() look again.
    fn wake_pollers(&self, wake: bool) {
        // Between the change of the state and the look for programs. A program looks in the reverse
        // order: it is in the queue, and counted, before it looks at the state.
        if wake {
            smp_mb(Full);
            if self.refusals.load(Relaxed) != 0 {
                self.pollers.wake_all();
            }
        }
    }

    /// The read or write of a file does not wait for a page. Until [`Pages::forget_refusal`], its
    /// poll() is woken when pages that were requested change their state.
    pub(super) fn count_refusal(&self) {
        self.refusals.fetch_add(1u64, Full);
    }

    /// The same file has read or written without such a wait, or is closed.
    pub(super) fn forget_refusal(&self) {
        self.refusals.fetch_add(u64::MAX, Relaxed);
    }

    /// The first page from `pgoff` on that is present.
    pub(crate) fn next_present(&self, pgoff: u64) -> Option<u64> {
        let rest = self.range(pgoff, self.nr.checked_sub(pgoff)?).ok()?;
        rest.blocks().find_map(|block| {
            let absent = self.present_bits(block).ok()?.map(|word| !word);
            Some(block.runs_without(absent).next()?.start())
        })
    }

    /// Whether there are requests to take.
    pub(crate) fn has_requests(&self) -> bool {
        self.rendezvous().has_requests()
    }

    /// Waits until there are requests to take, or until `cancelled`.
    pub(crate) fn await_requests(&self, cancelled: impl Fn() -> bool) -> WaitOutcome {
        self.rendezvous().await_requests((), cancelled)
    }

    /// Takes requests into `pages`: at most `max`, which fit.
    pub(crate) fn take_requests<const N: usize>(&self, pages: &mut ArrayVec<u64, N>, max: usize) {
        self.rendezvous().take(max, |pgoff| {
            pages.push(pgoff);
        });
    }

    /// Queues requests again that were taken and could not be copied to the daemon.
    pub(crate) fn requeue(&self, pages: &[u64]) {
        let slots = pages.iter().filter_map(|&pgoff| self.page(pgoff).ok());
        self.rendezvous().requeue(slots);
    }

    /// Queues all requests again that a daemon has taken and not answered.
    pub(crate) fn requeue_taken(&self) {
        self.rendezvous().requeue_taken();
    }

    /// Ends the service of a daemon. Requests that it has taken and not answered are queued again.
    /// `detach` lets the next daemon attach. Then all waiting threads check whether their wait is
    /// cancelled.
    pub(crate) fn detach_daemon(&self, detach: impl FnOnce()) {
        self.rendezvous().detach_daemon(detach);
        self.pollers.wake_all();
    }

    /// How many pages are in which state.
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

    /// How many threads wait, and how long the longest of these waits is, in nanoseconds.
    pub(crate) fn waiters(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(nr, oldest), shard| {
            let (more, age) = shard.waiters.stats();
            (nr + more, age.max(oldest))
        })
    }
}

/// A bit for each page of the block that `slots` are in. Only the words of `slots` are filled in.
fn block_bits(slots: Slots, word: impl Fn(usize) -> u64) -> BlockBits {
    let first = slots.first / 64;
    let last = slots.first.saturating_add(slots.nr).saturating_sub(1) / 64;
    let mut bits = BlockBits::default();
    for at in first..=last {
        if let Some(bits) = bits.get_mut(at % (BLOCK_PAGES as usize / 64)) {
            *bits = word(at);
        }
    }
    bits
}
