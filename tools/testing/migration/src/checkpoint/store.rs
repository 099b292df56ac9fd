// SPDX-License-Identifier: GPL-2.0-or-later
//! A store in a directory, without a guest: bytes of increments, restores by depth, and what is stored when most checkpoints are removed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmem_pages::{PAGE_SIZE, PageIndex};
use vmem_store::objects::{Directory, Fetched, ObjectError, ObjectMeta, Objects, Part, Put};
use vmem_store::{
    CheckpointName, CommitOptions, Compression, GcOptions, GuestName, InitOptions, OpenOptions, Policy, Store, WriteOptions,
};

use super::names::{
    ALONE, CHUNKS, DIRTY_PAGES, FIRST, FULL, INCREMENT, LAST, PRUNED, RESTORE, RESTORE_BYTES, RESTORE_READS, RESTORE_TIME, STORED,
};
use super::results::{Figures, found};

/// Pages of a chunk of 64 KiB.
const CHUNK_PAGES: u64 = 16;
/// What the retention keeps: the newest, and the newest of hours.
const KEPT: (u32, u32) = (10, 24);
/// Pages that a checkpoint stores again at most, in bytes.
const REWRITE: u64 = 256 << 20;
/// From one of the periodic checkpoints to the next.
const PERIOD: Duration = Duration::from_secs(120);

/// A guest's memory: a number for each page, which its contents follow from. 0 is a page of zeros.
#[derive(Clone)]
struct Memory {
    pages: Vec<u64>,
    random: fastrand::Rng,
    version: u64,
}

impl Memory {
    /// About 36 % of the pages are not zero, as it was measured of guests.
    fn new(pages: u64) -> Self {
        Self {
            pages: (0..pages).map(|at| if at % 25 < 9 { at + 1 } else { 0 }).collect(),
            random: fastrand::Rng::with_seed(7),
            version: 1,
        }
    }

    fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Writes at least so many pages, and gives them: runs of 3 pages on average, two thirds of them in a tenth of the memory.
    fn write(&mut self, pages: usize) -> BTreeSet<u64> {
        let (size, mut written) = (self.len(), BTreeSet::new());
        while written.len() < pages {
            let hot = self.random.u32(0..3) > 0;
            let first = self.random.u64(0..if hot { size / 10 } else { size });
            let run = if self.random.bool() { 1 } else { self.random.u64(1..10) };
            written.extend(first..(first + run).min(size));
        }
        self.version += 1;
        for page in &written {
            self.pages[*page as usize] = (self.version << 32) | page;
        }
        written
    }

    /// Half of a page compresses.
    fn contents(&self, page: u64) -> Vec<u8> {
        let seed = self.pages[page as usize];
        let mut contents = vec![seed as u8; PAGE_SIZE];
        if seed != 0 {
            fastrand::Rng::with_seed(seed).fill(&mut contents[..PAGE_SIZE / 2]);
        }
        contents
    }
}

/// A directory that counts what is read of it.
#[derive(Debug)]
struct Counting {
    directory: Directory,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Objects for Counting {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        self.directory.put(name, bytes, put)
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        let fetched = self.directory.get(name, part)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(fetched.bytes.len() as u64, Ordering::Relaxed);
        Ok(fetched)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.directory.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.directory.delete(name)
    }

    fn sweep(&self, age: Duration) -> Result<u64, ObjectError> {
        self.directory.sweep(age)
    }

    fn window(&self) -> u64 {
        self.directory.window()
    }
}

/// A store in a directory, removed when dropped.
struct Place {
    directory: PathBuf,
    objects: Arc<Counting>,
    /// Milliseconds since 1970.
    time: Arc<AtomicU64>,
    store: Store,
    guest: GuestName,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Place {
    fn new(name: &str, init: &InitOptions) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("vmem-checkpoint-{name}"));
        let _ = fs::remove_dir_all(&directory);
        let objects = Arc::new(Counting {
            directory: Directory::new(directory.clone()),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let time = Arc::new(AtomicU64::new(1_700_000_000_000));
        let store = Store::init(objects.clone(), init, options(&time))?;
        Ok(Self {
            directory,
            objects,
            time,
            store,
            guest: "guest0".parse()?,
        })
    }

    fn checkpoint(&self, sequence: u64) -> CheckpointName {
        CheckpointName {
            guest: self.guest.clone(),
            sequence,
        }
    }

    /// Makes a checkpoint of the memory, of which these pages were written since that one. Its number.
    fn make(&self, memory: &Memory, written: impl IntoIterator<Item = u64>, parent: Option<u64>) -> Result<u64> {
        let memories = [("ram".to_owned(), memory.len() * PAGE_SIZE as u64)];
        let parent = parent.map(|sequence| self.checkpoint(sequence));
        let writer = self
            .store
            .begin(&self.guest, parent.as_ref(), &memories, &WriteOptions::default())?;
        for page in written {
            let index = PageIndex::new(page).context("a page beyond all memory")?;
            writer.put_pages(0, index, &memory.contents(page))?;
        }
        Ok(writer.commit(CommitOptions::default())?.checkpoint.sequence)
    }

    /// Bytes of all its objects.
    fn bytes(&self) -> Result<f64> {
        Ok(bytes_below(&self.directory)? as f64)
    }

    /// Reads all pages of a checkpoint in the order that suits the store, which is opened for it: seconds, reads, bytes.
    fn read(&self, sequence: u64) -> Result<(f64, f64, f64)> {
        let count = || {
            (
                self.objects.reads.load(Ordering::Relaxed),
                self.objects.bytes.load(Ordering::Relaxed),
            )
        };
        let (since, before) = (Instant::now(), count());
        let store = Store::open(self.objects.clone(), options(&self.time))?;
        let image = store.image(&self.checkpoint(sequence))?;
        let mut page = [0; PAGE_SIZE];
        for touch in image.plan(&[])? {
            for at in touch.pages.iter() {
                image.read_page(touch.backend, at, &mut page)?;
            }
        }
        let (seconds, after) = (since.elapsed().as_secs_f64(), count());
        Ok((seconds, (after.0 - before.0) as f64, (after.1 - before.1) as f64))
    }
}

fn options(time: &Arc<AtomicU64>) -> OpenOptions {
    let mut options = OpenOptions::default();
    let time = Arc::clone(time);
    options.clock = Arc::new(move || time.load(Ordering::Relaxed));
    options
}

fn bytes_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_below(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

/// What increments take, uncompressed, beside their dirty pages, and beside the chunks of 64 KiB in which these lie.
pub(super) fn increments() -> Result<Figures> {
    const PAGES: u64 = 16_384;
    const DIRTY: usize = 390;
    const COUNT: u32 = 20;
    let mut init = InitOptions::default();
    init.compression = Compression::None;
    let place = Place::new("increments", &init)?;
    let mut memory = Memory::new(PAGES);
    let mut last = place.make(&memory, 0..PAGES, None)?;
    let before = place.bytes()?;
    let (mut pages, mut chunks) = (0, 0);
    for _ in 0..COUNT {
        let written = memory.write(DIRTY);
        pages += written.len() as u64;
        chunks += written.iter().map(|page| page / CHUNK_PAGES).collect::<BTreeSet<_>>().len() as u64;
        last = place.make(&memory, written, Some(last))?;
    }
    let each = |bytes: f64| bytes / f64::from(COUNT);
    let page = PAGE_SIZE as u64;
    Ok(vec![
        found(INCREMENT, "bytes", RESTORE, each(place.bytes()? - before)),
        found(INCREMENT, "bytes", DIRTY_PAGES, each((pages * page) as f64)),
        found(INCREMENT, "bytes", CHUNKS, each((chunks * CHUNK_PAGES * page) as f64)),
    ])
}

/// A store with many checkpoints of a guest, made when it is needed first.
pub(super) struct DeepStore {
    checkpoints: u64,
    made: OnceCell<Made>,
}

struct Made {
    place: Place,
    last: u64,
    /// What the memory held at each checkpoint.
    memories: BTreeMap<u64, Memory>,
    /// A store with what it held at the last one, in one checkpoint.
    full: Place,
}

impl DeepStore {
    pub(super) fn new(checkpoints: u64) -> Self {
        Self {
            checkpoints,
            made: OnceCell::new(),
        }
    }

    fn made(&self) -> Result<&Made> {
        if self.made.get().is_none() {
            let _ = self.made.set(Made::new(self.checkpoints)?);
        }
        self.made.get().context("the store is gone")
    }

    /// Reads all of the first checkpoint, and all of the last one, beside a store that has nothing but what the last one holds.
    pub(super) fn restores(&self) -> Result<Figures> {
        let Made { place, last, full, .. } = self.made()?;
        let mut figures = Vec::new();
        for (by, place, sequence) in [(FIRST, place, 1), (FULL, full, 1), (LAST, place, *last)] {
            figures.extend(of_read(by, place.read(sequence)?));
        }
        Ok(figures)
    }

    /// Removes most checkpoints, the first one among them, and compares what is stored then with a store that never had others than those that are
    /// left.
    pub(super) fn retention(&self) -> Result<Figures> {
        let Made { place, memories, .. } = self.made()?;
        let mut policy = Policy::default();
        (policy.last, policy.hourly) = KEPT;
        place.store.prune(&place.guest, &policy, false)?;
        let mut now = GcOptions::default();
        now.grace = Duration::ZERO;
        // What the first call puts aside the second one deletes.
        place.store.gc(&now)?;
        place.store.gc(&now)?;
        let pruned = place.bytes()?;
        let listed = place.store.list()?;
        let live = listed.get(&place.guest).context("no checkpoint is left")?;
        ensure!(
            live.len() <= (KEPT.0 + KEPT.1) as usize,
            "{} checkpoints are left",
            live.len()
        );
        let alone = Place::new("alone", &packs())?;
        let mut before: Option<(&Memory, u64)> = None;
        for listed in live {
            let memory = memories.get(&listed.checkpoint.sequence).context("an unknown checkpoint")?;
            let is_new =
                |page: &u64| before.is_none_or(|(before, _)| before.pages[*page as usize] != memory.pages[*page as usize]);
            let written: Vec<u64> = (0..memory.len()).filter(is_new).collect();
            let sequence = alone.make(memory, written, before.map(|(_, sequence)| sequence))?;
            before = Some((memory, sequence));
        }
        Ok(vec![
            found(STORED, "bytes", PRUNED, pruned),
            found(STORED, "bytes", ALONE, alone.bytes()?),
        ])
    }
}

/// The figures of reading a whole checkpoint.
fn of_read(by: &'static str, (seconds, reads, bytes): (f64, f64, f64)) -> Figures {
    vec![
        found(RESTORE_TIME, "s", by, seconds),
        found(RESTORE_READS, "reads", by, reads),
        found(RESTORE_BYTES, "bytes", by, bytes),
    ]
}

/// Packs of 4 MiB: the guest of these stores has 16 MiB.
fn packs() -> InitOptions {
    let mut init = InitOptions::default();
    init.pack_bytes = 4 << 20;
    init
}

impl Made {
    fn new(checkpoints: u64) -> Result<Self> {
        const PAGES: u64 = 4096;
        const DIRTY: usize = 60;
        let place = Place::new("deep", &packs())?;
        let mut memory = Memory::new(PAGES);
        let mut last = place.make(&memory, 0..PAGES, None)?;
        let mut memories = BTreeMap::from([(last, memory.clone())]);
        for _ in 1..checkpoints {
            place.time.fetch_add(PERIOD.as_millis() as u64, Ordering::Relaxed);
            let written = memory.write(DIRTY);
            last = place.make(&memory, written, Some(last))?;
            // As `vmemctl checkpoint create` does.
            place
                .store
                .rewrite_scattered(&place.checkpoint(last), REWRITE, &WriteOptions::default(), &|| true)?;
            memories.insert(last, memory.clone());
        }
        let full = Place::new("full", &packs())?;
        full.make(&memory, 0..PAGES, None)?;
        Ok(Self {
            place,
            last,
            memories,
            full,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increments_take_what_their_pages_take() -> Result<()> {
        let figures = increments()?;
        let value = |by| figures.iter().find(|found| found.by == by).map_or(0.0, |found| found.value);
        let ratio = value(RESTORE) / value(DIRTY_PAGES);
        assert!(ratio > 0.9 && ratio <= 1.02, "{ratio}");
        assert!(value(CHUNKS) > 2.0 * value(DIRTY_PAGES));
        Ok(())
    }

    #[test]
    fn deep_store_is_read_from_both_ends_and_pruned() -> Result<()> {
        let deep = DeepStore::new(40);
        let value = |figures: &Figures, what: &str, by: &str| {
            let is_it = |found: &&super::super::results::Found| found.what == what && found.by == by;
            figures.iter().find(is_it).map_or(0.0, |found| found.value)
        };
        let restores = deep.restores()?;
        for by in [FIRST, FULL, LAST] {
            assert!(value(&restores, RESTORE_READS, by) >= 1.0);
            // At least what does not compress of 36 % of 16 MiB.
            assert!(value(&restores, RESTORE_BYTES, by) > 3e6);
        }
        let retention = deep.retention()?;
        assert!(value(&retention, STORED, PRUNED) >= value(&retention, STORED, ALONE) * 0.9);
        assert!(value(&retention, STORED, ALONE) > 3e6);
        Ok(())
    }
}
