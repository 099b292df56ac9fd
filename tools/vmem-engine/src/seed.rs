// SPDX-License-Identifier: GPL-2.0-or-later
//! Contents that are on this host already: old images of memory. Pages with such contents need not be sent.
//!
//! A thread reads the images, and keeps 8 bytes of the digest of each page and where the page is. The source is told of them; it sends the digest
//! of a page that has such contents, and the contents are copied from the image. An image can change or become shorter meanwhile: what is
//! copied is compared with the digest first. If it is something else, the images are not used any more, and the page is asked for again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use vmem::PAGE_SIZE;
use vmem_source::digest::{Digest, Key, MAX_ANNOUNCED};

use crate::error::Error;

/// Pages that are read from an image at once (1 MiB).
const READ_PAGES: usize = 256;

/// How many digests are announced at once at least, unless they are the last ones: no page is fetched meanwhile.
const BATCH: usize = 1 << 16;

const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Old images of memory.
pub struct Seed {
    key: Key,
    images: Vec<(PathBuf, File)>,
    state: Mutex<State>,
}

/// A page of an image, in 8 bytes: the number of the image, and 48 bits of that of the page.
#[derive(Clone, Copy)]
struct Place(u64);

impl Place {
    const PAGE_BITS: u32 = 48;

    fn new(image: usize, page: u64) -> Self {
        Self(((image as u64) << Self::PAGE_BITS) | page)
    }

    fn image(self) -> usize {
        (self.0 >> Self::PAGE_BITS) as usize
    }

    fn offset(self) -> u64 {
        (self.0 & ((1 << Self::PAGE_BITS) - 1)) * PAGE_SIZE as u64
    }
}

#[derive(Default)]
struct State {
    /// Where each digest is from.
    places: HashMap<u64, Place>,
    /// All digests, in the order in which they were found.
    found: Vec<u64>,
    /// All images have been read.
    is_complete: bool,
    /// Why the images are not used any more.
    failure: Option<String>,
    /// Whether the caller has been told of that.
    is_told: bool,
}

impl Seed {
    /// Reads these images in a thread of its own, which ends when the seed is dropped. Pages of zeros do not count, nor does a part of a page at the
    /// end of an image, nor more than [`MAX_ANNOUNCED`] pages.
    ///
    /// # Errors
    ///
    /// [`Error::Local`]: there is no random key, or no thread.
    pub fn start(images: Vec<(PathBuf, File)>) -> Result<Arc<Self>, Error> {
        let seed = Arc::new(Self {
            key: Key::random().map_err(Error::local("get random bytes"))?,
            images,
            state: Mutex::default(),
        });
        let weak = Arc::downgrade(&seed);
        thread::Builder::new()
            .name("seed".to_owned())
            .spawn(move || scan_all(&weak))
            .map_err(Error::local("start a thread"))?;
        Ok(seed)
    }

    /// Whether all images have been read, or are not used.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.is_complete || state.failure.is_some()
    }

    /// Number of different pages that were found.
    pub fn pages(&self) -> u64 {
        self.lock().found.len() as u64
    }

    /// Why the images are not used any more. It is returned once.
    pub fn failure(&self) -> Option<String> {
        let mut state = self.lock();
        let has_failed = state.failure.is_some();
        let is_told = std::mem::replace(&mut state.is_told, has_failed);
        state.failure.clone().filter(|_| !is_told)
    }

    /// Copies the page with this digest. False if there is none, or not any more: then the images are not used any more.
    pub(crate) fn copy(&self, digest: Digest, to: &mut [u8]) -> bool {
        let place = self.lock().places.get(&digest.prefix()).copied();
        let Some(place) = place else {
            self.fail("the source has a page of which no image has the digest".to_owned());
            return false;
        };
        let Some((path, file)) = self.images.get(place.image()) else {
            return false;
        };
        match file.read_exact_at(to, place.offset()) {
            Ok(()) if self.key.digest(to) == digest => true,
            Ok(()) => {
                self.fail(format!("{} has changed", path.display()));
                false
            }
            Err(error) => {
                self.fail(format!("cannot read {}: {error}", path.display()));
                false
            }
        }
    }

    fn fail(&self, why: String) {
        let mut state = self.lock();
        state.failure.get_or_insert(why);
        (state.places, state.found) = Default::default();
    }

    /// Reads some pages of an image, from `page` on. Returns how many; none at its end, or if no more are needed.
    fn scan(&self, image: usize, page: u64, buffer: &mut [u8]) -> usize {
        let Some((path, file)) = self.images.get(image) else {
            return 0;
        };
        let read = match read_full(file, buffer, page * PAGE_SIZE as u64) {
            Ok(read) => read / PAGE_SIZE,
            Err(error) => {
                self.fail(format!("cannot read {}: {error}", path.display()));
                return 0;
            }
        };
        let pages = buffer.chunks_exact(PAGE_SIZE).take(read);
        let digests: Vec<_> = (page..)
            .zip(pages)
            .filter(|(_, contents)| *contents != &ZERO_PAGE[..])
            .map(|(page, contents)| (self.key.digest(contents).prefix(), page))
            .collect();
        let mut state = self.lock();
        if state.failure.is_some() {
            return 0;
        }
        for (prefix, page) in digests {
            let State { places, found, .. } = &mut *state;
            if found.len() as u64 >= MAX_ANNOUNCED {
                return 0;
            }
            if let Entry::Vacant(place) = places.entry(prefix) {
                place.insert(Place::new(image, page));
                found.push(prefix);
            }
        }
        read
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever a thread was at when it panicked: what is copied is compared with its digest.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seed").field("images", &self.images).finish_non_exhaustive()
    }
}

/// The thread that reads the images.
fn scan_all(seed: &Weak<Seed>) {
    let mut buffer = vec![0; READ_PAGES * PAGE_SIZE];
    let (mut image, mut page) = (0, 0);
    while let Some(seed) = seed.upgrade() {
        if image == seed.images.len() {
            seed.lock().is_complete = true;
            return;
        }
        match seed.scan(image, page, &mut buffer) {
            READ_PAGES => page += READ_PAGES as u64,
            // The end of the image.
            _ => (image, page) = (image + 1, 0),
        }
    }
}

/// Reads until the buffer is full or the file ends. Returns the number of bytes.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// What a source was told of a seed, over one connection.
pub(crate) struct Announcer {
    seed: Option<Arc<Seed>>,
    /// How many digests were announced.
    announced: usize,
}

impl Announcer {
    /// For a source that takes digests, or does not.
    pub(crate) fn new(seed: Option<&Arc<Seed>>, can_hash: bool) -> Self {
        Self {
            seed: seed.filter(|_| can_hash).cloned(),
            announced: 0,
        }
    }

    /// Whether the source is to be told something. Nothing is fetched before that, so that it reads what it is told.
    pub(crate) fn is_due(&self) -> bool {
        let Some(seed) = &self.seed else { return false };
        let state = seed.lock();
        match &state.failure {
            Some(_) => true,
            None => match state.found.len() - self.announced {
                0 => false,
                new => new >= BATCH || state.is_complete,
            },
        }
    }

    /// Tells the source with `tell`. No page is outstanding.
    pub(crate) fn announce<E>(&mut self, tell: impl FnOnce(&Key, &[u64]) -> Result<(), E>) -> Result<(), E> {
        let Some(seed) = self.seed.clone() else { return Ok(()) };
        let new = {
            let state = seed.lock();
            if state.failure.is_some() {
                self.seed = None;
            }
            state.found.get(self.announced..).unwrap_or_default().to_vec()
        };
        if self.seed.is_some() && new.is_empty() || self.seed.is_none() && self.announced == 0 {
            return Ok(());
        }
        self.announced += new.len();
        // None of them withdraws all.
        tell(&seed.key, &new)
    }
}
