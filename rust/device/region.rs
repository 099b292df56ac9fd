// SPDX-License-Identifier: GPL-2.0

//! A region: its pages, who waits for them, and whether a daemon serves it.

use crate::{
    model::{
        page_map::{
            words_for,
            Counts,
            PageMap,
            Touch,
            Verdict, //
        },
        range::{
            BlockBits,
            PageRange,
            BLOCK_PAGES,
            PAGE_SIZE, //
        },
        shards::{
            Shards,
            Slots, //
        }, //
    },
    sys::{
        memcg::Memcg,
        staging::Staging,
        uapi::{
            VMEM_CREATE_HUGE,
            VMEM_CREATE_SIGBUS, //
        },
        wait::{
            Patience,
            WaitQueue,
            Woken, //
        }, //
    }, //
};
use kernel::{
    alloc::flags::{
        GFP_KERNEL_ACCOUNT,
        __GFP_NOWARN, //
    },
    new_mutex,
    new_spinlock,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex,
        SpinLock, //
    }, //
};

/// Bits a page that its map takes, not counting the small plane of planes.
const PLANES: u64 = 3;

/// What a region is created with.
pub(crate) struct Config {
    /// Number of the region.
    pub(crate) id: u64,
    /// What `/proc/PID/maps` calls it.
    pub(crate) label: CString,
    /// Pages.
    pub(crate) nr_pages: u64,
    /// `VMEM_CREATE` bits.
    pub(crate) flags: u32,
    /// How long a touch waits, in milliseconds; 0 is without end.
    pub(crate) fault_timeout_ms: u32,
}

/// Counters since creation.
#[derive(Default)]
pub(crate) struct Counters {
    /// Faults on absent pages.
    pub(crate) faults: Counter,
    /// Requests raised.
    pub(crate) requests: Counter,
    /// Faults answered with SIGBUS.
    pub(crate) sigbus: Counter,
}

/// A counter that many threads count up.
pub(crate) struct Counter(Atomic<u64>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    /// Counts one.
    pub(crate) fn count(&self) {
        self.0.add(1u64, Relaxed);
    }

    /// The count.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A part of the pages, with its own locks. See `device.rs` for their order.
#[pin_data]
pub(crate) struct Shard {
    /// What is known of each page.
    #[pin]
    map: SpinLock<PageMap<KVVec<u64>>>,
    /// Held from looking whether pages are present until they have been made so.
    #[pin]
    pub(crate) fill: Mutex<()>,
    /// Who waits for a page of this shard; the key is the page offset.
    #[pin]
    pub(crate) waiters: WaitQueue,
}

/// A region.
#[pin_data]
pub(crate) struct Region {
    config: Config,
    layout: Shards,
    shards: KVec<Pin<KBox<Shard>>>,
    staging: Staging,
    /// The daemon, when it waits for requests.
    #[pin]
    pub(crate) takers: WaitQueue,
    /// Who is in WAIT_READY.
    #[pin]
    pub(crate) starters: WaitQueue,
    /// Requests in the queue, of all shards. Changed with the shard locked.
    queued: Atomic<i64>,
    /// Where the next search for requests begins, so that no shard is left waiting.
    next_shard: Atomic<usize>,
    attached: Atomic<bool>,
    ready: Atomic<bool>,
    plain: Atomic<bool>,
    counters: Counters,
    /// Whom pages are charged to: the cgroup of the first program that mapped the region.
    #[pin]
    charge: SpinLock<Option<Arc<Memcg>>>,
}

impl Region {
    /// A region whose pages are all absent, and which no daemon serves.
    pub(crate) fn new(config: Config) -> Result<Arc<Self>> {
        let layout = Shards::new(config.nr_pages);
        let size = config.nr_pages.checked_mul(PAGE_SIZE).ok_or(EFBIG)?;
        let staging = Staging::new(&config.label, size)?;
        // The page map of a huge region on a small machine is an error here, not a case for the OOM
        // killer.
        let words = words_for(layout.slots_per_shard()) as u64;
        let map_bytes = words.saturating_mul(layout.count() as u64 * PLANES * 8);
        if map_bytes > crate::sys::task::available_memory() / 2 {
            return Err(ENOMEM);
        }
        let mut shards = KVec::with_capacity(layout.count(), GFP_KERNEL)?;
        for _ in 0..layout.count() {
            shards.push(Shard::new(layout.slots_per_shard())?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                config,
                layout,
                shards,
                staging,
                takers <- WaitQueue::new(),
                starters <- WaitQueue::new(),
                queued: Atomic::new(0),
                next_shard: Atomic::new(0),
                attached: Atomic::new(false),
                ready: Atomic::new(false),
                plain: Atomic::new(false),
                counters: Counters::default(),
                charge <- new_spinlock!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Number of the region.
    pub(crate) fn id(&self) -> u64 {
        self.config.id
    }

    /// What `/proc/PID/maps` calls it.
    pub(crate) fn label(&self) -> &CStr {
        &self.config.label
    }

    /// Pages.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.config.nr_pages
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.config.nr_pages.saturating_mul(PAGE_SIZE)
    }

    /// `VMEM_CREATE` bits.
    pub(crate) fn flags(&self) -> u32 {
        self.config.flags
    }

    /// Whether its mappings shall have huge pages when they become plain memory.
    pub(crate) fn wants_huge(&self) -> bool {
        self.config.flags & VMEM_CREATE_HUGE != 0
    }

    /// The staging file.
    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// The counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The shards.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().map(|shard| &**shard)
    }

    /// The pages `[pgoff, pgoff + nr)`; `EINVAL` if they are not a run in this region.
    pub(crate) fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        PageRange::within(pgoff, nr, self.nr_pages()).ok_or(EINVAL)
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

    /// Whether all of `range` is present, as far as it lies in the region.
    pub(crate) fn all_present(&self, range: PageRange) -> bool {
        let nr = range
            .end()
            .min(self.nr_pages())
            .saturating_sub(range.start());
        let Ok(range) = self.range(range.start(), nr) else {
            return false;
        };
        range.blocks().all(|block| {
            self.locate(block)
                .is_ok_and(|(shard, slots)| shard.map.lock().all_present(slots))
        })
    }

    /// The runs of pages of a block that are not present. The caller holds the shard's `fill`, so
    /// they stay so.
    pub(crate) fn absent_runs(&self, block: PageRange) -> Result<impl Iterator<Item = PageRange>> {
        let (shard, slots) = self.locate(block)?;
        let map = shard.map.lock();
        let mut present = BlockBits::default();
        let first = slots.first - slots.first % BLOCK_PAGES as usize;
        for (at, word) in present.iter_mut().enumerate() {
            *word = map.present_word(first / 64 + at);
        }
        Ok(block.runs_without(present))
    }

    /// Which pages of a block are present: bit `i % 64` of word `i / 64` for page `start + i`.
    /// `block` begins at a multiple of 64.
    pub(crate) fn present_words(&self, block: PageRange, words: &mut [u64]) -> Result {
        let (shard, slots) = self.locate(block)?;
        let map = shard.map.lock();
        for (at, word) in words.iter_mut().enumerate() {
            *word = map.present_word(slots.first / 64 + at);
        }
        Ok(())
    }

    /// A touch of a page: what it finds. Requests the page if it is absent.
    pub(crate) fn touch(&self, pgoff: u64) -> Touch {
        let Ok((shard, slots)) = self.page(pgoff) else {
            return Touch::Unreadable;
        };
        let touch = {
            let mut map = shard.map.lock();
            let touch = map.touch(slots);
            if touch == Touch::Requested {
                self.queued.add(1i64, Relaxed);
            }
            touch
        };
        match touch {
            Touch::Requested => {
                self.counters.requests.count();
                self.counters.faults.count();
                self.takers.wake_all();
            }
            Touch::Waiting => self.counters.faults.count(),
            Touch::Present | Touch::Unreadable => {}
        }
        touch
    }

    /// Whether the page has its final answer.
    pub(crate) fn is_settled(&self, pgoff: u64) -> bool {
        self.page(pgoff)
            .map_or(true, |(shard, slots)| shard.map.lock().is_settled(slots))
    }

    /// Waits until the page has its answer or waiting is in vain. A page that does not come in time
    /// is unreadable from then on.
    pub(crate) fn await_page(&self, pgoff: u64, patience: Patience) -> Woken {
        let limit_ms = self.config.fault_timeout_ms;
        let woken = self.await_page_for(pgoff, patience, limit_ms);
        if woken == Woken::Timeout {
            // The page may have come just now, and then stays.
            if let Ok(page) = self.range(pgoff, 1) {
                let _ = self.settle(page, Verdict::Unreadable);
            }
        }
        woken
    }

    /// Waits in the same way, at most `limit_ms`, which says nothing of the page.
    pub(crate) fn await_page_for(&self, pgoff: u64, patience: Patience, limit_ms: u32) -> Woken {
        let Ok((shard, _)) = self.page(pgoff) else {
            return Woken::Done;
        };
        shard.waiters.wait(pgoff, patience, limit_ms, || {
            self.is_settled(pgoff) || self.gives_up()
        })
    }

    /// Settles the pages of a block and wakes who waits for them. Returns how many have changed.
    ///
    /// The caller holds the shard's `fill`, or has nothing that another fill could undo.
    pub(crate) fn settle(&self, block: PageRange, verdict: Verdict) -> Result<u64> {
        let (shard, slots) = self.locate(block)?;
        let settled = {
            let mut map = shard.map.lock();
            let settled = map.settle(slots, verdict);
            self.queued.add(-(settled.unqueued as i64), Relaxed);
            settled
        };
        if settled.wake {
            shard.waiters.wake(block.start(), block.end());
        }
        Ok(settled.changed)
    }

    /// Whether there are requests to take.
    pub(crate) fn has_requests(&self) -> bool {
        self.queued.load(Acquire) > 0
    }

    /// Takes requests into `pages`, up to `max`, for which it has room.
    pub(crate) fn take_requests(&self, pages: &mut KVec<u64>, max: usize) {
        let first = self.next_shard.load(Relaxed);
        let shards = || self.shards.iter().enumerate();
        for (at, shard) in Iterator::chain(shards().skip(first), shards().take(first)) {
            let room = max.saturating_sub(pages.len());
            if room == 0 {
                break;
            }
            let mut map = shard.map.lock();
            let taken = map.take(room, |slot| {
                // There is room, so this does not fail.
                let _ = pages.push_within_capacity(self.layout.pgoff(at, slot));
            });
            self.queued.add(-(taken as i64), Relaxed);
            self.next_shard.store(at + 1, Relaxed);
        }
    }

    /// Puts requests back that were taken and could not be handed over.
    pub(crate) fn put_back(&self, pages: &[u64]) {
        for &pgoff in pages {
            if let Ok((shard, slots)) = self.page(pgoff) {
                let mut map = shard.map.lock();
                let back = map.requeue(slots);
                self.queued.add(back as i64, Relaxed);
            }
        }
        self.takers.wake_all();
    }

    /// How many pages are in which state.
    pub(crate) fn counts(&self) -> Counts {
        self.shards().fold(Counts::default(), |sum, shard| {
            let counts = shard.map.lock().counts();
            Counts {
                present: sum.present + counts.present,
                unreadable: sum.unreadable + counts.unreadable,
                requested: sum.requested + counts.requested,
                queued: sum.queued + counts.queued,
            }
        })
    }

    /// Whom to charge pages to.
    pub(crate) fn charge(&self) -> Option<Arc<Memcg>> {
        self.charge.lock().clone()
    }

    /// A program maps the region; the first one pays for it.
    pub(crate) fn charge_to_current(&self) -> Result {
        if self.charge.lock().is_some() {
            return Ok(());
        }
        let Some(memcg) = Memcg::of_current() else {
            return Ok(());
        };
        let memcg = Arc::new(memcg, GFP_KERNEL)?;
        self.charge.lock().get_or_insert(memcg);
        Ok(())
    }

    /// Whether a daemon is attached.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Acquire)
    }

    /// Whether it has said READY.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    /// The daemon serves.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Release);
        self.starters.wake_all();
    }

    /// Whether new mappings are plain memory.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain.load(Acquire)
    }

    /// From now on they are.
    pub(crate) fn set_plain(&self) {
        self.plain.store(true, Release);
    }

    /// Whether a touch of an absent page is in vain: nobody serves it, and it shall not wait.
    pub(crate) fn gives_up(&self) -> bool {
        self.config.flags & VMEM_CREATE_SIGBUS != 0 && !self.is_attached()
    }
}

impl Shard {
    fn new(slots: usize) -> Result<Pin<KBox<Self>>> {
        let plane = |words| KVVec::from_elem(0u64, words, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
        let words = words_for(slots);
        let map = PageMap::new(
            plane(words)?,
            plane(words)?,
            plane(words)?,
            plane(words_for(words))?,
        );
        KBox::pin_init(
            pin_init!(Self {
                map <- new_spinlock!(map),
                fill <- new_mutex!(()),
                waiters <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }
}

/// That a daemon is attached. With it, the daemon goes.
pub(crate) struct Attachment(Arc<Region>);

impl Attachment {
    /// Attaches a daemon; `EBUSY` if there is one.
    pub(crate) fn new(region: &Arc<Region>) -> Result<Self> {
        region
            .attached
            .cmpxchg(false, true, Full)
            .map_err(|_| EBUSY)?;
        Ok(Self(region.clone()))
    }
}

impl Drop for Attachment {
    /// What the daemon had taken and not answered is requested again, before the next one can come.
    fn drop(&mut self) {
        let region = &self.0;
        region.ready.store(false, Release);
        let slots = region.layout.slots_per_shard();
        for (at, shard) in region.shards().enumerate() {
            let mut map = shard.map.lock();
            let back = map.requeue(Slots {
                shard: at,
                first: 0,
                nr: slots,
            });
            region.queued.add(back as i64, Relaxed);
        }
        region.attached.store(false, Release);
        for shard in region.shards() {
            shard.waiters.wake_all();
        }
    }
}
