// SPDX-License-Identifier: GPL-2.0-or-later
//! A program: maps regions and does with them what programs do.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use vmem::{Access, MapHandle, PAGE_SIZE};
use vmem_functional_sys::{AreaBuilder, MemoryAt, write_from};

use crate::board::{Board, Mark, Note};
use crate::hands::{Hands, name};
use crate::model::Page;
use crate::numbers::Numbers;
use crate::reader::{Reader, in_a_child};

const MADV_DONTNEED: i32 = 4;
const MADV_REMOVE: i32 = 9;
const MADV_MERGEABLE: i32 = 12;
/// Advice that changes no contents: WILLNEED, RANDOM, MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE, COLD, PAGEOUT, COLLAPSE.
const HARMLESS: [i32; 9] = [3, 1, 12, 13, 14, 15, 20, 21, 25];

/// A program's life: until the run is over, or it dies.
pub(crate) fn run(board: &Board, actor: usize, program: usize, mut numbers: Numbers) -> anyhow::Result<()> {
    let mut held: Vec<Option<Hands<'_>>> = (0..board.regions()).map(|_| None).collect();
    while !board.is_over()? {
        board.count(actor, Note::Steps)?;
        // What is given up is let go of at once, whichever region is next.
        for hands in &mut held {
            let Some(current) = hands else { continue };
            if board.life(current.page(0).region)? != current.life {
                *hands = None;
            }
        }
        let region = numbers.below(board.regions());
        if held[region].is_none() {
            held[region] = Hands::open(board, actor, program, region)?;
        }
        match &mut held[region] {
            Some(hands) => step(board, hands, &mut numbers).with_context(|| format!("program {program}"))?,
            None => sleep(Duration::from_millis(1)),
        }
        if numbers.once_in(200) {
            held[region] = None;
        }
    }
    Ok(())
}

/// What may fail for want of memory, or because the pages are locked (`EINVAL`).
fn or_refused(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::InvalidInput) => Ok(()),
        other => Ok(other?),
    }
}

fn step(board: &Board, hands: &mut Hands<'_>, numbers: &mut Numbers) -> anyhow::Result<()> {
    let pages = board.pages();
    let page = numbers.below(pages);
    let run = numbers.run(pages, 24);
    match numbers.below(42) {
        0..8 => hands.check(page),
        8..12 => run.clone().try_for_each(|page| hands.check(page)),
        12..18 => hands.write(page, numbers.any()),
        18 => hands.write_privately(page, numbers.any()),
        19..21 => make_copies(hands, numbers, pages),
        21 if numbers.once_in(10) => {
            hands.drop_private();
            Ok(())
        }
        22 => {
            or_refused(hands.area.advise(run, MADV_DONTNEED)).context("MADV_DONTNEED")?;
            hands.check(page)
        }
        23 if numbers.once_in(6) => {
            let run = run.start..(run.start + 3).min(pages);
            for page in run.clone() {
                board.mark(hands.page(page).region, page, Mark::Zero)?;
            }
            or_refused(hands.area.advise(run.clone(), MADV_REMOVE)).context("MADV_REMOVE")?;
            run.clone().try_for_each(|page| hands.check(page))
        }
        24..27 => {
            // Some are refused here and there (EINVAL, EAGAIN), and that is well.
            let _refused = hands.area.advise(run.clone(), numbers.pick(&HARMLESS));
            hands.check(run.start)
        }
        40..42 => {
            let _refused = hands.advise_privately(run, numbers.pick(&HARMLESS));
            Ok(())
        }
        27 => {
            or_refused(hands.area.protect(run.clone(), 1)).context("mprotect")?;
            run.clone().try_for_each(|page| hands.check(page))?;
            or_refused(hands.area.protect(run, 3)).context("mprotect")
        }
        28..30 => part(hands, numbers, run, pages),
        30 => hands.map_again(),
        31 => {
            let place = AreaBuilder::default().private().anonymous(pages).context("a place")?;
            // Advice may have cut it into pieces that cannot move together.
            let _refused = hands.area.replace(place);
            hands.check(page)
        }
        32..34 => family(hands, numbers, run),
        34..36 => by_system_call(hands, page),
        36 => {
            // Unreadable pages make a lock ENOMEM, too. A machine of one node knows no second one.
            let _refused = match numbers.below(3) {
                0 => hands.area.lock(run.clone()),
                1 => hands.area.lock_on_fault(run.clone()),
                _ => hands.area.bind(run.clone(), numbers.below(2) as u32),
            };
            hands.check(run.start)
        }
        37 => by_another_descriptor(hands, page),
        38 => {
            let info = hands.handle.info()?;
            ensure!(
                info.present + info.unreadable + info.requested <= pages as u64,
                "counters: {info:?}"
            );
            Ok(())
        }
        _ => {
            let present = hands.handle.present_map()?.present();
            ensure!(present <= pages as u64, "{present} pages are present");
            Ok(())
        }
    }
}

/// Another mapping of a part, in pieces.
fn part(hands: &Hands<'_>, numbers: &mut Numbers, run: std::ops::Range<usize>, pages: usize) -> anyhow::Result<()> {
    let builder = numbers.pick(&[AreaBuilder::default(), AreaBuilder::default().read_only()]);
    let mut part = builder.map(&hands.handle, run.start, run.len()).context("mapping a part")?;
    let (first, last) = (run.start, run.len() - 1);
    hands.check_in(&part, last, first + last)?;
    if last > 1 {
        if numbers.once_in(2) {
            part.unmap(1..last).context("munmap")?;
            return hands.check_in(&part, 0, first);
        }
        part.remap(last, numbers.once_in(2)).context("mremap to less")?;
    }
    hands.check_in(&part, 0, first)?;
    // Plain memory can grow; what is still a region cannot.
    let grown = part.pages() + 1 + numbers.below(16);
    if part.remap(grown, true).is_ok() {
        let page = (first + grown - 1).min(pages - 1);
        hands.check_in(&part, page - first, page)?;
    }
    hands.check_in(&part, 0, first)
}

/// Private copies of pages that no program writes to. Others' copies of them are equal to these or not, so that KSM has something to merge,
/// once the region is plain; it does not merge what has changed of late, so this happens to the same few pages.
fn make_copies(hands: &mut Hands<'_>, numbers: &mut Numbers, pages: usize) -> anyhow::Result<()> {
    let first = numbers.below(pages.min(128));
    let value = (0xc << 60) | u64::from(numbers.once_in(4));
    let copied = (first..(first + 128).min(pages)).filter(|&page| hands.page(page).is_staged());
    for page in copied.collect::<Vec<_>>() {
        hands.write_privately(page, value)?;
    }
    let _refused = hands.advise_privately(0..pages, MADV_MERGEABLE);
    Ok(())
}

/// A child looks at these pages.
fn family(hands: &Hands<'_>, numbers: &mut Numbers, run: std::ops::Range<usize>) -> anyhow::Result<()> {
    let look = || run.clone().try_for_each(|page| hands.check(page));
    match in_a_child(numbers, look)? {
        Reader::Right => Ok(()),
        // The same will come to the parent, if it was right.
        Reader::Bus => look(),
    }
}

/// The kernel reads the page on the program's behalf.
fn by_system_call(hands: &Hands<'_>, page: usize) -> anyhow::Result<()> {
    hands.touch(page)?;
    let (reader, writer) = rustix::pipe::pipe().context("pipe")?;
    let memory = MemoryAt {
        area: &hands.area,
        offset: page * PAGE_SIZE,
        len: PAGE_SIZE,
    };
    match write_from(&writer, memory) {
        Ok(PAGE_SIZE) => (),
        // Unreadable: the touch itself says whether it may be.
        Err(error) if error.raw_os_error() == Some(14) => return hands.check(page),
        other => bail!("write from page {page}: {other:?}"),
    }
    let mut bytes = vec![0; PAGE_SIZE];
    let mut len = 0;
    while len < PAGE_SIZE {
        len += rustix::io::read(&reader, &mut bytes[len..]).context("read from a pipe")?;
    }
    hands.compare(page, &Page::words(&bytes))
}

fn by_another_descriptor(hands: &Hands<'_>, page: usize) -> anyhow::Result<()> {
    let region = hands.page(page).region;
    let Ok(node) = MapHandle::open(&name(region), Access::ReadOnly) else {
        bail!("the node of region {region} is gone while it is mapped");
    };
    let area = AreaBuilder::default()
        .read_only()
        .map(&node, page, 1)
        .context("mapping by another descriptor")?;
    drop(node);
    hands.check_in(&area, 0, page)
}
