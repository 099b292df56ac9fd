// SPDX-License-Identifier: GPL-2.0-or-later
//! Opens a checkpoint as a source.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmem::{Name, PageRange};
use vmem_source::{Export, Lane};
use vmem_store::{BackendKind, Image, Manifest, Store, UserKey};

use crate::address::{Address, Selector};
use crate::origin::Origin;
use crate::reader::{ImageSource, IsThere, Order};

/// A checkpoint cannot be a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] vmem_store::Error),
    /// A memory of the checkpoint has a name that no region can have.
    #[error("memory {name:?} of the checkpoint cannot be a region")]
    Name {
        /// The memory.
        name: String,
        /// Why.
        #[source]
        source: vmem::Error,
    },
    /// The checkpoint has no memory, or one that is larger than a region can be.
    #[error("{0}")]
    Memory(String),
}

/// A checkpoint whose memory can be read, with a lease that keeps what it needs in the store as long as this value lives.
pub struct StoredPages {
    image: Arc<Image>,
    exports: Vec<Export>,
    /// The number of each export's backend in the checkpoint.
    backends: Vec<usize>,
    store: Store,
    is_there: IsThere,
}

impl std::fmt::Debug for StoredPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "checkpoint {} of {:?}", self.image.manifest().checkpoint, self.store)
    }
}

impl StoredPages {
    /// Opens the checkpoint, with the key if its store is encrypted. `holder` says to a person who reads it.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint, it cannot be read, or its memory cannot be in regions.
    pub fn open(address: &Address, key: Option<UserKey>, holder: &str) -> Result<Self, Error> {
        let location = address.store.clone();
        let is_there: IsThere = Arc::new(move || location.is_there());
        Self::open_in(address.store.open(key)?, &address.checkpoint, holder, is_there)
    }

    /// Opens a checkpoint of a store that is open. `is_there` asks the place of the store whether it is there.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_in(store: Store, checkpoint: &Selector, holder: &str, is_there: IsThere) -> Result<Self, Error> {
        let image = store.hold(&checkpoint.find(&store)?, holder)?;
        let mut pages = Self {
            exports: Vec::new(),
            backends: Vec::new(),
            store,
            is_there,
            image: Arc::new(image),
        };
        let manifest = pages.image.manifest();
        // What is identified by the root is these contents for ever.
        let (id, _) = manifest.root.split_at(16);
        let identity = id.iter().fold(0, |number: u128, byte| (number << 8) | u128::from(*byte));
        for (number, backend) in manifest.backends.iter().enumerate() {
            if backend.kind != BackendKind::Memory {
                continue;
            }
            let name = Name::new(&backend.name).map_err(|source| Error::Name {
                name: backend.name.clone(),
                source,
            })?;
            let too_large = || {
                Error::Memory(format!(
                    "memory {:?} of the checkpoint has {} bytes",
                    backend.name, backend.bytes
                ))
            };
            let range = PageRange::of_len(backend.bytes).filter(|pages| pages.count() <= vmem_source::export::MAX_PAGES);
            pages.exports.push(Export {
                name,
                pages: range.ok_or_else(too_large)?,
                padding: Export::padding_of(backend.bytes),
                identity,
            });
            pages.backends.push(number);
        }
        if pages.exports.is_empty() {
            return Err(Error::Memory("the checkpoint has no memory".to_owned()));
        }
        Ok(pages)
    }

    /// Gives the lease back: nothing is read any more.
    pub fn give_back(&self) {
        self.image.give_back();
    }

    /// Everything about the checkpoint but its contents.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.image.manifest()
    }

    /// The origin of regions that are filled from this checkpoint: each by its number, and with its memory's name.
    #[must_use]
    pub fn origin(&self, memories: BTreeMap<u64, String>) -> Origin {
        Origin {
            store: self.store.config().id,
            checkpoint: self.manifest().checkpoint.clone(),
            memories,
        }
    }

    /// The memories, as exports.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Opens the source for a lane. The store is asked first, so that this fails while it is away.
    ///
    /// # Errors
    ///
    /// [`vmem_source::Error::Io`] if the store does not answer; that is transient.
    pub fn source(&self, lane: Lane) -> Result<ImageSource, vmem_source::Error> {
        (self.is_there)().map_err(|error| vmem_source::Error::Io(std::io::Error::other(error)))?;
        let (store, image) = (self.store.clone(), Arc::clone(&self.image));
        let order: Order = Arc::new(move || image.plan(&store.order(&image)?));
        ImageSource::new(
            Arc::clone(&self.image),
            self.exports.clone(),
            self.backends.clone(),
            Arc::clone(&self.is_there),
            order,
            lane,
        )
    }
}
