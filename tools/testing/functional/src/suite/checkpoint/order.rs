// SPDX-License-Identifier: GPL-2.0-or-later
//! The access order: a restore records it, and the next one fetches pages in it.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use vmem::{MapHandle, Mapping, PAGE_SIZE};

use super::store::{Restore, Store, memory_of, noise, wait_gone};
use crate::failure::{Outcome, ensure, equal};
use crate::suite::vmemd::{map, open};
use crate::world::wait_until;

const FILE: &str = "/dev/shm/vmem-checkpoint-order";
const REGION: &str = "order.vmem-checkpo";

/// Pages that one checkpoint after the first writes: more than the threads of a reader have under way.
pub(super) const GROUP: usize = 400;

/// The first checkpoint has them all; of the others, each writes a group of its own.
pub(super) const PAGES: usize = 4 * GROUP;

/// The packs of a store.
pub(super) fn packs(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(packs(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Makes checkpoints order@1 to order@4. Returns the pack of each.
pub(super) fn checkpoints(store: &Store) -> Outcome<Vec<PathBuf>> {
    let _ = fs::remove_file(FILE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(FILE)?;
    file.set_len((PAGES * PAGE_SIZE) as u64)?;
    let (pid, memory) = memory_of(&file);
    let (directory, mut found) = (store.directory.join("store/packs"), Vec::new());
    for round in 0..4_usize {
        let written = if round == 0 {
            0..PAGES
        } else {
            round * GROUP..(round + 1) * GROUP
        };
        for page in written {
            file.write_all_at(&contents(round, page), (page * PAGE_SIZE) as u64)?;
        }
        store.run("create", &["--name", "order", "--pid", &pid, "--memory", &memory])?;
        let new: Vec<_> = packs(&directory)?.into_iter().filter(|pack| !found.contains(pack)).collect();
        equal!(new.len(), 1);
        found.extend(new);
    }
    let _ = fs::remove_file(FILE);
    Ok(found)
}

/// What a page has that was written in this round. A pack has its pages in several parts.
pub(super) fn contents(round: usize, page: usize) -> Vec<u8> {
    noise((round * PAGES + page + 1) as u64)
}

/// Reads these pages of a restored order@4 in turn, and compares them.
pub(super) fn touch(mapping: &Mapping, pages: impl IntoIterator<Item = usize>) -> Outcome {
    for page in pages {
        let mut found = vec![0; PAGE_SIZE];
        mapping.read_at(page * PAGE_SIZE, &mut found)?;
        ensure!(found == contents(page / GROUP, page), "page {page} is not what was stored");
    }
    Ok(())
}

/// Waits until the restore has recorded an order. Returns how many pages it has.
pub(super) fn recorded(restore: &mut Restore) -> Outcome<u64> {
    let line = restore.hear("recorded")?;
    let pages = line.split("\"pages\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
    Ok(pages.ok_or("no pages")?.parse()?)
}

fn end(restore: Restore, mapped: (MapHandle, Mapping)) -> Outcome {
    restore.end()?;
    drop(mapped);
    wait_gone(REGION)
}

pub(super) fn followed(store: &Store) -> Outcome {
    let packs = checkpoints(store)?;
    let group = |number: usize| number * GROUP..(number + 1) * GROUP;
    // All pages come because they are touched, in an order that is not that of memory, nor of the store.
    let mut restore = store.restore("order@4", &["--no-background"], "ready")?;
    let region = open(REGION)?;
    let mapping = map(&region)?;
    // vmemctl has a lease until the restore is over, besides vmemd's.
    let objects = fs::read_dir(store.directory.join("store/leases"))?;
    let leases = objects.filter(|entry| {
        let path = entry.as_ref().map(fs::DirEntry::path);
        path.is_ok_and(|path| path.extension().is_some_and(|ending| ending == "lease"))
    });
    equal!(leases.count(), 2);
    let order = [2, 1, 0, 3];
    touch(&mapping, order.into_iter().flat_map(group))?;
    equal!(recorded(&mut restore)?, PAGES as u64);
    end(restore, (region, mapping))?;
    // Nothing is touched in the next restore. Each file of the store is opened when its first page is wanted.
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let mut numbers = Vec::new();
    for pack in &packs {
        numbers.push(inotify::add_watch(&watch, pack, WatchFlags::OPEN)?);
    }
    let restore = store.restore("order@4", &["--no-record"], "ready")?;
    let region = open(REGION)?;
    let mapping = map(&region)?;
    end(restore, (region, mapping))?;
    let mut opened = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    loop {
        match events.next() {
            Ok(event) if event.events().contains(ReadFlags::OPEN) => {
                let number = numbers.iter().position(|number| *number == event.wd());
                opened.extend(number.filter(|number| !opened.contains(number)));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    equal!(opened, order.to_vec());
    Ok(())
}

pub(super) fn of_prefetched(store: &Store) -> Outcome {
    checkpoints(store)?;
    let mut restore = store.restore("order@4", &["--record-time", "20"], "ready")?;
    let region = open(REGION)?;
    let mapping = map(&region)?;
    wait_until("all pages are present", || Ok(region.info()?.present == PAGES as u64))?;
    // Each brings its neighbours: 16 pages at most.
    let touched = [37, 1000, 501];
    touch(&mapping, touched)?;
    let pages = recorded(&mut restore)?;
    ensure!((3..=3 * 16).contains(&pages), "{pages} pages are recorded");
    end(restore, (region, mapping))
}
