// SPDX-License-Identifier: GPL-2.0-or-later
//! The lines of `vmemctl checkpoint --json`, as types. The schema in `Documentation/schema` is made from them, and the comments are the
//! descriptions there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use vmem_checkpoint::Made;
use vmem_checkpoint::disks::Disk;
use vmem_control::Event;
use vmem_store::{Fragmentation, GcReport, Rewritten, SquashReport, Statistics, VerifyReport};

/// A path. Bytes of it that are no text are replaced.
pub(super) fn path(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

/// A line of `checkpoint create` about a checkpoint.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum CreateLine<'a> {
    /// A checkpoint is made.
    Checkpoint(&'a Made),
}

/// A line of the other commands on checkpoints, and the other lines of `create`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum CheckpointLine<'a> {
    /// `init`: the store is made.
    Store {
        /// The store, as it was named.
        store: String,
        /// The store's own number.
        id: String,
        /// Whether its contents are encrypted.
        encrypted: bool,
    },
    /// `list` and `show`: a checkpoint.
    Checkpoint(Box<Summary<'a>>),
    /// `create`: pages that lay in many packs are stored again close together.
    Rewritten {
        /// The checkpoint: `GUEST@NUMBER`.
        checkpoint: String,
        /// What was done.
        report: Rewritten,
    },
    /// `create`: pages were absent at the instant.
    Absent {
        /// The guest's name.
        guest: &'a str,
        /// Pages that are as in the checkpoint `origin`.
        referred_pages: u64,
        /// The checkpoint from which the memory is filled; null if it is filled from elsewhere.
        origin: Option<String>,
        /// Pages that are waited for.
        awaited_pages: u64,
    },
    /// `create`: no checkpoint, because too few pages were written.
    Skipped {
        /// The guest's name.
        guest: &'a str,
        /// Pages that were written since the checkpoint before.
        pages: u64,
    },
    /// `create --every`: a checkpoint has failed. The next one is tried.
    CheckpointFailed {
        /// The guest's name.
        guest: &'a str,
        /// Why, for people.
        error: &'a str,
    },
    /// The store does not answer. The command waits for it.
    StoreAway {
        /// Why, for people.
        error: String,
    },
    /// The store answers again.
    StoreBack {
        /// Seconds for which it was away.
        seconds: f64,
    },
    /// `create`: all is stored but pages that have not come to this host yet.
    Waiting {
        /// Bytes that are to be stored.
        bytes: u64,
        /// Bytes of them that are stored.
        done_bytes: u64,
        /// Pages that have not come yet.
        awaited_pages: u64,
    },
    /// `restore` and `base`: the regions exist.
    Ready {
        /// Of `base`: its name.
        #[serde(skip_serializing_if = "Option::is_none")]
        base: Option<String>,
        /// The checkpoint: `GUEST@NUMBER`.
        checkpoint: String,
        /// The regions.
        regions: Vec<FoundRegion<'a>>,
    },
    /// `restore` and `base`: an event of the vmemd that fills the regions.
    Pages {
        /// The event. Its schema is that of vmemd.
        vmemd: &'a Event,
    },
    /// `restore`: the guest is there.
    Restored {
        /// Whether it runs; else it is paused.
        running: bool,
        /// Seconds since the start of the command.
        seconds: f64,
    },
    /// `restore`: the order in which pages were touched is recorded for the next restore.
    Recorded {
        /// Pages that were touched.
        pages: u64,
        /// Runs of them.
        runs: usize,
    },
    /// `restore` and `base`: all memory is present.
    Complete,
    /// `clone`: the clone is there.
    Cloned {
        /// The base.
        base: String,
        /// Whether it runs; else it is paused.
        running: bool,
        /// The number of the process of its QEMU.
        process: i32,
        /// Seconds since the start of the command.
        seconds: f64,
    },
    /// `export`: the files are complete.
    Exported {
        /// The file or the directory.
        output: Cow<'a, str>,
    },
    /// `mount`: the store is mounted.
    Mounted {
        /// The store, as it was named.
        store: String,
        /// The directory.
        at: &'a str,
    },
    /// `nbd`: the checkpoint is served.
    Serving {
        /// The checkpoint: `GUEST@NUMBER`.
        checkpoint: String,
        /// The address or the socket.
        at: &'a str,
        /// The exports.
        exports: Vec<ServedExport<'a>>,
    },
    /// `prune`: what becomes of a checkpoint.
    Decision {
        /// The checkpoint: `GUEST@NUMBER`.
        checkpoint: String,
        /// Whether it is kept.
        kept: bool,
        /// The rules that keep it; empty if it is removed.
        reasons: &'a [String],
    },
    /// `rm`, `prune` and `squash`: no checkpoint of the store refers to this file of a disk any more.
    Unreferenced {
        /// The file.
        file: Cow<'a, str>,
    },
    /// `squash`: the checkpoints are removed.
    Squashed {
        /// The checkpoint that stays: `GUEST@NUMBER`.
        checkpoint: String,
        /// Nothing was changed.
        dry_run: bool,
        /// What was done, or would be done.
        report: SquashReport,
        /// Of `--by-access`: the checkpoint whose access order was used; null if none was recorded.
        #[serde(skip_serializing_if = "Option::is_none")]
        order: Option<Option<String>>,
    },
    /// `verify`: a checkpoint was verified.
    Verified {
        /// The checkpoint: `GUEST@NUMBER`.
        checkpoint: String,
        /// What was found.
        report: VerifyReport,
    },
    /// `diff`: where a memory differs.
    Difference {
        /// The name of the memory.
        backend: &'a str,
        /// Its bytes in the first checkpoint; null if that does not have it.
        before_bytes: Option<u64>,
        /// Its bytes in the second checkpoint; null if that does not have it.
        after_bytes: Option<u64>,
        /// Pages that differ.
        pages: u64,
        /// Runs of them: the number of the first page, and how many.
        ranges: Vec<[u64; 2]>,
    },
    /// `gc`: what was collected.
    Gc {
        /// Nothing was changed.
        dry_run: bool,
        /// What was done, or would be done.
        report: GcReport,
    },
    /// `merge-overlays`: files of a disk are merged.
    Merged {
        /// Nothing was changed.
        dry_run: bool,
        /// The disk.
        disk: &'a str,
        /// The file that has all of the contents.
        into: Cow<'a, str>,
        /// The files whose contents went into it.
        files: Vec<Cow<'a, str>>,
    },
    /// `key list`: a key that opens the store.
    Key {
        /// Its ID.
        id: &'a str,
        /// Whether it is the key that was given.
        given: bool,
    },
}

/// A checkpoint.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Summary<'a> {
    /// The checkpoint: `GUEST@NUMBER`.
    pub(crate) checkpoint: String,
    /// When it was made: milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// The checkpoint that it was compared with; null if with none.
    pub(crate) parent: Option<String>,
    /// Bytes of all memory.
    pub(crate) memory_bytes: u64,
    /// Pages that it has stored.
    pub(crate) stored_pages: u64,
    /// Bytes of the packs that it has written.
    pub(crate) pack_bytes: u64,
    /// Whether the guest was running or paused; null if that is not known.
    pub(crate) run_state: Option<&'a str>,
    /// Words by which retention can keep it.
    pub(crate) tags: &'a BTreeSet<String>,
    /// Whether it is protected from removal.
    pub(crate) protected: bool,
    /// Whether the store is encrypted.
    pub(crate) encrypted: bool,
    /// Of `show`: more of it.
    #[serde(flatten)]
    pub(crate) details: Option<Details<'a>>,
}

/// What `checkpoint show` has in addition.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Details<'a> {
    /// The guest's disks at the instant, if they are kept.
    pub(crate) disks: &'a [Disk],
    /// What its maker keeps with it.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// What its writer counted.
    pub(crate) statistics: Statistics,
    /// How scattered its pages are in the store.
    pub(crate) fragmentation: Fragmentation,
}

/// A memory, its region, and where programs find that.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct FoundRegion<'a> {
    /// The name of the memory.
    pub(crate) memory: &'a str,
    /// The name of the region.
    pub(crate) region: &'a str,
    /// The path by which programs open it.
    pub(crate) path: String,
    /// The path of its node.
    pub(crate) node: String,
}

/// An export of a memory over NBD.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ServedExport<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its bytes.
    pub(crate) bytes: u64,
}
