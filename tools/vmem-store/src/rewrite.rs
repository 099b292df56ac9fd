// SPDX-License-Identifier: GPL-2.0-or-later
//! Stores pages of a checkpoint again, close together: the checkpoint stays the same in all but the place of its pages.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vmem_pages::PAGE_SIZE;

use crate::error::{Error, PageError};
use crate::image::{Image, Touch, UsedPack};
use crate::names::CheckpointName;
use crate::store::Store;
use crate::writer::{CommitOptions, WriteOptions, Writer};

/// A checkpoint is scattered if its pages are in more packs than twice those that they would fill, and this many. With fewer, more is written again,
/// and kept twice if older checkpoints are kept; with more, a restore reads more packs.
const SCATTERED: u64 = 128;
/// Packs that a rewrite leaves, more than those that the pages would fill: the youngest, most of whose pages are still written again and again.
const LEFT: u64 = 64;

/// What a rewrite did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rewritten {
    /// Pages that were stored again.
    pub pages: u64,
    /// Pages that cannot be read, and stay where they are.
    pub damaged: u64,
    /// Packs that they were in.
    pub packs: u64,
}

impl Store {
    /// Stores pages of a checkpoint again if they lie in many packs: those of the packs of which it uses the smallest part, in at most so many
    /// bytes. Without that, a restore from a guest's thousandth checkpoint reads of hundreds of packs, a few pages of each. Reads only the tables of
    /// packs where it does nothing; `None` says so, also if `goes_on` has ended it.
    ///
    /// # Errors
    ///
    /// There is no such checkpoint, or the store failed. The checkpoint is as it was then.
    pub fn rewrite_scattered(
        &self,
        checkpoint: &CheckpointName,
        bytes: u64,
        options: &WriteOptions,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Rewritten>, Error> {
        let image = self.image(checkpoint)?;
        let used = image.used_packs()?;
        let live: u64 = used.iter().map(|used| u64::from(used.live)).sum();
        let least = (live * PAGE_SIZE as u64).div_ceil(self.base.config.pack_bytes.max(1));
        let packs = used.len() as u64;
        if packs <= least.saturating_mul(2).saturating_add(SCATTERED) {
            return Ok(None);
        }
        let count = usize::try_from(packs - least - LEFT).unwrap_or(usize::MAX);
        let chosen = UsedPack::choose(used, count, bytes, UsedPack::part);
        if chosen.is_empty() {
            return Ok(None);
        }
        // Only now: most calls need no lease.
        drop(image);
        let image = self.hold(checkpoint, &options.holder)?;
        self.rewrite(&image, &chosen, &[], options, goes_on)
    }

    /// Stores the pages of these packs again, those of `order` first, and makes it a new revision of the checkpoint. `None`: `goes_on` has ended it,
    /// and the checkpoint is as it was.
    pub(crate) fn rewrite(
        &self,
        image: &Image,
        packs: &BTreeSet<u32>,
        order: &[Touch],
        options: &WriteOptions,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Rewritten>, Error> {
        let mut done = Rewritten {
            packs: packs.len() as u64,
            ..Rewritten::default()
        };
        let checkpoint = &image.manifest().checkpoint;
        let mut writer: Option<Writer> = None;
        let mut page = [0; PAGE_SIZE];
        for touch in image.plan_of(order, packs)? {
            for pgoff in touch.pages.iter() {
                if !goes_on() {
                    return Ok(None);
                }
                match image.read_page(touch.backend, pgoff, &mut page) {
                    Ok(()) => {}
                    Err(PageError::Away(error)) => return Err(error),
                    Err(error) => {
                        tracing::warn!("checkpoint {checkpoint}: {pgoff} of backend {}: {error}", touch.backend);
                        done.damaged += 1;
                        continue;
                    }
                }
                let writer = match &writer {
                    Some(writer) => writer,
                    None => writer.insert(Writer::rewrite(&self.base, image.manifest().clone(), options)?),
                };
                writer.store_again(touch.backend, pgoff, &page)?;
                done.pages += 1;
            }
        }
        if let Some(writer) = writer {
            writer.commit(CommitOptions::default())?;
            self.remove_replaced(checkpoint)?;
        }
        Ok(Some(done))
    }

    /// Removes the revisions of a checkpoint that a newer one has taken the place of.
    fn remove_replaced(&self, checkpoint: &CheckpointName) -> Result<(), Error> {
        let listing = self.base.listing(&checkpoint.guest)?;
        let mut replaced = listing.replaced.iter().filter(|name| name.checkpoint == *checkpoint);
        replaced.try_for_each(|name| self.base.delete(&name.object()))
    }
}
