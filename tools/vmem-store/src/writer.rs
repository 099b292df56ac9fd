// SPDX-License-Identifier: GPL-2.0-or-later
//! Writes checkpoints: pages in any order, from any threads, while the packs before them are on their way to the store.

mod blob;
mod commit;
mod options;
mod overlay;
mod plan;
mod session;
mod target;
mod upload;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmem_pages::{PAGE_SIZE, PageIndex, PageRange};

use crate::base::Base;
use crate::codec::{Compression, compress};
use crate::crypto::Hash16;
use crate::error::Error;
use crate::image::Image;
use crate::leaf::Entry;
use crate::lease::{Lease, Purpose};
use crate::manifest::{Manifest, Statistics};
use crate::names::{GuestName, WriterId};
use crate::pack::Origin;

use overlay::Overlay;
use plan::Plan;
use session::{FullFrame, Session};
use target::Target;
use upload::Uploader;

pub use options::{CommitOptions, WriteOptions};

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
        let plans = Plan::of_memories(memories, parent.as_ref(), &options.parent_names);
        Self::with(base, Target::Next(guest.clone()), parent, plans, options)
    }

    /// Begins a rewrite of a checkpoint: all that is not put again stays as it is.
    pub(crate) fn rewrite(base: &Arc<Base>, of: Manifest, options: &WriteOptions) -> Result<Self, Error> {
        let plans = Plan::again(&of);
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
        plan::check(&plans)?;
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
