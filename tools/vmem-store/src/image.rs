// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads checkpoints: any page of any backend, in any order, from any number of threads.

mod blob;
mod bytes;
mod plan;
mod records;
mod used_pack;
mod window;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};

use crate::base::Base;
use crate::cache::Cache;
use crate::encoding::Malformed;
use crate::error::{Error, PageError};
use crate::leaf::{Entry, LEAF_PAGES, Leaf};
use crate::lease::{Lease, Purpose};
use crate::manifest::{Backend, Manifest};
use crate::names::{PACKS, PackId, WriterId};
use crate::objects::Part;
use crate::pack::{Opened, Origin, Pack, TRAILER_BYTES};
use crate::record::RecordKind;
use crate::tree::{BRANCH_LEAVES, BRANCH_PAGES, Branch, PackInfo, PackTable, RecordRef, TABLE_PACKS, decode_live};

pub use blob::BlobReader;
pub use plan::{Fragmentation, Touch};
use records::Records;
pub(crate) use used_pack::UsedPack;
use window::{OpenPack, Window};

/// What is known of a page without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// It is zero.
    Zero,
    /// Its contents are in the store.
    Data,
    /// It could not be read when the checkpoint was made.
    Unreadable,
    /// It had not arrived at the guest when the checkpoint was made.
    Absent,
}

impl From<Entry> for PageState {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Zero => Self::Zero,
            Entry::Data { .. } => Self::Data,
            Entry::Unreadable => Self::Unreadable,
            Entry::Absent => Self::Absent,
        }
    }
}

/// Pages in a row that are in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The pages.
    pub pages: PageRange,
    /// Their state.
    pub state: PageState,
}

/// A checkpoint that can be read.
///
/// Each page is verified when it is read, by its hash, which the checkpoint's root covers. Nothing is read
/// before it is asked for; a look-up reads the branch and the leaf of the page, both of which are kept, however many checkpoints there are.
/// Kept are, for each GiB of memory that is read, up to 3 MiB of leaves and 5 MiB of tables of packs, and a bounded number of frames.
#[derive(Debug)]
pub struct Image {
    pub(crate) base: Arc<Base>,
    manifest: Manifest,
    records: Records,
    branches: Cache<(usize, u64), Branch>,
    leaves: Cache<(usize, u64), Leaf>,
    table: Cache<u32, PackTable>,
    packs: Cache<u32, OpenPack>,
    windows: Cache<(u32, u32, u32), Window>,
    /// The newest generations of packs, once it was seen that they differ.
    generations: Mutex<Option<HashMap<PackId, u32>>>,
    /// Keeps the garbage collection away, for readers that take long.
    lease: Mutex<Option<Lease>>,
}

/// Windows that are kept: frames that were read with the one that was asked for.
const WINDOWS: usize = 64;

impl Image {
    pub(crate) fn new(base: Arc<Base>, manifest: Manifest) -> Self {
        Self {
            records: Records::new(base.clone()),
            base,
            manifest,
            branches: Cache::new(usize::MAX),
            leaves: Cache::new(usize::MAX),
            table: Cache::new(usize::MAX),
            packs: Cache::new(usize::MAX),
            windows: Cache::new(WINDOWS),
            generations: Mutex::new(None),
            lease: Mutex::default(),
        }
    }

    /// The image, protected from garbage collection for as long as it exists.
    pub(crate) fn held(base: Arc<Base>, manifest: Manifest, holder: &str) -> Result<Self, Error> {
        let lease = Lease::take(&base, WriterId::new()?, holder, Purpose::Read, &[&manifest])?;
        let mut image = Self::new(base, manifest);
        *image.lease.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(lease);
        Ok(image)
    }

    /// Gives the lease back before the image ends: nothing is read any more.
    pub fn give_back(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lease);
    }

    /// Everything about the checkpoint but the contents of its pages.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its memories and blobs; other methods take a backend by its place here.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.manifest.backends
    }

    fn object_name(&self) -> String {
        format!("checkpoint {}", self.manifest.checkpoint)
    }

    fn backend(&self, backend: usize) -> Result<&Backend, Error> {
        self.manifest.backends.get(backend).ok_or_else(|| Error::Range {
            backend: backend.to_string(),
            what: format!("the checkpoint has {} backends", self.manifest.backends.len()),
        })
    }

    fn check_range(&self, backend: usize, end: u64) -> Result<(), Error> {
        let backend = self.backend(backend)?;
        if end > backend.pages() {
            return Err(Error::Range {
                backend: backend.name.clone(),
                what: format!("it has {} pages, and pages up to {end} were asked for", backend.pages()),
            });
        }
        Ok(())
    }

    /// The object of the index with this ordinal.
    pub(crate) fn index(&self, ordinal: u32) -> Result<WriterId, Error> {
        let known = self.manifest.indexes.get(ordinal as usize).copied().flatten();
        known.ok_or_else(|| Error::damaged(self.object_name(), format!("it has no object {ordinal} of the index")))
    }

    fn record<T>(
        &self,
        kind: RecordKind,
        record: &RecordRef,
        decode: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let writer = self.index(record.index)?;
        let bytes = self.records.read(writer, kind, record)?;
        decode(&bytes).map_err(|Malformed(what)| {
            Error::damaged(
                crate::names::index(writer),
                format!("the record at {}: {what}", record.offset),
            )
        })
    }

    pub(crate) fn branch(&self, backend: usize, branch: u64) -> Result<Arc<Branch>, Error> {
        self.branches.get(&(backend, branch), || {
            let known = self.backend(backend)?.branches.get(branch as usize).copied();
            match known {
                Some(Some(record)) => self.record(RecordKind::Branch, &record, Branch::decode),
                Some(None) => Ok(Branch::default()),
                None => Err(Error::damaged(
                    self.object_name(),
                    format!("it has no branch {branch} of backend {backend}"),
                )),
            }
        })
    }

    /// Where a leaf's record is; `None` is a leaf of zeros.
    pub(crate) fn leaf_record(&self, backend: usize, leaf: u64) -> Result<Option<RecordRef>, Error> {
        let branch = self.branch(backend, leaf / BRANCH_LEAVES)?;
        Ok(branch.0.get((leaf % BRANCH_LEAVES) as usize).copied().flatten())
    }

    pub(crate) fn leaf(&self, backend: usize, leaf: u64) -> Result<Arc<Leaf>, Error> {
        self.leaves.get(&(backend, leaf), || match self.leaf_record(backend, leaf)? {
            Some(record) => self.record(RecordKind::Leaf, &record, Leaf::decode),
            None => Ok(Leaf::zero()),
        })
    }

    pub(crate) fn entry(&self, backend: usize, pgoff: u64) -> Result<Entry, Error> {
        let leaf = self.leaf(backend, pgoff / LEAF_PAGES)?;
        let entry = leaf.0.get((pgoff % LEAF_PAGES) as usize).copied();
        entry.ok_or_else(|| Error::damaged(self.object_name(), "a leaf is too short"))
    }

    pub(crate) fn table_part(&self, part: u32) -> Result<Arc<PackTable>, Error> {
        self.table.get(&part, || match self.manifest.packs.get(part as usize) {
            Some(record) => self.record(RecordKind::PackTable, record, PackTable::decode),
            None => Err(Error::damaged(
                self.object_name(),
                format!("it has no part {part} of the table of packs"),
            )),
        })
    }

    /// What the checkpoint says about a pack that it refers to.
    pub(crate) fn pack_info(&self, pack: u32) -> Result<PackInfo, Error> {
        let part = self.table_part(pack / TABLE_PACKS as u32)?;
        let info = part.0.get(pack as usize % TABLE_PACKS).copied().flatten();
        info.ok_or_else(|| {
            Error::damaged(
                self.object_name(),
                format!("a page is in pack {pack}, which it does not have"),
            )
        })
    }

    /// All packs, by their ordinals.
    pub(crate) fn all_packs(&self) -> Result<Vec<Option<PackInfo>>, Error> {
        let mut packs = Vec::new();
        for part in 0..self.manifest.packs.len() as u32 {
            let table = self.table_part(part)?;
            packs.extend_from_slice(&table.0);
            if part as usize + 1 < self.manifest.packs.len() && table.0.len() != TABLE_PACKS {
                return Err(Error::damaged(
                    self.object_name(),
                    "a part of the table of packs is too short",
                ));
            }
        }
        Ok(packs)
    }

    /// How many pages of each pack the checkpoint refers to.
    pub(crate) fn live(&self) -> Result<Vec<u32>, Error> {
        self.record(RecordKind::Live, &self.manifest.live, decode_live)
    }

    pub(crate) fn pack(&self, pack: u32) -> Result<Arc<OpenPack>, Error> {
        self.packs.get(&pack, || {
            let info = self.pack_info(pack)?;
            let (opened, tail) = self.newest_generation(&info)?;
            let open = OpenPack::new(opened, self.base.objects.window());
            // A small pack came as a whole.
            for (at, window) in open.windows_within(&tail) {
                self.windows.add(&(pack, open.pack.generation, at), window);
            }
            Ok(open)
        })
    }

    /// The newest generation of a pack, and the bytes that were read of its end.
    fn newest_generation(&self, info: &PackInfo) -> Result<(Pack, Vec<u8>), Error> {
        let known = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|known| known.get(&info.id).copied());
        match read_generation(&self.base, info, known.unwrap_or(0)) {
            Err(error) if error.is_not_found() => {}
            read => return read,
        }
        // Part of the pack was given back, and what is left is in another object. It will not be the only one.
        let mut generations: HashMap<PackId, u32> = HashMap::new();
        for meta in self.base.list(PACKS)? {
            if let Some((id, generation)) = PackId::parse(&meta.name) {
                let newest = generations.entry(id).or_default();
                *newest = generation.max(*newest);
            }
        }
        let newest = generations.get(&info.id).copied().unwrap_or(0);
        *self.generations.lock().unwrap_or_else(PoisonError::into_inner) = Some(generations);
        read_generation(&self.base, info, newest)
    }

    /// Does what needs a pack; once more with a newer generation of it, if this one has been collected meanwhile.
    fn with_pack<T>(&self, pack: u32, read: impl Fn(&OpenPack) -> Result<T, Error>) -> Result<T, Error> {
        match read(&*self.pack(pack)?) {
            Err(error) if error.is_not_found() => {
                self.packs.remove(&pack);
                read(&*self.pack(pack)?)
            }
            ended => ended,
        }
    }

    /// What is known of a page without reading its contents.
    pub fn lookup(&self, backend: usize, page: PageIndex) -> Result<PageState, Error> {
        self.check_range(backend, page.get() + 1)?;
        Ok(self.entry(backend, page.get())?.into())
    }

    /// The states of pages, in order; neighbours differ. `pages` bounds the memory that the answer takes.
    pub fn extents(&self, backend: usize, pages: PageRange) -> Result<Vec<Extent>, Error> {
        self.check_range(backend, pages.end())?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut push = |first, count, state| {
            let Some(pages) = PageRange::from_pgoff(first, count) else {
                return;
            };
            let last = extents.last_mut().filter(|last| last.state == state);
            match last.and_then(|last| last.pages.join(pages).map(|joined| (last, joined))) {
                Some((last, joined)) => last.pages = joined,
                None => extents.push(Extent { pages, state }),
            }
        };
        let mut at = pages.first().get();
        while at < pages.end() {
            let end = ((at / LEAF_PAGES + 1) * LEAF_PAGES).min(pages.end());
            match self.leaf_record(backend, at / LEAF_PAGES)? {
                // It takes no memory, however large the memory is.
                None => push(at, end - at, PageState::Zero),
                Some(_) => {
                    let leaf = self.leaf(backend, at / LEAF_PAGES)?;
                    for pgoff in at..end {
                        let entry = leaf.0.get((pgoff % LEAF_PAGES) as usize).copied();
                        push(pgoff, 1, entry.unwrap_or(Entry::Absent).into());
                    }
                }
            }
            at = end;
        }
        Ok(extents)
    }

    /// Reads a page. If it fails, `contents` is as it was.
    pub fn read_page(&self, backend: usize, page: PageIndex, contents: &mut [u8; PAGE_SIZE]) -> Result<(), PageError> {
        self.check_range(backend, page.get() + 1).map_err(PageError::from)?;
        match self.entry(backend, page.get())? {
            Entry::Zero => contents.fill(0),
            Entry::Unreadable => return Err(PageError::Unreadable),
            Entry::Absent => return Err(PageError::Absent),
            Entry::Data { pack, number } => {
                self.with_pack(pack, |open| self.frame(pack, open, number))
                    .and_then(|(frame, slot)| {
                        contents.copy_from_slice(frame.page(slot, &self.base.crypto)?);
                        Ok(())
                    })?
            }
        }
        Ok(())
    }

    /// Reads pages in a row. Those that fail are in the answer, and their part of `contents` is as it was; all others were read.
    ///
    /// # Errors
    ///
    /// If `contents` is not as long as the pages, or the backend does not have them.
    pub fn read_pages(
        &self,
        backend: usize,
        pages: PageRange,
        contents: &mut [u8],
    ) -> Result<Vec<(PageIndex, PageError)>, Error> {
        self.check_range(backend, pages.end())?;
        if contents.len() as u64 != pages.count() * PAGE_SIZE as u64 {
            return Err(Error::Range {
                backend: self.backend(backend)?.name.clone(),
                what: format!("{} pages do not fit into {} bytes", pages.count(), contents.len()),
            });
        }
        let mut failed = Vec::new();
        for (page, contents) in pages.iter().zip(contents.chunks_exact_mut(PAGE_SIZE)) {
            let Ok(contents) = contents.try_into() else { continue };
            if let Err(error) = self.read_page(backend, page, contents) {
                failed.push((page, error));
            }
        }
        Ok(failed)
    }

    /// The other pages of this checkpoint that are stored in the same frame as this one, with the numbers of their backends: once the page has been
    /// read, they cost no read, and they were written together.
    pub fn neighbours(&self, backend: usize, page: PageIndex) -> Result<Vec<(usize, PageRange)>, Error> {
        self.check_range(backend, page.get() + 1)?;
        let Entry::Data { pack, number } = self.entry(backend, page.get())? else {
            return Ok(Vec::new());
        };
        let pages = self.with_pack(pack, |open| {
            let origin = |number: u32| Some((number, open.pack.footer.pages.origin(number)?));
            Ok(open.numbers(number).into_iter().filter_map(origin).collect::<Vec<_>>())
        })?;
        let mut neighbours: Vec<(usize, PageRange)> = Vec::new();
        for (neighbour, Origin { backend: at, pgoff }) in pages {
            let at = at as usize;
            let is_there = neighbour != number && self.backends().get(at).is_some_and(|backend| pgoff < backend.pages());
            // The origin is a hint: only the index says where the page is.
            if !is_there || self.entry(at, pgoff)? != (Entry::Data { pack, number: neighbour }) {
                continue;
            }
            let Some(page) = PageRange::from_pgoff(pgoff, 1) else {
                continue;
            };
            let last = neighbours.last_mut().filter(|(of, _)| *of == at);
            match last.and_then(|(_, pages)| pages.join(page).map(|joined| (pages, joined))) {
                Some((pages, joined)) => *pages = joined,
                None => neighbours.push((at, page)),
            }
        }
        Ok(neighbours)
    }

    /// The hash of a page that is in a pack, without reading the page.
    pub(crate) fn page_hash(&self, pack: u32, number: u32) -> Result<crate::crypto::Hash16, Error> {
        let open = self.pack(pack)?;
        let hash = open.pack.footer.pages.hashes.get(number as usize).copied();
        hash.ok_or_else(|| Error::damaged(&open.pack.name, format!("it has no page {number}")))
    }

    /// The pages of a backend, by branch: nothing that does not exist.
    pub(crate) fn leaves_of(&self, backend: usize) -> u64 {
        self.manifest
            .backends
            .get(backend)
            .map_or(0, |backend| backend.pages().div_ceil(LEAF_PAGES))
    }

    /// How many leaves are kept.
    #[cfg(test)]
    pub(crate) fn leaves_kept(&self) -> usize {
        self.leaves.len()
    }

    /// The branches of a backend.
    pub(crate) fn branches_of(&self, backend: usize) -> u64 {
        self.manifest
            .backends
            .get(backend)
            .map_or(0, |backend| backend.pages().div_ceil(BRANCH_PAGES))
    }
}

/// A generation of a pack, if its pages are those that the checkpoint refers to.
pub(crate) fn open_generation(base: &Base, info: &PackInfo, generation: u32) -> Result<Pack, Error> {
    read_generation(base, info, generation).map(|(pack, _)| pack)
}

/// The same, with the bytes that were read of its end.
fn read_generation(base: &Base, info: &PackInfo, generation: u32) -> Result<(Pack, Vec<u8>), Error> {
    let name = info.id.object(generation);
    // Enough for both tables, unless origins are scattered; and what is worth reading at once.
    let tables = TRAILER_BYTES as u64 + 64 + u64::from(info.pages) * 22;
    let mut tail = tables.max(base.objects.window());
    loop {
        let fetched = base.get(&name, Part::Last(tail))?;
        match Pack::open(info.id, generation, &fetched.bytes, fetched.size, &base.crypto)? {
            Opened::Pack(pack) => {
                pack.check(info, &base.crypto)?;
                return Ok((*pack, fetched.bytes));
            }
            Opened::Needs(more) if more > tail && more <= fetched.size => tail = more,
            Opened::Needs(_) => return Err(Error::damaged(name, "its tables are longer than it")),
        }
    }
}
