// SPDX-License-Identifier: GPL-2.0-or-later
//! Squash: of several checkpoints in a row, the last one stays; and its pages can be stored again, close together.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::{Touch, UsedPack};
use crate::lease;
use crate::names::{CheckpointName, GuestName};
use crate::removal::{Kept, Outcome};
use crate::store::Store;
use crate::writer::WriteOptions;

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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
            self.rewrite_sparse(&name(to), bytes, options, &mut report)?;
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

    /// Stores pages of a checkpoint again: of the packs of which it uses the smallest part, as many as the options allow.
    fn rewrite_sparse(
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
        let chosen = UsedPack::choose(image.used_packs()?, usize::MAX, bytes, UsedPack::part);
        if options.dry_run {
            report.rewritten = image
                .plan_of(&options.order, &chosen)?
                .iter()
                .map(|touch| touch.pages.count())
                .sum();
            return Ok(());
        }
        let done = self.rewrite(&image, &chosen, &options.order, &options.write, &|| true)?;
        let done = done.unwrap_or_default();
        (report.rewritten, report.damaged) = (done.pages, done.damaged);
        Ok(())
    }
}
