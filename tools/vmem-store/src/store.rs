// SPDX-License-Identifier: GPL-2.0-or-later
//! Stores: made, opened, and what is in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::base::{Base, Clock, Config};
use crate::codec::Compression;
use crate::crypto::Crypto;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::image::Image;
use crate::keys::{self, UserKey};
use crate::manifest::Manifest;
use crate::names::{CONFIG, CheckpointName, GuestName, WriterId};
use crate::objects::{ObjectError, Objects, Part, Put, Retry, Retrying, Waiting, creates_exclusively};
use crate::pack::MAX_FRAME_PAGES;
use crate::writer::{WriteOptions, Writer};

/// How a store is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct InitOptions {
    /// How new pages are compressed, unless a writer says otherwise.
    pub compression: Compression,
    /// Pages that are compressed together, 1 to 64. More compress better; one that is needed takes all of them to be read.
    pub frame_pages: u32,
    /// Bytes at which a pack is complete, 64 KiB to 1 GiB.
    pub pack_bytes: u64,
    /// Encrypts the contents; this key opens the store.
    pub key: Option<UserKey>,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            frame_pages: 16,
            pack_bytes: 32 << 20,
            key: None,
        }
    }
}

/// How a store is used.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Opens an encrypted store.
    pub key: Option<UserKey>,
    /// How long operations are tried again.
    pub retry: Retry,
    /// Hears of it when the place is away, and can end the wait.
    pub waiting: Option<Arc<dyn Waiting>>,
    /// Tells the time.
    pub clock: Clock,
    /// How long a lease lasts that is not renewed.
    pub lease_time: Duration,
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "OpenOptions {{ key: {:?}, retry: {:?}, lease_time: {:?} }}",
            self.key, self.retry, self.lease_time
        )
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |passed| passed.as_millis() as u64)
        };
        Self {
            key: None,
            retry: Retry::default(),
            waiting: None,
            clock: Arc::new(clock),
            lease_time: Duration::from_secs(300),
        }
    }
}

/// A checkpoint, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The checkpoint.
    pub checkpoint: CheckpointName,
    /// 0, or how often it was rewritten: another manifest, with the same contents.
    pub revision: u32,
    /// Whether it is protected from being removed.
    pub protected: bool,
}

/// A checkpoint store that is open.
///
/// Cloning gives the same store. All methods can be used by several threads and several programs at once.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) base: Arc<Base>,
}

impl Store {
    /// Makes a store in an empty place, and opens it.
    ///
    /// # Errors
    ///
    /// [`Error::StoreExists`], [`Error::NotEmpty`]; [`Error::NoConditionalCreate`] if the place replaces objects that it should not.
    pub fn init(objects: Arc<dyn Objects>, init: &InitOptions, mut open: OpenOptions) -> Result<Self, Error> {
        if init.frame_pages == 0 || init.frame_pages > MAX_FRAME_PAGES {
            return Err(Error::TooLarge(format!("a frame has 1 to {MAX_FRAME_PAGES} pages")));
        }
        if !(64 << 10..=1 << 30).contains(&init.pack_bytes) {
            return Err(Error::TooLarge("a pack has 64 KiB to 1 GiB".to_owned()));
        }
        let objects: Arc<dyn Objects> = Arc::new(Retrying::new(objects, open.retry, open.waiting.take()));
        let there = objects.list("").map_err(|cause| Error::Object {
            action: "list",
            name: "the store".to_owned(),
            cause,
        })?;
        if there.iter().any(|meta| meta.name == CONFIG) {
            return Err(Error::StoreExists);
        }
        // What an init that was killed left behind is of no use to anybody.
        let other = there
            .iter()
            .find(|meta| !["probe/", keys_prefix()].iter().any(|own| meta.name.starts_with(own)));
        if let Some(other) = other {
            return Err(Error::NotEmpty(other.name.clone()));
        }
        for meta in &there {
            let deleted = objects.delete(&meta.name);
            deleted.map_err(|cause| Error::Object {
                action: "delete",
                name: meta.name.clone(),
                cause,
            })?;
        }
        let is_exclusive = creates_exclusively(&*objects).map_err(|cause| Error::Object {
            action: "write",
            name: "a probe".to_owned(),
            cause,
        })?;
        if !is_exclusive {
            return Err(Error::NoConditionalCreate);
        }
        let config = Config {
            id: WriterId::new()?,
            created: (open.clock)(),
            encrypted: init.key.is_some(),
            compression: init.compression,
            frame_pages: init.frame_pages,
            pack_bytes: init.pack_bytes,
        };
        if let Some(key) = &init.key {
            keys::store(&*objects, &keys::new_ring()?, key)?;
        }
        let body = serde_json::to_vec(&config).unwrap_or_default();
        let object = wrap(Kind::Config, CONFIG, &body, &Seal::Open)?;
        match objects.put(CONFIG, &object, Put::New) {
            Err(ObjectError::AlreadyExists) => return Err(Error::StoreExists),
            put => put.map_err(|cause| Error::Object {
                action: "write",
                name: CONFIG.to_owned(),
                cause,
            })?,
        }
        open.key = init.key.clone();
        Self::with(objects, open)
    }

    /// Opens a store. What is read for that is tried again as often as [`Retry::attempts`] says; the patience is for what follows.
    ///
    /// # Errors
    ///
    /// [`Error::NoStore`]; [`Error::KeyNeeded`], [`Error::WrongKey`] or [`Error::NotEncrypted`] if the key does not suit;
    /// [`Error::NewerVersion`].
    pub fn open(objects: Arc<dyn Objects>, options: OpenOptions) -> Result<Self, Error> {
        let patient = Retrying::new(objects.clone(), options.retry, options.waiting.clone());
        let quick = Retry {
            patience: Duration::ZERO,
            ..options.retry
        };
        let mut store = Self::with(Arc::new(Retrying::new(objects, quick, None)), options)?;
        if let Some(base) = Arc::get_mut(&mut store.base) {
            base.objects = Arc::new(patient);
        }
        Ok(store)
    }

    fn with(objects: Arc<dyn Objects>, options: OpenOptions) -> Result<Self, Error> {
        let object = match objects.get(CONFIG, Part::All(Kind::Config.limit())) {
            Err(ObjectError::NotFound) => return Err(Error::NoStore),
            object => object.map_err(|cause| Error::Object {
                action: "read",
                name: CONFIG.to_owned(),
                cause,
            })?,
        };
        let body = unwrap(Kind::Config, CONFIG, &object.bytes, &Seal::Open)?;
        let config: Config = serde_json::from_slice(&body).map_err(|error| Error::damaged(CONFIG, error.to_string()))?;
        if config.frame_pages == 0 || config.frame_pages > MAX_FRAME_PAGES || config.pack_bytes > 1 << 30 {
            return Err(Error::damaged(CONFIG, "its sizes are beyond the format's limits"));
        }
        let ring = match (config.encrypted, &options.key) {
            (true, Some(key)) => Some(keys::load(&*objects, key)?.0),
            (true, None) => return Err(Error::KeyNeeded),
            (false, Some(_)) => return Err(Error::NotEncrypted),
            (false, None) => None,
        };
        Ok(Self {
            base: Arc::new(Base {
                objects,
                config,
                crypto: Crypto::new(ring),
                clock: options.clock,
                lease_time: options.lease_time.as_millis() as u64,
            }),
        })
    }

    /// What was fixed when the store was made.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.base.config
    }

    /// The guests that have checkpoints, with these in the order of their numbers.
    pub fn list(&self) -> Result<BTreeMap<GuestName, Vec<Listed>>, Error> {
        let guests = self.base.catalog(None)?.into_iter().map(|(guest, listing)| {
            let checkpoints = listing.manifests.into_iter().map(|(sequence, name)| Listed {
                checkpoint: name.checkpoint,
                revision: name.revision,
                protected: listing.protected.contains(&sequence),
            });
            (guest, checkpoints.collect::<Vec<_>>())
        });
        Ok(guests.filter(|(_, checkpoints)| !checkpoints.is_empty()).collect())
    }

    /// The newest checkpoint of a guest.
    pub fn latest(&self, guest: &GuestName) -> Result<CheckpointName, Error> {
        let listing = self.base.listing(guest)?;
        let newest = listing.manifests.into_values().next_back();
        newest
            .map(|name| name.checkpoint)
            .ok_or_else(|| Error::NoCheckpoints(guest.clone()))
    }

    /// Everything about a checkpoint but the contents of its pages.
    pub fn manifest(&self, checkpoint: &CheckpointName) -> Result<Manifest, Error> {
        self.base.manifest(checkpoint)
    }

    /// Opens a checkpoint for a short time: if it is removed meanwhile, reads begin to fail after the garbage collection's grace.
    pub fn image(&self, checkpoint: &CheckpointName) -> Result<Image, Error> {
        Ok(Image::new(self.base.clone(), self.base.manifest(checkpoint)?))
    }

    /// Does something with a checkpoint under a lease; again, if it was rewritten before the lease was there.
    fn leased<T>(&self, checkpoint: &CheckpointName, take: impl Fn(Manifest) -> Result<T, Error>) -> Result<T, Error> {
        for _ in 0..3 {
            match take(self.base.manifest(checkpoint)?) {
                Err(Error::NoCheckpoint(_)) => {}
                taken => return taken,
            }
        }
        Err(Error::NoCheckpoint(checkpoint.clone()))
    }

    /// Opens a checkpoint for as long as it takes: a lease keeps what it refers to. `holder` says to a person who holds it.
    pub fn hold(&self, checkpoint: &CheckpointName, holder: &str) -> Result<Image, Error> {
        self.leased(checkpoint, |manifest| Image::held(self.base.clone(), manifest, holder))
    }

    /// Begins a checkpoint of `guest` with these memories (name, bytes), as an increment of `parent`, if there is one. The parent can be
    /// another guest's: that is how a clone goes on.
    pub fn begin(
        &self,
        guest: &GuestName,
        parent: Option<&CheckpointName>,
        memories: &[(String, u64)],
        options: &WriteOptions,
    ) -> Result<Writer, Error> {
        match parent {
            Some(parent) => self.leased(parent, |parent| {
                Writer::begin(&self.base, guest, Some(parent), memories, options)
            }),
            None => Writer::begin(&self.base, guest, None, memories, options),
        }
    }

    /// Adds a key that opens the store.
    pub fn add_key(&self, key: &UserKey) -> Result<(), Error> {
        let ring = self.base.crypto.keys().ok_or(Error::NotEncrypted)?;
        keys::store(&*self.base.objects, ring, key).map(drop)
    }

    /// Replaces a key by another one. With `new_generation`, what is written from now on is encrypted with a new key of the store, so that
    /// somebody who knows the old one cannot read it; what is there already stays as it is until a squash rewrites it.
    ///
    /// The store that is open here goes on with its generation; open it again to write with the new one.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`] if `old` opens nothing; with `new_generation` also if other keys open the store, too: remove them first.
    pub fn rotate_key(&self, old: &UserKey, new: &UserKey, new_generation: bool) -> Result<(), Error> {
        let objects = &*self.base.objects;
        if !self.base.config.encrypted {
            return Err(Error::NotEncrypted);
        }
        let (mut ring, names) = keys::load(objects, old)?;
        if new_generation {
            if let Some(other) = keys::list(objects)?.into_iter().find(|name| !names.contains(name)) {
                return Err(Error::Key(format!(
                    "{other} belongs to another key, which would not open what is written from now on: remove it first"
                )));
            }
            ring.masters.push(crate::random::random()?);
        }
        keys::store(objects, &ring, new)?;
        names.iter().try_for_each(|name| self.base.delete(name))
    }

    /// The IDs of the keys that open the store, and whether each is `key`.
    pub fn keys(&self, key: &UserKey) -> Result<Vec<(String, bool)>, Error> {
        if !self.base.config.encrypted {
            return Err(Error::NotEncrypted);
        }
        let (_, given) = keys::load(&*self.base.objects, key)?;
        let names = keys::list(&*self.base.objects)?.into_iter();
        Ok(names
            .map(|name| (name.trim_start_matches(keys_prefix()).to_owned(), given.contains(&name)))
            .collect())
    }

    /// Removes a key by its ID, that of somebody who has left for example. `key` stays, and shows that there is one that opens the store.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] if there is no such key, or if it is `key` itself.
    pub fn remove_key_with_id(&self, key: &UserKey, id: &str) -> Result<(), Error> {
        match self.keys(key)?.into_iter().find(|(found, _)| found == id) {
            None => Err(Error::Key(format!("no key of this store has the ID {id:?}"))),
            Some((_, true)) => Err(Error::Key(format!(
                "{id} is the key that was given: leave the ID out to remove it"
            ))),
            Some((_, false)) => self.base.delete(&format!("{}{id}", keys_prefix())),
        }
    }

    /// Removes a key: it does not open the store any more. The last one cannot be removed.
    pub fn remove_key(&self, key: &UserKey) -> Result<(), Error> {
        if !self.base.config.encrypted {
            return Err(Error::NotEncrypted);
        }
        let (_, names) = keys::load(&*self.base.objects, key)?;
        if keys::list(&*self.base.objects)?.len() == names.len() {
            return Err(Error::Key(
                "it is the last one: without it, nobody could open the store".to_owned(),
            ));
        }
        names.iter().try_for_each(|name| self.base.delete(name))
    }
}

fn keys_prefix() -> &'static str {
    crate::names::KEYS
}
