// SPDX-License-Identifier: GPL-2.0

//! The daemon's calls.

use super::{
    fault::Mapped,
    filled::settle_filled,
    region::Region,
    set_backing, //
};
use crate::{
    model::{
        page_map::Verdict,
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        address_space::LockBudget,
        array_vec::ArrayVec,
        errno,
        memcg::Memcg,
        mm::Mappings,
        shared::SharedMemory,
        task::{
            check_user_range,
            cond_resched_or_killed,
            fault_in_readable, //
        },
        uapi::{
            vmem_fill,
            vmem_fill_range,
            vmem_mark,
            vmem_page_request,
            vmem_populate,
            vmem_range,
            Entries,
            UserArg,
            UserArray,
            VMEM_FILL_STAGE,
            VMEM_MARK_UNREADABLE,
            VMEM_MARK_ZERO, //
        },
        vm_ops::PlainFlags,
        wait::WaitOutcome, //
    }, //
};
use kernel::prelude::*;

/// How many requests one call takes at most. They are on the stack.
const MAX_TAKE: usize = 64;

/// Calls `wait` unless `done`. `EAGAIN` instead if `nonblock`. A wait that a signal ends is
/// restarted, or is `EINTR`.
fn wait_unless(done: bool, nonblock: bool, wait: impl FnOnce() -> WaitOutcome) -> Result {
    if done {
        return Ok(());
    }
    if nonblock {
        return Err(EAGAIN);
    }
    match wait() {
        WaitOutcome::Done | WaitOutcome::Mapped => Ok(()),
        WaitOutcome::Signal | WaitOutcome::Timeout => Err(ERESTARTSYS),
    }
}

/// WAIT_READY.
pub(crate) fn wait_ready(region: &Region, nonblock: bool) -> Result {
    let done = || region.daemon().is_ready() || region.is_plain();
    wait_unless(done(), nonblock, || {
        region.daemon().ready_waiters.wait(done)
    })
}

/// GET_PAGE_REQUEST. A request that cannot be copied to the daemon is queued again.
pub(crate) fn get_page_request(region: &Region, arg: UserArg, nonblock: bool) -> Result {
    let mut call: vmem_page_request = arg.read()?;
    if call.flags != 0 {
        return Err(EINVAL);
    }
    let out = UserArray::new(call.pgoffs, call.nr)?;
    let max = out.len().min(MAX_TAKE);
    let mut pages = ArrayVec::<u64, MAX_TAKE>::new();
    while pages.as_slice().is_empty() {
        let done = region.pages().has_requests() || region.is_plain();
        wait_unless(done, nonblock, || {
            region.pages().await_requests(|| region.is_plain())
        })?;
        region.pages().take_requests(&mut pages, max);
        if pages.as_slice().is_empty() && region.is_plain() {
            return Err(errno::nodata());
        }
    }
    let pages = pages.as_slice();
    call.nr = pages.len() as u32;
    let copied_out = out.write(pages).and_then(|()| arg.write(&call));
    if copied_out.is_err() {
        region.pages().requeue(pages);
    }
    copied_out
}

/// Ranges that were read from user memory. All of them are in the region.
struct Ranges<'a> {
    region: &'a Region,
    raw: Entries<vmem_range>,
}

impl<'a> Ranges<'a> {
    fn read(region: &'a Region, addr: u64, nr: u32) -> Result<Self> {
        let mut raw = Entries::new();
        UserArray::new(addr, nr)?.read(&mut raw)?;
        let ranges = Self { region, raw };
        ranges.iter().try_for_each(|range| range.map(|_| ()))?;
        Ok(ranges)
    }

    fn iter(&self) -> impl Iterator<Item = Result<PageRange>> + '_ {
        let pages = self.region.pages();
        let raw = self.raw.iter();
        raw.map(|raw| pages.range(raw.pgoff, raw.nr_pages))
    }
}

/// MARK_PAGE_CACHED.
pub(crate) fn mark_page_cached(region: &Region, arg: UserArg) -> Result {
    let mut call: vmem_mark = arg.read()?;
    let (zero, verdict) = match call.flags {
        0 => (false, Verdict::Present),
        VMEM_MARK_ZERO => (true, Verdict::Present),
        VMEM_MARK_UNREADABLE => (false, Verdict::Unreadable),
        _ => return Err(EINVAL),
    };
    let ranges = Ranges::read(region, call.ranges, call.nr)?;
    (call.done, call.changed) = (0, 0);
    let mut mark = || -> Result {
        for range in ranges.iter() {
            for block in range?.blocks() {
                cond_resched_or_killed()?;
                call.changed += mark_block(region, block, zero, verdict)?;
                if region.is_logged() {
                    // From now on, the daemon's own writes to these pages are seen, too.
                    SharedMemory::of_region(region.staging()).protect(block)?;
                }
            }
            call.done += 1;
        }
        Ok(())
    };
    let result = mark();
    arg.write(&call)?;
    result
}

/// The same for pages of one block. Returns how many have changed.
fn mark_block(region: &Region, block: PageRange, zero: bool, verdict: Verdict) -> Result<u64> {
    let pages = region.pages();
    let _fill = pages.locate(block)?.0.fill.lock();
    let mut changed = 0;
    for absent in pages.absent_runs(block)? {
        if zero {
            region.staging().drop_pages(absent)?;
        } else if verdict == Verdict::Present {
            region.staging().zero_tail(absent)?;
        }
        changed += match verdict {
            Verdict::Present => settle_filled(region, absent, || pages.settle(absent, verdict))?,
            Verdict::Unreadable => pages.settle(absent, verdict)?,
        };
    }
    Ok(changed)
}

/// FILL_PAGES.
pub(crate) fn fill_pages(region: &Region, arg: UserArg) -> Result {
    let mut call: vmem_fill = arg.read()?;
    let copy_run = match call.flags {
        0 => fill_run,
        VMEM_FILL_STAGE => stage_run,
        _ => return Err(EINVAL),
    };
    let mut raw = Entries::<vmem_fill_range>::new();
    UserArray::new(call.ranges, call.nr)?.read(&mut raw)?;
    for range in raw.iter() {
        let bytes = region
            .pages()
            .range(range.pgoff, range.nr_pages)?
            .bytes()
            .ok_or(EINVAL)?;
        check_user_range(range.addr, bytes)?;
    }
    (call.done, call.changed) = (0, 0);
    let charge = region.charge();
    let mut fill = || -> Result {
        for from in raw.iter() {
            let range = region.pages().range(from.pgoff, from.nr_pages)?;
            let source = FillSource {
                first: range.start(),
                addr: from.addr,
            };
            for block in range.blocks() {
                cond_resched_or_killed()?;
                let mut rest = block;
                loop {
                    let charge = charge.as_deref();
                    let missing =
                        copy_block(region, rest, source, charge, &mut call.changed, copy_run)?;
                    let Some(missing) = missing else {
                        break;
                    };
                    fault_in_readable(source.of(missing)?)?;
                    // Staged pages are not copied again: they are still absent.
                    rest = region
                        .pages()
                        .range(missing, block.end().saturating_sub(missing))?;
                }
            }
            call.done += 1;
        }
        Ok(())
    };
    let result = fill();
    arg.write(&call)?;
    result
}

/// User memory that pages are filled from.
#[derive(Clone, Copy)]
struct FillSource {
    /// The page that its first byte is for.
    first: u64,
    /// Its address.
    addr: u64,
}

impl FillSource {
    /// The address of the contents of a page.
    fn of(self, pgoff: u64) -> Result<u64> {
        pgoff
            .checked_sub(self.first)
            .and_then(|skip| skip.checked_mul(PAGE_SIZE))
            .and_then(|skip| self.addr.checked_add(skip))
            .ok_or(EFAULT)
    }
}

/// Copies contents to the pages of a run within a block. The pages are not present, and the block's
/// `fill` is held. If the contents of a page are not in memory, it stops and returns that page.
type CopyRun =
    fn(&Region, PageRange, FillSource, Option<&Memcg>, changed: &mut u64) -> Result<Option<u64>>;

/// The same for all absent pages of a range within one block.
fn copy_block(
    region: &Region,
    block: PageRange,
    from: FillSource,
    charge: Option<&Memcg>,
    changed: &mut u64,
    copy_run: CopyRun,
) -> Result<Option<u64>> {
    let _fill = region.pages().locate(block)?.0.fill.lock();
    for absent in region.pages().absent_runs(block)? {
        let missing = copy_run(region, absent, from, charge, changed)?;
        if missing.is_some() {
            return Ok(missing);
        }
    }
    Ok(None)
}

/// A [`CopyRun`] that leaves the states of the pages as they are. A page that is copied whole counts
/// as changed.
fn stage_run(
    region: &Region,
    run: PageRange,
    from: FillSource,
    charge: Option<&Memcg>,
    changed: &mut u64,
) -> Result<Option<u64>> {
    let mut next = run.start();
    while next < run.end() {
        let rest = region.pages().range(next, run.end() - next)?;
        let Some(staged) = region.staging().fill(rest, from.of(next)?, charge)? else {
            return Ok(Some(next));
        };
        *changed += staged.pages().len();
        next = staged.pages().end();
    }
    Ok(None)
}

/// A [`CopyRun`] that marks the pages that were copied, also before an error.
fn fill_run(
    region: &Region,
    run: PageRange,
    from: FillSource,
    charge: Option<&Memcg>,
    changed: &mut u64,
) -> Result<Option<u64>> {
    let pages = region.pages();
    let waited_for = pages.any_requested(run)?;
    let mut done = run.start();
    let mut fill = || -> Result<Option<u64>> {
        while done < run.end() {
            let rest = pages.range(done, run.end() - done)?;
            let Some(filled) = region.staging().fill(rest, from.of(done)?, charge)? else {
                return Ok(Some(done));
            };
            done = filled.pages().end();
            if waited_for {
                // Mark each page at once, and map it for the threads that wait for it.
                let mappings = Mappings::<Mapped>::of(region.staging());
                *changed += settle_filled(region, filled.pages(), || {
                    pages.settle_and_map(filled.pages(), |places| {
                        mappings.map_filled(&filled, places, charge, region.is_logged())
                    })
                })?;
            }
        }
        Ok(None)
    };
    let result = fill();
    if !waited_for && done > run.start() {
        let filled = pages.range(run.start(), done - run.start())?;
        *changed += settle_filled(region, filled, || pages.settle(filled, Verdict::Present))?;
    }
    result
}

/// MAKE_PAGES_PRESENT.
pub(crate) fn make_pages_present(region: &Region, arg: UserArg) -> Result {
    let mut call: vmem_populate = arg.read()?;
    if call.flags != 0 {
        return Err(EINVAL);
    }
    let ranges = Ranges::read(region, call.ranges, call.nr)?;
    (call.done, call.pages) = (0, 0);
    let mappings = Mappings::<Mapped>::of(region.staging());
    let mut populate = || -> Result {
        let mut spaces = mappings.address_spaces()?;
        let mut budget = LockBudget::new();
        for range in ranges.iter() {
            for block in range?.blocks() {
                let all = region.pages().all_present(block);
                for space in &mut spaces {
                    call.pages += mappings.populate(space, &mut budget, block, |page| {
                        let is_present = all || region.pages().all_present(page);
                        // Zeros that nobody has touched take no memory, and shall go on so.
                        is_present && region.staging().has_memory(page.start())
                    })?;
                }
            }
            call.done += 1;
        }
        Ok(())
    };
    let result = populate();
    arg.write(&call)?;
    result
}

/// MAKE_VMA_ANONYMOUS.
pub(crate) fn make_vma_anonymous(region: &Region) -> Result {
    if region.pages().counts().present != region.pages().nr() {
        return Err(EBUSY);
    }
    // Not while a log starts or ends.
    let mappings = region.lock_mappings()?;
    if !region.is_plain() {
        region.set_plain();
    }
    Mappings::<Mapped>::of(region.staging()).make_plain(plain_flags(region))?;
    if region.is_logged() {
        // The daemon's mapping of the staging file is like any other mapping from now on.
        let memory = SharedMemory::of_region(region.staging());
        memory.protect(region.pages().range(0, region.pages().nr())?)?;
    }
    drop(mappings);
    // No page is read any more. A read that is under way may take long.
    let all = region.pages().range(0, region.pages().nr())?;
    set_backing::change(region, all, None)
}

/// The flags that a mapping gets when it is plain memory.
pub(crate) fn plain_flags(region: &Region) -> PlainFlags {
    PlainFlags {
        huge: region.wants_huge(),
    }
}
