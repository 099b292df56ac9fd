// SPDX-License-Identifier: GPL-2.0
//! Writes checkpoints: pages in any order, from any threads, while the packs before them are on their way to the store.

mod commit;
mod overlay;
mod session;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};

use crate::base::Base;
use crate::codec::{Compression, compress};
use crate::crypto::Hash16;
use crate::error::Error;
use crate::image::Image;
use crate::leaf::Entry;
use crate::lease::{Lease, Purpose};
use crate::manifest::{BackendKind, MAX_TEXT, Manifest, Statistics};
use crate::names::{CheckpointName, GuestName, WriterId};
use crate::pack::Origin;

use overlay::Overlay;
use session::{FullFrame, Session};
use upload::Uploader;

/// How a checkpoint is written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteOptions {
    /// How its pages are compressed; as the store says, if not given.
    pub compression: Option<Compression>,
    /// Packs that are on their way at once. Each takes memory: a store's `pack_bytes`, and as much again for one more that waits.
    pub uploads: usize,
    /// Whether pages with the same contents in this checkpoint are stored once.
    pub share: bool,
    /// Who writes, for the lease: a person reads it.
    pub holder: String,
    /// The parent's names of memories that have another name in this checkpoint.
    pub parent_names: BTreeMap<String, String>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: None,
            uploads: 2,
            share: true,
            holder: format!("writer, process {}", std::process::id()),
            parent_names: BTreeMap::new(),
        }
    }
}

/// What a checkpoint gets when it is committed.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Words by which retention can keep it.
    pub tags: BTreeSet<String>,
    /// What else belongs to it: see [`Manifest::labels`].
    pub labels: BTreeMap<String, String>,
}

/// Which number a checkpoint gets.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// The guest's next one.
    Next(GuestName),
    /// That of a checkpoint that it takes the place of: this revision, with its tags, labels, parent and time.
    Revision { of: Box<Manifest>, revision: u32 },
}

/// A backend of the checkpoint that is written.
#[derive(Debug, Clone)]
struct Plan {
    name: String,
    kind: BackendKind,
    bytes: u64,
    /// The parent's backend whose pages those are compared with that are put. No two backends have the same one.
    parent: Option<usize>,
    /// Whether pages that are not put are the parent's.
    inherits: bool,
}

impl Plan {
    fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE as u64)
    }
}

/// What is to be done with a page that was put.
enum Class {
    Known(Entry),
    Unchanged(Entry),
    Store { hash: Hash16, is_hot: bool },
}

/// A checkpoint that is being written.
///
/// Each page is put once. With a parent, pages that are not put are the parent's; without one, all have to be put. Methods take `&self`: any
/// number of threads can put pages, and compress and hash them at the same time. A method blocks while the packs before are on their way.
///
/// Nothing exists for readers before [`commit`](Self::commit) returns. A writer that is dropped before that deletes what it wrote.
pub struct Writer {
    base: Arc<Base>,
    id: WriterId,
    target: Target,
    parent: Option<Image>,
    lease: Lease,
    compression: Compression,
    share: bool,
    begun: u64,
    plans: Mutex<Vec<Arc<Plan>>>,
    session: Mutex<Session>,
    uploader: Uploader,
    is_committed: bool,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "writer {}", self.id)
    }
}

impl Writer {
    /// Begins a checkpoint of `guest` with these memories, each with its name and bytes.
    pub(crate) fn begin(
        base: &Arc<Base>,
        guest: &GuestName,
        parent: Option<Manifest>,
        memories: &[(String, u64)],
        options: &WriteOptions,
    ) -> Result<Self, Error> {
        let parent_names = &options.parent_names;
        let mut taken = BTreeSet::new();
        let mut plans = Vec::new();
        for (name, bytes) in memories {
            let is_renamed = parent_names.contains_key(name);
            let of_parent = parent_names.get(name).unwrap_or(name);
            let known = parent
                .as_ref()
                .and_then(|parent| parent.backend(of_parent))
                .filter(|(_, known)| known.kind == BackendKind::Memory)
                .map(|(at, _)| at)
                // One that has the name by chance gives way to the one that the caller says.
                .filter(|at| (is_renamed || !parent_names.values().any(|other| other == name)) && taken.insert(*at));
            plans.push(Plan {
                name: name.clone(),
                kind: BackendKind::Memory,
                bytes: *bytes,
                parent: known,
                inherits: known.is_some(),
            });
        }
        Self::with(base, Target::Next(guest.clone()), parent, plans, options)
    }

    /// Begins a rewrite of a checkpoint: all that is not put again stays as it is.
    pub(crate) fn rewrite(base: &Arc<Base>, of: Manifest, options: &WriteOptions) -> Result<Self, Error> {
        let plans = of.backends.iter().enumerate().map(|(at, backend)| Plan {
            name: backend.name.clone(),
            kind: backend.kind,
            bytes: backend.bytes,
            parent: Some(at),
            inherits: true,
        });
        let plans = plans.collect();
        let target = Target::Revision {
            revision: of.revision + 1,
            of: Box::new(of.clone()),
        };
        Self::with(base, target, Some(of), plans, options)
    }

    fn with(
        base: &Arc<Base>,
        target: Target,
        parent: Option<Manifest>,
        plans: Vec<Plan>,
        options: &WriteOptions,
    ) -> Result<Self, Error> {
        let mut names = BTreeSet::new();
        for plan in &plans {
            check_name(&plan.name)?;
            if !names.insert(&plan.name) {
                return Err(Error::Name(format!("backend {} is there twice", plan.name)));
            }
            if plan.kind == BackendKind::Memory && (plan.bytes == 0 || plan.bytes % PAGE_SIZE as u64 != 0 || plan.bytes > 1 << 56)
            {
                return Err(Error::Range {
                    backend: plan.name.clone(),
                    what: format!("{} bytes are not whole pages, none, or more than 64 PiB", plan.bytes),
                });
            }
        }
        let id = WriterId::new()?;
        let lease = Lease::take(
            base,
            id,
            &options.holder,
            Purpose::Write,
            &parent.as_ref().map_or(vec![], |parent| vec![parent]),
        )?;
        let parent = parent.map(|manifest| Image::new(base.clone(), manifest));
        let session = Session::new(id, base, parent.as_ref())?;
        Ok(Self {
            base: base.clone(),
            id,
            target,
            parent,
            lease,
            compression: options.compression.unwrap_or(base.config.compression),
            share: options.share,
            begun: base.now(),
            plans: Mutex::new(plans.into_iter().map(Arc::new).collect()),
            session: Mutex::new(session),
            uploader: Uploader::new(base, options.uploads)?,
            is_committed: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, backend: usize) -> Result<Arc<Plan>, Error> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.get(backend).cloned().ok_or_else(|| Error::Range {
            backend: backend.to_string(),
            what: format!("the checkpoint has {} backends", plans.len()),
        })
    }

    fn range(&self, backend: usize, pages: PageRange) -> Result<Arc<Plan>, Error> {
        let plan = self.plan(backend)?;
        if pages.end() > plan.pages() {
            return Err(Error::Range {
                backend: plan.name.clone(),
                what: format!("it has {} pages, and {pages} were put", plan.pages()),
            });
        }
        Ok(plan)
    }

    /// The checkpoint that pages are compared with, if there is one.
    #[must_use]
    pub fn parent(&self) -> Option<&Manifest> {
        self.parent.as_ref().map(Image::manifest)
    }

    /// What was counted so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// Puts pages in a row, by the number of the backend in the order of [`begin`](crate::Store::begin). `contents` has whole pages.
    ///
    /// # Errors
    ///
    /// If the pages are not the backend's, one of them was put before, or the store failed; then the checkpoint cannot be committed.
    pub fn put_pages(&self, backend: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error> {
        let count = contents.len() / PAGE_SIZE;
        let pages = PageRange::new(first, count as u64).filter(|_| contents.len() % PAGE_SIZE == 0);
        let Some(pages) = pages else {
            return Err(Error::Range {
                backend: self.plan(backend)?.name.clone(),
                what: format!("{} bytes at {first} are not whole pages", contents.len()),
            });
        };
        let plan = self.range(backend, pages)?;
        self.put(&plan, backend, first.get(), contents, true)
    }

    /// Puts pages that are zero.
    pub fn put_zero(&self, backend: usize, pages: PageRange) -> Result<(), Error> {
        self.put_known(backend, pages, Entry::Zero)
    }

    /// Puts pages that cannot be read. Whoever reads them from the checkpoint gets an error.
    pub fn put_unreadable(&self, backend: usize, pages: PageRange) -> Result<(), Error> {
        self.put_known(backend, pages, Entry::Unreadable)
    }

    /// Puts pages that have not arrived at the guest. A label of the checkpoint should say where they are.
    pub fn put_absent(&self, backend: usize, pages: PageRange) -> Result<(), Error> {
        self.put_known(backend, pages, Entry::Absent)
    }

    /// Adds a blob of at most `limit` bytes, until `contents` ends: the device state, for example. The parent's blob of the same name is
    /// what its pages are compared with. Gives the bytes.
    pub fn put_blob(&self, name: &str, contents: &mut dyn Read, limit: u64) -> Result<u64, Error> {
        check_name(name)?;
        let known = self
            .parent
            .as_ref()
            .and_then(|parent| parent.manifest().backend(name))
            .filter(|(_, known)| known.kind == BackendKind::Blob);
        let mut plan = Plan {
            name: name.to_owned(),
            kind: BackendKind::Blob,
            bytes: 0,
            parent: known.map(|(at, _)| at),
            inherits: false,
        };
        let backend = {
            let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            if plans.iter().any(|plan| plan.name == name) {
                return Err(Error::Name(format!("backend {name} is there twice")));
            }
            plans.push(Arc::new(plan.clone()));
            plans.len() - 1
        };
        let mut chunk = vec![0; self.base.config.frame_pages as usize * PAGE_SIZE];
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match contents.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let error = Error::Object {
                            action: "read",
                            name: format!("the contents of {name}"),
                            cause: error.into(),
                        };
                        return Err(self.lock().fail(error));
                    }
                }
            }
            let first = plan.bytes / PAGE_SIZE as u64;
            plan.bytes += filled as u64;
            if plan.bytes > limit {
                return Err(self
                    .lock()
                    .fail(Error::TooLarge(format!("{name} has more than {limit} bytes"))));
            }
            let whole = filled.div_ceil(PAGE_SIZE) * PAGE_SIZE;
            chunk[filled..whole].fill(0);
            self.put(&plan, backend, first, &chunk[..whole], true)?;
            if filled < chunk.len() {
                break;
            }
        }
        let bytes = plan.bytes;
        if let Some(known) = self.plans.lock().unwrap_or_else(PoisonError::into_inner).get_mut(backend) {
            *known = Arc::new(plan);
        }
        Ok(bytes)
    }

    /// Puts pages that the checkpoint has already, to be stored again at another place.
    pub(crate) fn store_again(&self, backend: usize, first: PageIndex, contents: &[u8]) -> Result<(), Error> {
        let plan = self.plan(backend)?;
        self.put(&plan, backend, first.get(), contents, false)
    }

    fn put_known(&self, backend: usize, pages: PageRange, entry: Entry) -> Result<(), Error> {
        let plan = self.range(backend, pages)?;
        let mut session = self.lock();
        session.check()?;
        if let Err(page) = session.overlay.set_range(backend, pages, entry) {
            return Err(session.fail(Error::PutTwice {
                backend: plan.name.clone(),
                page,
            }));
        }
        if entry == Entry::Zero {
            session.statistics.put += pages.count();
            session.statistics.zero += pages.count();
        }
        Ok(())
    }

    fn classify(&self, plan: &Plan, pgoff: u64, page: &[u8], compare: bool) -> Result<Class, Error> {
        if page.iter().all(|byte| *byte == 0) {
            return Ok(Class::Known(Entry::Zero));
        }
        let hash = self.base.crypto.hash16(page);
        let mut is_hot = false;
        if let (Some(parent), Some(backend), true) = (&self.parent, plan.parent, compare) {
            let pages = parent.backends().get(backend).map_or(0, crate::manifest::Backend::pages);
            if pgoff < pages {
                let entry = parent.entry(backend, pgoff)?;
                if let Entry::Data { pack, number } = entry {
                    if parent.page_hash(pack, number)? == hash {
                        return Ok(Class::Unchanged(entry));
                    }
                    is_hot = parent.pack_info(pack)?.id.writer == parent.manifest().id;
                }
            }
        }
        Ok(Class::Store { hash, is_hot })
    }

    fn put(&self, plan: &Plan, backend: usize, first: u64, contents: &[u8], compare: bool) -> Result<(), Error> {
        self.lock().check()?;
        let pages = contents.chunks_exact(PAGE_SIZE).zip(first..);
        let classes: Result<Vec<Class>, Error> = pages
            .clone()
            .map(|(page, pgoff)| self.classify(plan, pgoff, page, compare))
            .collect();
        let classes = classes.map_err(|error| self.lock().fail(error))?;
        let mut full = Vec::new();
        {
            let mut session = self.lock();
            for ((page, pgoff), class) in pages.zip(classes) {
                if let Err(page) = session.overlay.claim(backend, pgoff) {
                    return Err(session.fail(Error::PutTwice {
                        backend: plan.name.clone(),
                        page,
                    }));
                }
                session.statistics.put += 1;
                match class {
                    Class::Known(entry) => {
                        session.statistics.zero += 1;
                        session.overlay.set(backend, pgoff, entry);
                    }
                    Class::Unchanged(entry) => {
                        session.statistics.unchanged += 1;
                        session.overlay.set(backend, pgoff, entry);
                    }
                    Class::Store { hash, is_hot } => {
                        if let Some(entry) = session.known(hash).filter(|_| self.share) {
                            session.statistics.duplicate += 1;
                            session.overlay.set(backend, pgoff, entry);
                            continue;
                        }
                        session.statistics.stored += 1;
                        session.statistics.hot += u64::from(is_hot);
                        let origin = Origin {
                            backend: backend as u32,
                            pgoff,
                        };
                        full.extend(session.add(is_hot, origin, hash, page));
                    }
                }
            }
        }
        full.into_iter().try_for_each(|frame| self.store(frame))
    }

    /// Compresses a frame, and appends it to its pack; a pack that is complete goes on its way.
    fn store(&self, frame: FullFrame) -> Result<(), Error> {
        let FullFrame { is_hot, pages, data } = frame;
        let (codec, stored) = compress(self.compression, data);
        let complete = {
            let mut session = self.lock();
            session.check()?;
            match session.append(&self.base, is_hot, codec, stored, &pages) {
                Ok(complete) => complete,
                Err(error) => return Err(session.fail(error)),
            }
        };
        if let Some((name, bytes)) = complete {
            self.uploader.send(name, bytes).map_err(|error| self.lock().fail(error))?;
        }
        Ok(())
    }

    /// Ends the checkpoint: what is left goes to the store, then the index, and last the manifest, with which it exists.
    ///
    /// # Errors
    ///
    /// If a page is missing, or the store failed. Then there is no checkpoint; only if the very last step failed without an answer of the
    /// store, there may be one, and it is complete.
    pub fn commit(mut self, options: CommitOptions) -> Result<Manifest, Error> {
        let rest = {
            let mut session = self.lock();
            session.check()?;
            session.take_rest()
        };
        rest.into_iter().try_for_each(|frame| self.store(frame))?;
        let packs = self.lock().finish_packs(&self.base);
        for (name, bytes) in packs {
            self.uploader.send(name, bytes)?;
        }
        self.uploader.finish()?;
        let manifest = self.write_index(options)?;
        // From here on, the packs may belong to a checkpoint, whatever the store answers.
        self.is_committed = true;
        self.write_manifest(manifest)
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty()
        || name.len() > MAX_TEXT
        || name.contains('/')
        || name.chars().any(char::is_control)
        || name.starts_with('.')
    {
        return Err(Error::Name(format!(
            "{name:?} is no name of a backend: 1 to {MAX_TEXT} bytes without '/' and control characters, not beginning with '.'"
        )));
    }
    Ok(())
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        let _ = self.uploader.finish();
        let index = crate::names::index(self.id);
        for name in self.uploader.written().into_iter().chain([index]) {
            if let Err(error) = self.base.delete(&name) {
                tracing::warn!("{error}; the next garbage collection does it");
                break;
            }
        }
    }
}

/// The checkpoint's name, for messages.
impl Target {
    fn guest(&self) -> &GuestName {
        match self {
            Self::Next(guest) => guest,
            Self::Revision { of, .. } => &of.checkpoint.guest,
        }
    }

    fn name(&self, sequence: u64) -> CheckpointName {
        CheckpointName {
            guest: self.guest().clone(),
            sequence,
        }
    }
}
