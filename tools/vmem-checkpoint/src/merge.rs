// SPDX-License-Identifier: GPL-2.0-or-later
//! Merges overlays of a running guest's disks that no checkpoint refers to.
//!
//! A file that a checkpoint refers to must stay as it was at the instant, and so must its time of the last write. Of files that no checkpoint
//! refers to and that lie one over the other, the contents go into the uppermost one (`block-stream`): the files above it are not written to,
//! because their backing file keeps its name.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmem_cli::{Progress, Signals};
use vmem_qemu::chain::{Chain, Layer, Merge, chains};
use vmem_qemu::{COMMAND_LIMIT, Qmp};
use vmem_store::{Manifest, Store};

use crate::disks::Disk;
use crate::error::Error;

/// Overlays that are merged, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The disk.
    pub disk: String,
    /// The file that has all of the contents.
    pub into: PathBuf,
    /// The files whose contents went into it, and that this guest does not use any more.
    pub files: Vec<PathBuf>,
}

/// Merges what can be merged, in all disks. In a dry run, says what would be. Meanwhile, other clients can use QEMU's socket.
///
/// # Errors
///
/// A manifest cannot be read: what it refers to is unknown. QEMU refuses, or another one is there now; a signal. Overlays that were merged before
/// that are merged.
pub fn merge_overlays(
    store: &Store,
    socket: &Path,
    dry_run: bool,
    signals: &Signals,
    progress: &mut dyn FnMut(Progress),
    each: &mut dyn FnMut(&Merged),
) -> Result<(), Error> {
    let mut qmp = Qmp::connect(socket, COMMAND_LIMIT)?;
    let process = qmp.peer_pid()?;
    // The disks first: a checkpoint that is made after that refers to a file that is the uppermost one now, or to a later one.
    let chains = chains(&mut qmp)?;
    drop(qmp);
    let mut connect = |limit: Duration| {
        let qmp = Qmp::connect(socket, limit)?;
        // Nodes and jobs of another QEMU may have the same names.
        match qmp.peer_pid()? == process {
            true => Ok(qmp),
            false => Err(vmem_qemu::Error::Closed),
        }
    };
    let used = files_in_use(store)?;
    for Chain { disk, layers } in &chains {
        // From below: what lies above keeps its place.
        for range in mergeable(layers, &used).into_iter().rev() {
            let (top, base) = (&layers[range.start], &layers[range.end]);
            let (Some(node), Some(base)) = (&top.node, &base.node) else {
                continue;
            };
            if !dry_run {
                let stop = || signals.check().is_err();
                let job = format!("vmem-merge-{}-{}", std::process::id(), range.start);
                let merge = Merge { id: &job, node, base };
                let merged = merge.run(&mut connect, &stop, &mut |done, size| progress(Progress { done, size }));
                // A job that was cancelled has failed.
                signals.check()?;
                merged?;
            }
            each(&Merged {
                disk: disk.clone(),
                into: top.file.clone().into(),
                files: layers[range.start + 1..range.end]
                    .iter()
                    .map(|layer| layer.file.clone().into())
                    .collect(),
            });
        }
    }
    Ok(())
}

/// The layers that can be one: each range with two or more, and with one below it.
fn mergeable(layers: &[Layer], used: &BTreeSet<PathBuf>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    // QEMU writes to the uppermost. The one below it may be of a checkpoint that is being made. The lowest is the user's own.
    let last = layers.len().saturating_sub(1);
    for (at, layer) in layers.iter().enumerate().take(last).skip(2) {
        if layer.node.is_none() || !is_ours(&layer.file) || used.contains(&canonical(Path::new(&layer.file))) {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if range.end == at => range.end = at + 1,
            _ => ranges.push(at..at + 1),
        }
    }
    ranges.retain(|range| range.len() > 1);
    ranges
}

/// Whether `create` has made this file, by its name: GUEST-TIME-NUMBER.qcow2.
fn is_ours(file: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let name = file.rsplit('/').next().and_then(|name| name.strip_suffix(".qcow2"));
    let parts = name.and_then(|name| name.rsplit_once('-'));
    let parts = parts.and_then(|(rest, number)| Some((rest.rsplit_once('-')?, number)));
    parts.is_some_and(|((_, time), number)| time.len() == 13 && is_number(time) && is_number(number))
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The files of disks that this checkpoint refers to.
///
/// # Errors
///
/// Its label cannot be read.
pub fn files_of(manifest: &Manifest) -> Result<BTreeSet<PathBuf>, Error> {
    let disks = Disk::all_of(manifest)?;
    Ok(disks.iter().map(|disk| canonical(&disk.file)).collect())
}

/// The files of disks that checkpoints of this store refer to, of any guest.
///
/// # Errors
///
/// A manifest cannot be read.
pub fn files_in_use(store: &Store) -> Result<BTreeSet<PathBuf>, Error> {
    let mut files = BTreeSet::new();
    for listed in store.list()?.into_values().flatten() {
        match store.manifest(&listed.checkpoint) {
            // Somebody has removed it.
            Err(vmem_store::Error::NoCheckpoint(_)) => {}
            manifest => files.extend(files_of(&manifest?)?),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(files: &[&str]) -> Vec<Layer> {
        let layer = |file: &&str| Layer {
            file: (*file).to_owned(),
            node: Some(format!("node of {file}")),
        };
        files.iter().map(layer).collect()
    }

    fn overlay(number: u64) -> String {
        format!("/nowhere/guest0-{}-0.qcow2", 1_700_000_000_000 + number)
    }

    #[test]
    fn overlays_that_no_checkpoint_refers_to_are_merged_and_their_neighbours_stay() {
        let names: Vec<String> = (1..=9).rev().map(overlay).collect();
        let mut files: Vec<&str> = names.iter().map(String::as_str).collect();
        files.push("/nowhere/base.raw");
        let mut layers = layers(&files);
        let of = |layers: &[Layer], used: &[u64]| -> Vec<(usize, usize)> {
            let used = used.iter().map(|number| overlay(*number).into()).collect();
            mergeable(layers, &used)
                .into_iter()
                .map(|range| (range.start, range.end))
                .collect()
        };
        // 0 is overlay 9, which is written to; 8 is overlay 1.
        assert_eq!(of(&layers, &[]), [(2, 9)]);
        assert_eq!(of(&layers, &[8, 9]), [(2, 9)]);
        assert_eq!(of(&layers, &[7, 4]), [(3, 5), (6, 9)]);
        assert_eq!(of(&layers, &[6, 4, 2]), [(0, 0); 0], "one alone is no use");
        layers[4].node = None;
        assert_eq!(of(&layers, &[]), [(2, 4), (5, 9)]);
        layers[3].file = "/nowhere/by-libvirt.qcow2".to_owned();
        assert_eq!(of(&layers, &[]), [(5, 9)]);
        assert_eq!(of(&layers[..3], &[]), [(0, 0); 0]);
        assert_eq!(of(&[], &[]), [(0, 0); 0]);
    }

    #[test]
    fn only_overlays_that_create_has_made_are_ours() {
        assert!(is_ours("/a/guest0-1700000000000-0.qcow2") && is_ours("/a/my-vm-1700000000000-12.qcow2"));
        for other in [
            "/a/base.qcow2",
            "/a/x-1-2.qcow2",
            "/a/x-1700000000000-.qcow2",
            "/a/x-170000000000a-1.qcow2",
            "/a/guest0-1700000000000-0.raw",
            "/a/guest0-restored-1700000000000-0.qcow",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
