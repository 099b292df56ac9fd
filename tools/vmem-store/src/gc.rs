// SPDX-License-Identifier: GPL-2.0-or-later
//! Garbage collection, in two phases, while others write and read.
//!
//! An object that nothing refers to is first written to a list (*tombstones*), and deleted by a run after the grace period, if still nothing
//! refers to it. A pack of which only some pages are referred to is *trimmed*: its next generation holds these pages under the numbers that
//! they have, so that no index changes; the generation before goes the way of all garbage.
//!
//! Why nothing is deleted that somebody needs: see `Documentation/checkpoint-format.rst`, *Garbage*.

mod mark;
mod sweep;
mod trim;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::lease::LeaseBody;
use crate::names::TOMBSTONES;
use crate::objects::{ObjectError, Part, Put};
use crate::store::Store;

/// How garbage is collected.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GcOptions {
    /// How long an object stays that nothing refers to.
    pub grace: Duration,
    /// A pack is trimmed if less than so many percent of its pages are referred to.
    pub trim_below: u32,
    /// Bytes of packs that are read for trimming, at most; the rest is for the next run.
    pub max_bytes: u64,
    /// Changes nothing, and says what a run would do.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 3600),
            trim_below: 75,
            max_bytes: u64::MAX,
            dry_run: false,
        }
    }
}

/// What a garbage collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GcReport {
    /// Checkpoints, and leases' copies of them, that are referred from.
    pub checkpoints: u64,
    /// Objects that nothing refers to and that wait for the end of the grace period.
    pub waiting: u64,
    /// Bytes of them.
    pub waiting_bytes: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Bytes of them.
    pub deleted_bytes: u64,
    /// Packs that were trimmed.
    pub trimmed: u64,
    /// Bytes that this will give back.
    pub trimmed_bytes: u64,
    /// Packs that should have been trimmed, and why they were not.
    pub problems: Vec<String>,
}

/// The object that says that a collection runs.
const RUNNING: &str = "gc/running";

/// Objects that nothing refers to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tombstones {
    /// When that was found, in milliseconds since 1970.
    created: u64,
    names: Vec<String>,
}

/// Keeps a second collection away. That two run at the same time costs work, and nothing else.
struct Running<'a> {
    base: &'a Base,
}

impl<'a> Running<'a> {
    fn begin(base: &'a Base) -> Result<Self, Error> {
        let body = LeaseBody {
            holder: format!("garbage collection, process {}", std::process::id()),
            expires: base.now() + 12 * base.lease_time,
            reads: false,
            since: None,
            process: None,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let object = wrap(Kind::Lease, RUNNING, &body, &Seal::Store(&base.crypto))?;
        for _ in 0..2 {
            match base.put(RUNNING, &object, Put::New) {
                Err(Error::Object {
                    cause: ObjectError::AlreadyExists,
                    ..
                }) => {}
                put => return put.map(|()| Self { base }),
            }
            let other = match base.get(RUNNING, Part::All(Kind::Lease.limit())) {
                Err(error) if error.is_not_found() => continue,
                other => unwrap(Kind::Lease, RUNNING, &other?.bytes, &Seal::Store(&base.crypto))?,
            };
            let other: LeaseBody = serde_json::from_slice(&other).map_err(|error| Error::damaged(RUNNING, error.to_string()))?;
            if base.now() <= other.expires + base.lease_time {
                return Err(Error::Busy(other.holder));
            }
            // It was killed.
            base.delete(RUNNING)?;
        }
        Err(Error::Busy("unknown".to_owned()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.base.delete(RUNNING) {
            tracing::warn!("{error}; the next garbage collection waits an hour for it");
        }
    }
}

impl Store {
    /// Collects garbage.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another collection runs. If a manifest or a part of an index cannot be read, nothing is deleted: what it refers to
    /// is unknown. Remove that checkpoint, or repair the store.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, Error> {
        let base = &self.base;
        let _running = if options.dry_run { None } else { Some(Running::begin(base)?) };
        let mut report = GcReport::default();
        let mut marked = mark::mark(base)?;
        report.checkpoints = marked.roots;
        trim::trim(base, options, &mut marked, &mut report)?;
        sweep::sweep(base, options, &marked, &mut report)?;
        Ok(report)
    }
}

fn tombstones_prefix() -> &'static str {
    TOMBSTONES
}
