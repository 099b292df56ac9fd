// SPDX-License-Identifier: GPL-2.0
//! Squash: of several checkpoints in a row, the last one stays; and its pages can be stored again, close together.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vmem_pages::PAGE_SIZE;

use crate::error::{Error, PageError};
use crate::image::Touch;
use crate::leaf::Entry;
use crate::lease;
use crate::names::{CheckpointName, GuestName};
use crate::removal::{Kept, Outcome};
use crate::store::Store;
use crate::writer::{CommitOptions, WriteOptions, Writer};

/// How checkpoints are squashed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SquashOptions {
    /// Stores pages of the last checkpoint again, of at most so many packs' pages in bytes: first those of the packs of which it uses the
    /// smallest part. `None` stores none again: then only the others are removed.
    pub rewrite: Option<u64>,
    /// The order in which pages are stored again, those that are not in it last: what was touched first becomes one sequential read.
    pub order: Vec<Touch>,
    /// How it is written.
    pub write: WriteOptions,
    /// Changes nothing, and says what would be done.
    pub dry_run: bool,
}

/// What a squash did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SquashReport {
    /// The checkpoints that were removed.
    pub removed: Vec<u64>,
    /// Those that stay because they are protected, or being read.
    pub protected: Vec<u64>,
    /// Pages that were stored again.
    pub rewritten: u64,
    /// Pages that cannot be read, and stay where they are.
    pub damaged: u64,
}

impl Store {
    /// Removes the checkpoints of a guest from the number `from` on to before `to`, and stores pages of `to` again.
    ///
    /// Others may restore from any of them meanwhile. The checkpoint `to` stays the same in all but the place of its pages; at every moment
    /// it is there.
    pub fn squash(&self, guest: &GuestName, from: u64, to: u64, options: &SquashOptions) -> Result<SquashReport, Error> {
        if from > to {
            return Err(Error::Policy(format!("{from} is after {to}")));
        }
        let name = |sequence| CheckpointName {
            guest: guest.clone(),
            sequence,
        };
        let read = lease::read(&self.base)?.read;
        let listing = self.base.listing(guest)?;
        if !listing.manifests.contains_key(&to) {
            return Err(Error::NoCheckpoint(name(to)));
        }
        let between = listing.manifests.range(from..to).map(|(sequence, _)| *sequence);
        let (protected, removed) =
            between.partition(|sequence| listing.protected.contains(sequence) || read.contains_key(&name(*sequence)));
        let mut report = SquashReport {
            removed,
            protected,
            ..SquashReport::default()
        };
        if let Some(bytes) = options.rewrite {
            self.rewrite(&name(to), bytes, options, &mut report)?;
        }
        if !options.dry_run {
            // Others may have been restored, or protected, while pages were stored again.
            let kept = self.remove_all(guest, &report.removed, Kept::ByAll)?.into_iter();
            let kept = kept.filter(|(_, outcome)| matches!(outcome, Outcome::Protected | Outcome::Read(_)));
            report.protected.extend(kept.map(|(sequence, _)| sequence));
            report.protected.sort_unstable();
            let is_removed = |sequence: &u64| report.protected.binary_search(sequence).is_err();
            report.removed.retain(is_removed);
        }
        Ok(report)
    }

    fn rewrite(
        &self,
        checkpoint: &CheckpointName,
        bytes: u64,
        options: &SquashOptions,
        report: &mut SquashReport,
    ) -> Result<(), Error> {
        let image = match options.dry_run {
            true => self.image(checkpoint)?,
            false => self.hold(checkpoint, &options.write.holder)?,
        };
        // The packs of which the checkpoint uses the smallest part, as many as the bytes allow.
        let live = image.live()?;
        let mut packs: Vec<(u64, u32, u32)> = Vec::new();
        for (ordinal, info) in image.all_packs()?.iter().enumerate() {
            if let (Some(info), Some(live @ 1..)) = (info, live.get(ordinal).copied()) {
                packs.push((
                    u64::from(live) * 1_000_000 / u64::from(info.pages.max(1)),
                    ordinal as u32,
                    live,
                ));
            }
        }
        packs.sort_unstable();
        let mut left = bytes;
        let chosen: BTreeSet<u32> = packs
            .into_iter()
            .map_while(|(_, ordinal, live)| {
                left = left.checked_sub(u64::from(live) * PAGE_SIZE as u64)?;
                Some(ordinal)
            })
            .collect();
        let mut writer: Option<Writer> = None;
        let mut page = [0; PAGE_SIZE];
        for touch in image.plan(&options.order)? {
            for pgoff in touch.pages.iter() {
                let Entry::Data { pack, .. } = image.entry(touch.backend, pgoff.get())? else {
                    continue;
                };
                if !chosen.contains(&pack) {
                    continue;
                }
                if options.dry_run {
                    report.rewritten += 1;
                    continue;
                }
                match image.read_page(touch.backend, pgoff, &mut page) {
                    Ok(()) => {}
                    Err(PageError::Away(error)) => return Err(error),
                    Err(error) => {
                        tracing::warn!("checkpoint {checkpoint}: {pgoff} of backend {}: {error}", touch.backend);
                        report.damaged += 1;
                        continue;
                    }
                }
                let writer = match &writer {
                    Some(writer) => writer,
                    None => writer.insert(Writer::rewrite(&self.base, image.manifest().clone(), &options.write)?),
                };
                writer.store_again(touch.backend, pgoff, &page)?;
                report.rewritten += 1;
            }
        }
        if let Some(writer) = writer {
            writer.commit(CommitOptions::default())?;
            self.remove_replaced(checkpoint)?;
        }
        Ok(())
    }

    /// Removes the revisions of a checkpoint that a newer one has taken the place of.
    fn remove_replaced(&self, checkpoint: &CheckpointName) -> Result<(), Error> {
        let listing = self.base.listing(&checkpoint.guest)?;
        let mut replaced = listing.replaced.iter().filter(|name| name.checkpoint == *checkpoint);
        replaced.try_for_each(|name| self.base.delete(&name.object()))
    }
}
