// SPDX-License-Identifier: GPL-2.0-or-later
//! Overlays of guests' disks that no checkpoint refers to any more.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use vmem_checkpoint::Error;
use vmem_checkpoint::merge::{files_in_use, files_of, merge_overlays};
use vmem_cli::{Signals, chain, output};
use vmem_migrate::report::{self, Report};
use vmem_store::{CheckpointName, GuestName, Store};

use super::in_store::InStore;
use super::line::{self, CheckpointLine};
use super::note;

#[derive(Debug, Args)]
pub(crate) struct MergeOverlays {
    #[command(flatten)]
    store: InStore,
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Merge nothing, and say what would be merged
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn merge(args: &MergeOverlays, signals: &Signals, json: bool) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut progress = Report::new(json);
    let merged = merge_overlays(
        &store,
        &args.qmp,
        args.dry_run,
        signals,
        &mut |done| progress.progress(done, ""),
        &mut |merged| {
            if json {
                report::print(&CheckpointLine::Merged {
                    dry_run: args.dry_run,
                    disk: &merged.disk,
                    into: line::path(&merged.into),
                    files: merged.files.iter().map(|file| line::path(file)).collect(),
                });
                return;
            }
            let [what, rest] = match args.dry_run {
                true => ["would take", "would not be needed"],
                false => ["has", "are not needed"],
            };
            output::out(&format!(
                "disk {}: {} {what} the contents of {} more, which {rest} by this guest and this store any more:",
                merged.disk.escape_debug(),
                merged.into.display(),
                merged.files.len()
            ));
            merged
                .files
                .iter()
                .for_each(|file| output::out(&format!("  {}", file.display())));
        },
    );
    progress.end_progress();
    merged
}

/// The files of disks that checkpoints referred to before some of them were removed.
pub(super) struct Before(BTreeSet<PathBuf>);

impl Before {
    /// What these checkpoints refer to. One that cannot be read is passed over: it can be removed, too.
    pub(super) fn of(store: &Store, checkpoints: impl IntoIterator<Item = CheckpointName>) -> Self {
        let files = |checkpoint: CheckpointName| store.manifest(&checkpoint).ok().and_then(|one| files_of(&one).ok());
        Self(checkpoints.into_iter().filter_map(files).flatten().collect())
    }

    /// What all checkpoints of a guest refer to.
    pub(super) fn of_guest(store: &Store, guest: &GuestName) -> Result<Self, Error> {
        let listed = store.list()?.remove(guest).unwrap_or_default();
        Ok(Self::of(store, listed.into_iter().map(|listed| listed.checkpoint)))
    }

    /// Says to which of them no checkpoint refers any more. The files stay: the guest, or others that were restored, may use them.
    pub(super) fn report(self, store: &Store, json: bool) {
        if self.0.is_empty() {
            return;
        }
        let used = match files_in_use(store) {
            Ok(used) => used,
            // The checkpoints are removed: that is no failure.
            Err(error) => {
                return note(
                    json,
                    &format!(
                        "it is not known which disk files checkpoints still refer to: {}",
                        chain(&error)
                    ),
                );
            }
        };
        for file in self.0.difference(&used) {
            if json {
                report::print(&CheckpointLine::Unreferenced { file: line::path(file) });
            } else {
                output::out(&format!(
                    "{}  no checkpoint of this store refers to this disk file any more",
                    file.display()
                ));
            }
        }
    }
}
