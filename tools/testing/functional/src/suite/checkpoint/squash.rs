// SPDX-License-Identifier: GPL-2.0-or-later
//! Squash: while others restore from the checkpoints; and by access, after which the next restore reads in a row what was touched first.

use std::fs;
use std::path::{Path, PathBuf};

use vmem::{MapHandle, Mapping, PAGE_SIZE};

use super::order::{GROUP, PAGES, checkpoints, contents, packs, recorded, touch};
use super::store::{Restore, Store, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::vmemd::{map, open};

/// Pages of a frame, which is read as a whole.
const FRAME: usize = 16;

/// Threads that read from the store at once: so many reads may overtake each other.
const THREADS: usize = 4;

/// Pages that are touched before all others, all over the memory.
const WORKING_SET: usize = 20 * FRAME;

/// They are 37 pages from each other, which is prime to the number of all pages.
fn order() -> impl Iterator<Item = usize> {
    (0..PAGES).map(|step| (step * 37 + 11) % PAGES)
}

/// A restore with its memory.
struct Restored {
    restore: Restore,
    region: String,
    handle: MapHandle,
    mapping: Mapping,
}

impl Restored {
    fn new(restore: Restore) -> Outcome<Self> {
        let region = restore.region()?;
        let handle = open(&region)?;
        Ok(Self {
            mapping: map(&handle)?,
            restore,
            region,
            handle,
        })
    }

    fn end(self) -> Outcome {
        self.restore.end()?;
        drop((self.mapping, self.handle));
        wait_gone(&self.region)
    }
}

/// Removes what nothing refers to, and nobody reads.
fn collect(store: &Store) -> Outcome<Vec<PathBuf>> {
    for _ in 0..2 {
        store.run("gc", &["--grace", "0.001"])?;
    }
    packs(&store.directory.join("store/packs"))
}

pub(super) fn while_it_is_read(store: &Store) -> Outcome {
    let made = checkpoints(store)?;
    // A checkpoint between the others, and the last one, of which some pages are there.
    let second = Restored::new(store.restore("order@2", &["--no-background"], "ready")?)?;
    let last = Restored::new(store.restore("order@4", &["--no-background"], "ready")?)?;
    ensure!(second.region != last.region, "{} twice", last.region);
    // order@2 has the second group as it was written in the second round, and all others as in the first one.
    let touch_second = |pages: &mut dyn Iterator<Item = usize>| -> Outcome {
        for page in pages {
            let (mut found, round) = (vec![0; PAGE_SIZE], usize::from(page / GROUP == 1));
            second.mapping.read_at(page * PAGE_SIZE, &mut found)?;
            ensure!(found == contents(round, page), "page {page} of order@2 is another one");
        }
        Ok(())
    };
    touch_second(&mut (0..PAGES).step_by(100))?;
    touch(&last.mapping, (0..PAGES).step_by(100))?;

    // Of the first pack, the last checkpoint has a quarter, and of the others all: that is the one to be stored again, if there is room for its pages.
    let (less, enough) = (GROUP * PAGE_SIZE - 1, GROUP * PAGE_SIZE);
    let shown = store.run("squash", &["--dry-run", "--rewrite", &enough.to_string(), "order@1..4"])?;
    let expected = |done: [&str; 2], again: usize| {
        format!(
            "order@1  {0}\norder@3  {0}\norder@2  kept: it is protected, or being read\norder@4  stays; {again} of its pages {1}\n",
            done[0], done[1]
        )
    };
    equal!(shown, expected(["would be removed", "would be stored again"], GROUP));
    let said = store.run("squash", &["--rewrite", &less.to_string(), "order@1..4"])?;
    equal!(said, expected(["removed", "stored again"], 0));
    let said = store.run("squash", &["--rewrite", &enough.to_string(), "order@2..latest"])?;
    let kept = "order@2  kept: it is protected, or being read";
    equal!(said, format!("{kept}\norder@4  stays; {GROUP} of its pages stored again\n"));
    // The restores began before that, and read where the pages were then.
    collect(store)?;
    touch_second(&mut order())?;
    touch(&last.mapping, order())?;
    second.end()?;
    last.end()?;

    // Now nobody reads it, and what only the checkpoints before the last one had is given back.
    let said = store.run("squash", &["order@2..4"])?;
    equal!(said, "order@2  removed\norder@4  stays; 0 of its pages stored again\n");
    let left = collect(store)?;
    ensure!(!left.contains(&made[0]), "the first pack is there still");
    ensure!(made[1..].iter().all(|pack| left.contains(pack)), "{left:?}");
    equal!(left.len(), made.len());
    equal!(store.run("list", &["order"])?.lines().count(), 1);
    let again = Restored::new(store.restore("order@4", &["--no-record"], "ready")?)?;
    touch(&again.mapping, 0..PAGES)?;
    again.end()
}

/// A read of a part of a pack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Read {
    pack: PathBuf,
    offset: u64,
    length: u64,
}

/// The parts of packs that a process has read, in order, each once. The tables at the end of each pack are none of them.
fn reads(trace: &Path) -> Outcome<Vec<Read>> {
    let text = fs::read_to_string(trace)?;
    let mut begun: Vec<(&str, &str)> = Vec::new();
    let mut reads = Vec::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').ok_or(line)?;
        // Another thread may come between the beginning and the end of a call.
        if call.contains("<unfinished") {
            begun.push((thread, call));
            continue;
        }
        let mut whole = call.to_owned();
        if let Some((_, end)) = call.split_once(" resumed>") {
            let at = begun.iter().position(|(other, _)| *other == thread).ok_or(line)?;
            whole = begun.remove(at).1.split("<unfinished").next().unwrap_or_default().to_owned() + end;
        }
        let Some((path, rest)) = whole.split_once('<').and_then(|(_, rest)| rest.split_once('>')) else {
            continue;
        };
        // What was read, how much was wanted, and where.
        let Some((arguments, result)) = rest.split_once(')') else {
            continue;
        };
        let offset = arguments.rsplit(", ").next().unwrap_or_default().parse::<u64>()?;
        let length = result.trim_start_matches([' ', '=']).parse::<u64>()?;
        let pack = PathBuf::from(path);
        let is_part = path.contains("/packs/") && fs::metadata(&pack).map_or(true, |pack| offset + length < pack.len());
        let read = Read { pack, offset, length };
        if is_part && !reads.contains(&read) {
            reads.push(read);
        }
    }
    Ok(reads)
}

/// Restores order@4, has pages touched, and returns what was read of the packs.
fn read_by(store: &Store, arguments: &[&str], touched: impl Iterator<Item = usize>) -> Outcome<Vec<Read>> {
    let trace = store.directory.join("trace");
    let arguments = [arguments, &["--no-record"]].concat();
    let restored = Restored::new(store.restore_traced("order@4", &arguments, &trace)?)?;
    touch(&restored.mapping, touched)?;
    restored.end()?;
    let reads = reads(&trace)?;
    ensure!(reads.len() >= PAGES / FRAME - 1, "only {} reads: {reads:?}", reads.len());
    Ok(reads)
}

/// Whether the store was read from one end to the other, but for reads that were under way together: these change places, and any of them can be
/// held up for a while, since other threads come first.
fn is_sequential(reads: &[Read]) -> bool {
    let mut sorted = reads.to_vec();
    sorted.sort();
    let moved = |(at, read): (usize, &Read)| sorted.binary_search(read).unwrap_or(usize::MAX).abs_diff(at);
    reads.iter().enumerate().map(moved).fold(0, usize::saturating_add) < reads.len() * THREADS / 2
}

pub(super) fn by_access(store: &Store) -> Outcome {
    checkpoints(store)?;
    let mut first = Restored::new(store.restore("order@4", &["--no-background"], "ready")?)?;
    touch(&first.mapping, order())?;
    equal!(recorded(&mut first.restore)?, PAGES as u64);
    first.end()?;
    // The next one has this order, and the store has another.
    let before = read_by(store, &[], [].into_iter())?;
    ensure!(!is_sequential(&before), "it was in order already");

    let said = store.run("squash", &["--by-access", "order@1..4"])?;
    ensure!(
        said.ends_with(&format!("order@4  stays; {PAGES} of its pages stored again\n")),
        "{said}"
    );
    let left = collect(store)?;
    equal!(left.len(), 1);
    store.run("verify", &["order@4"])?;
    let after = read_by(store, &[], [].into_iter())?;
    ensure!(is_sequential(&after), "{after:?}");

    // What was touched first is the beginning of the pack, in a row and nothing else, if it is all that is touched for now.
    let touched = read_by(store, &["--no-background"], order())?;
    let working_set = &touched[..WORKING_SET / FRAME];
    let follow = |pair: &[Read]| pair[0].offset + pair[0].length == pair[1].offset;
    ensure!(working_set.windows(2).all(follow), "{working_set:?}");
    equal!(touched.iter().min(), working_set.first());
    ensure!(touched.iter().all(|read| read.pack == left[0]), "{touched:?}");
    Ok(())
}
