// SPDX-License-Identifier: GPL-2.0-or-later
//! What all parts of the crate use of an open store: its objects with errors that name them, its keys, its clock; and its manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::Compression;
use crate::crypto::Crypto;
use crate::envelope::{Kind, Seal, unwrap};
use crate::error::Error;
use crate::manifest::Manifest;
use crate::names::{self, CHECKPOINTS, CheckpointName, GuestName, ManifestName, WriterId};
use crate::objects::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};

/// Tells the time, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What was fixed when the store was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The store.
    pub id: WriterId,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// Whether its contents are encrypted (AES-256-GCM). The names of guests and the sizes of objects are not.
    pub encrypted: bool,
    /// How new pages are compressed.
    pub compression: Compression,
    /// Pages that are compressed together, 1 to 64.
    pub frame_pages: u32,
    /// Bytes at which a pack is complete.
    pub pack_bytes: u64,
}

pub(crate) struct Base {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) config: Config,
    pub(crate) crypto: Crypto,
    pub(crate) clock: Clock,
    /// How long a lease lasts, in milliseconds.
    pub(crate) lease_time: u64,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {} in {:?}", self.config.id, self.objects)
    }
}

/// The objects of one guest.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// For each number the manifest that counts.
    pub(crate) manifests: BTreeMap<u64, ManifestName>,
    /// Revisions that were replaced.
    pub(crate) replaced: Vec<ManifestName>,
    pub(crate) protected: BTreeSet<u64>,
    /// The largest number that was used and removed.
    pub(crate) used: u64,
}

impl Listing {
    pub(crate) fn next(&self) -> u64 {
        let newest = self.manifests.last_key_value().map_or(0, |(sequence, _)| *sequence);
        newest.max(self.used) + 1
    }

    fn add(&mut self, name: ManifestName) {
        let sequence = name.checkpoint.sequence;
        // The highest revision counts.
        let rank = |name: &ManifestName| std::cmp::Reverse(name.revision);
        let Some(other) = self.manifests.remove(&sequence) else {
            self.manifests.insert(sequence, name);
            return;
        };
        let (counts, replaced) = if rank(&name) < rank(&other) {
            (name, other)
        } else {
            (other, name)
        };
        self.manifests.insert(sequence, counts);
        self.replaced.push(replaced);
    }
}

impl Base {
    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    pub(crate) fn get(&self, name: &str, part: Part) -> Result<Fetched, Error> {
        self.objects.get(name, part).map_err(|cause| failed("read", name, cause))
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), Error> {
        self.objects
            .put(name, bytes, put)
            .map_err(|cause| failed("write", name, cause))
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, Error> {
        self.objects.list(prefix).map_err(|cause| failed("list", prefix, cause))
    }

    pub(crate) fn delete(&self, name: &str) -> Result<(), Error> {
        self.objects.delete(name).map_err(|cause| failed("delete", name, cause))
    }

    /// The guests that have, or had, checkpoints, with their objects. Objects with names of no known form are left alone.
    pub(crate) fn catalog(&self, guest: Option<&GuestName>) -> Result<BTreeMap<GuestName, Listing>, Error> {
        let prefix = guest.map_or(CHECKPOINTS.to_owned(), |guest| format!("{CHECKPOINTS}{guest}/"));
        let mut guests: BTreeMap<GuestName, Listing> = BTreeMap::new();
        for meta in self.list(&prefix)? {
            if let Some(name) = ManifestName::parse(&meta.name) {
                guests.entry(name.checkpoint.guest.clone()).or_default().add(name);
            } else if let Some(name) = names::parse_marker(&meta.name, ".protected") {
                guests.entry(name.guest).or_default().protected.insert(name.sequence);
            } else if let Some(name) = names::parse_marker(&meta.name, ".used") {
                let listing = guests.entry(name.guest).or_default();
                listing.used = listing.used.max(name.sequence);
            }
        }
        Ok(guests)
    }

    pub(crate) fn listing(&self, guest: &GuestName) -> Result<Listing, Error> {
        Ok(self.catalog(Some(guest))?.remove(guest).unwrap_or_default())
    }

    pub(crate) fn read_manifest(&self, name: &ManifestName) -> Result<Manifest, Error> {
        let object_name = name.object();
        let object = self.get(&object_name, Part::All(Kind::Manifest.limit()))?;
        let body = unwrap(Kind::Manifest, &object_name, &object.bytes, &Seal::Store(&self.crypto))?;
        let manifest = Manifest::decode(&object_name, &body, &self.crypto)?;
        if manifest.checkpoint != name.checkpoint || manifest.revision != name.revision {
            return Err(Error::damaged(object_name, "it is the manifest of another checkpoint"));
        }
        Ok(manifest)
    }

    /// The manifest of a checkpoint.
    pub(crate) fn manifest(&self, checkpoint: &CheckpointName) -> Result<Manifest, Error> {
        // It may be rewritten, under the name of a new revision, between the listing and the read.
        for _ in 0..3 {
            let listing = self.listing(&checkpoint.guest)?;
            let Some(name) = listing.manifests.get(&checkpoint.sequence) else {
                break;
            };
            match self.read_manifest(name) {
                Err(error) if error.is_not_found() => {}
                manifest => return manifest,
            }
        }
        Err(Error::NoCheckpoint(checkpoint.clone()))
    }

    /// Whether the checkpoint is still there, in this revision.
    pub(crate) fn manifest_exists(&self, manifest: &Manifest) -> Result<bool, Error> {
        let name = ManifestName {
            checkpoint: manifest.checkpoint.clone(),
            revision: manifest.revision,
        };
        match self.get(&name.object(), Part::Last(1)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn failed(action: &'static str, name: &str, cause: ObjectError) -> Error {
    Error::Object {
        action,
        name: name.to_owned(),
        cause,
    }
}
