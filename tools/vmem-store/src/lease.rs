// SPDX-License-Identifier: GPL-2.0-or-later
//! Leases: what garbage collection must not touch, because somebody writes it or reads it.
//!
//! A lease is an object that its holder renews, with copies of the manifests that it protects (*pins*), so that what they refer to stays
//! when the checkpoints themselves are removed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::holder::{HolderProcess, Reader};
use crate::manifest::Manifest;
use crate::names::{CONFIG, CheckpointName, LEASES, WriterId};
use crate::objects::{Part, Put};
use crate::removal_mark;

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseBody {
    /// Who holds it, for a person to read.
    pub(crate) holder: String,
    /// When it ends, in milliseconds since 1970.
    pub(crate) expires: u64,
    /// Whether its holder reads the checkpoint that it pins, and may have to open it again under its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reads: bool,
    /// When it was taken, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<u64>,
    /// The process that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<HolderProcess>,
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To write, from what is pinned on.
    Write,
    /// To read what is pinned.
    Read,
}

pub(crate) fn lease_name(id: WriterId) -> String {
    format!("{LEASES}{id}.lease")
}

pub(crate) fn pin_name(id: WriterId, number: usize) -> String {
    format!("{LEASES}{id}-{number}.pin")
}

/// The holder of a lease or a pin, by the object's name.
pub(crate) fn parse(name: &str) -> Option<(WriterId, bool)> {
    let file = name.strip_prefix(LEASES)?;
    match file.strip_suffix(".lease") {
        Some(id) => Some((id.parse().ok()?, false)),
        None => Some((file.strip_suffix(".pin")?.split_once('-')?.0.parse().ok()?, true)),
    }
}

struct Shared {
    base: Arc<Base>,
    id: WriterId,
    holder: String,
    reads: bool,
    since: u64,
    process: Option<HolderProcess>,
    /// When it was last renewed.
    renewed: AtomicU64,
    /// For how many milliseconds it was once not renewed, if that was longer than it lasts: this program stood still, for example. What it
    /// protected may be gone since, so that a later renewal does not help. 0 otherwise.
    lapsed: AtomicU64,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Shared {
    fn renew(&self) -> Result<(), Error> {
        let name = lease_name(self.id);
        // A directory that is not mounted at the moment must not get a lease in the place of the store.
        if self.renewed.load(Ordering::Acquire) != 0 {
            self.base.get(CONFIG, Part::Last(1))?;
        }
        // Taken before the write: the lease must not end for others before it ends for its holder.
        let now = self.base.now();
        self.note_lapse(now);
        let body = LeaseBody {
            holder: self.holder.clone(),
            expires: now + self.base.lease_time,
            reads: self.reads,
            since: Some(self.since),
            process: self.process.clone(),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let object = wrap(Kind::Lease, &name, &body, &Seal::Store(&self.base.crypto))?;
        self.base.put(&name, &object, Put::Replace)?;
        self.renewed.store(now, Ordering::Release);
        Ok(())
    }

    /// Notes for good if the lease has ended for others by now.
    fn note_lapse(&self, now: u64) {
        let renewed = self.renewed.load(Ordering::Acquire);
        let passed = now.saturating_sub(renewed);
        if renewed != 0 && passed > self.base.lease_time {
            self.lapsed.fetch_max(passed, Ordering::AcqRel);
        }
    }

    fn keep(&self) {
        let pause = Duration::from_millis((self.base.lease_time / 4).max(10));
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = self.end.wait_timeout(ended, pause).unwrap_or_else(PoisonError::into_inner).0;
            if !*ended {
                drop(ended);
                if let Err(error) = self.renew() {
                    tracing::warn!("lease {} is not renewed: {error}", self.id);
                }
                ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// A lease that is held, and renewed by a thread of its own. It ends when it is dropped.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    pins: usize,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease {}", self.shared.id)
    }
}

impl Lease {
    /// Takes a lease on what these checkpoints refer to, and makes sure that it came in time.
    pub(crate) fn take(
        base: &Arc<Base>,
        id: WriterId,
        holder: &str,
        purpose: Purpose,
        pinned: &[&Manifest],
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            base: base.clone(),
            id,
            holder: holder.to_owned(),
            reads: purpose == Purpose::Read,
            since: base.now(),
            process: HolderProcess::own(),
            renewed: AtomicU64::new(0),
            lapsed: AtomicU64::new(0),
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        let mut lease = Self {
            shared: shared.clone(),
            keeper: None,
            pins: 0,
        };
        for manifest in pinned {
            let name = pin_name(id, lease.pins);
            let object = wrap(Kind::Manifest, &name, &manifest.encode(), &Seal::Store(&base.crypto))?;
            base.put(&name, &object, Put::New)?;
            lease.pins += 1;
        }
        shared.renew()?;
        // After the lease: who removes a checkpoint sets a mark before the leases are read.
        if purpose == Purpose::Read {
            pinned
                .iter()
                .try_for_each(|manifest| removal_mark::wait(base, &manifest.checkpoint))?;
        }
        // Only what is there now was there when the lease was: see gc.
        for manifest in pinned {
            if !base.manifest_exists(manifest)? {
                return Err(Error::NoCheckpoint(manifest.checkpoint.clone()));
            }
        }
        let keeper = std::thread::Builder::new()
            .name("vmem-lease".to_owned())
            .spawn(move || shared.keep());
        lease.keeper = Some(keeper.map_err(|error| Error::Object {
            action: "write",
            name: lease_name(id),
            cause: error.into(),
        })?);
        Ok(lease)
    }

    /// Whether it protects still what it protected.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.shared.note_lapse(self.shared.base.now());
        match self.shared.lapsed.load(Ordering::Acquire) {
            0 => Ok(()),
            passed => Err(Error::LeaseLost(passed / 1000)),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.end.notify_all();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        // The lease first: pins without a lease protect nothing.
        let id = self.shared.id;
        let names = std::iter::once(lease_name(id)).chain((0..self.pins).map(|number| pin_name(id, number)));
        for name in names {
            if let Err(error) = self.shared.base.delete(&name) {
                tracing::warn!("{error}; it ends by itself");
            }
        }
    }
}

/// The leases that have not ended.
pub(crate) struct Leases {
    /// Who holds one.
    pub(crate) holders: Vec<WriterId>,
    /// The manifests that they pin.
    pub(crate) pinned: Vec<Manifest>,
    /// The checkpoints that readers have pinned, and these readers.
    pub(crate) read: BTreeMap<CheckpointName, Vec<Reader>>,
    /// Objects of leases that have ended long ago.
    pub(crate) ended: Vec<String>,
}

/// Reads all leases. One that cannot be read counts as held: nothing is taken from under its holder.
pub(crate) fn read(base: &Base) -> Result<Leases, Error> {
    let mut leases = Leases {
        holders: Vec::new(),
        pinned: Vec::new(),
        read: BTreeMap::new(),
        ended: Vec::new(),
    };
    let mut listed: Vec<(String, WriterId, bool)> = Vec::new();
    for meta in base.list(LEASES)? {
        if let Some((id, is_pin)) = parse(&meta.name) {
            listed.push((meta.name, id, is_pin));
        } else if removal_mark::is_mark(&meta.name) && removal_mark::has_ended(base, &meta)? {
            leases.ended.push(meta.name);
        }
    }
    let (mut readers, now) = (BTreeMap::new(), base.now());
    for (name, id, _) in listed.iter().filter(|(_, _, is_pin)| !is_pin) {
        let body = match base.get(name, Part::All(Kind::Lease.limit())) {
            Err(error) if error.is_not_found() => continue,
            body => unwrap(Kind::Lease, name, &body?.bytes, &Seal::Store(&base.crypto))?,
        };
        let body: LeaseBody = serde_json::from_slice(&body).map_err(|error| Error::damaged(name, error.to_string()))?;
        // The clocks of two hosts may differ by as much again.
        let end = body.expires.saturating_add(base.lease_time);
        if end < now {
            leases.ended.push(name.clone());
        } else {
            leases.holders.push(*id);
            readers.extend(body.reads.then(|| (*id, reader(body, end, now))));
        }
    }
    for (name, id, _) in listed.iter().filter(|(_, _, is_pin)| *is_pin) {
        if !leases.holders.contains(id) {
            // A pin is written before its lease. Without one it is either very new or of no use.
            leases.ended.push(name.clone());
            continue;
        }
        let body = match base.get(name, Part::All(Kind::Manifest.limit())) {
            Err(error) if error.is_not_found() => continue,
            body => unwrap(Kind::Manifest, name, &body?.bytes, &Seal::Store(&base.crypto))?,
        };
        let manifest = Manifest::decode(name, &body, &base.crypto)?;
        if let Some(reader) = readers.get(id) {
            let of_checkpoint = leases.read.entry(manifest.checkpoint.clone()).or_default();
            of_checkpoint.push(reader.clone());
        }
        leases.pinned.push(manifest);
    }
    Ok(leases)
}

/// What a reader's lease says that ends at `end`.
fn reader(body: LeaseBody, end: u64, now: u64) -> Reader {
    Reader {
        has_ended: body.process.as_ref().is_some_and(HolderProcess::has_ended),
        process: body.process.map(|process| (process.host, process.process.pid)),
        held: body.since.map(|since| now.saturating_sub(since) / 1000),
        left: end.saturating_sub(now) / 1000,
        holder: body.holder,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::objects::Memory;
    use crate::{InitOptions, OpenOptions, Store};

    #[test]
    fn lease_that_lapsed_is_lost_also_after_it_is_renewed() {
        let time = Arc::new(AtomicU64::new(1_700_000_000_000));
        let clock = time.clone();
        let options = OpenOptions {
            clock: Arc::new(move || clock.load(Ordering::SeqCst)),
            ..OpenOptions::default()
        };
        let store = Store::init(Arc::new(Memory::new()), &InitOptions::default(), options).unwrap();
        let lease = Lease::take(&store.base, WriterId::new().unwrap(), "test", Purpose::Write, &[]).unwrap();
        time.fetch_add(store.base.lease_time, Ordering::SeqCst);
        lease.shared.renew().unwrap();
        lease.check().unwrap();
        // The program stands still, and its keeper is the first to run again.
        time.fetch_add(store.base.lease_time + 5000, Ordering::SeqCst);
        lease.shared.renew().unwrap();
        assert!(matches!(lease.check(), Err(Error::LeaseLost(305))));
        lease.shared.renew().unwrap();
        assert!(matches!(lease.check(), Err(Error::LeaseLost(305))));
    }
}
