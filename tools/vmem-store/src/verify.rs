// SPDX-License-Identifier: GPL-2.0-or-later
//! Verifies checkpoints: everything that a restore of them would read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmem_pages::{PAGE_SIZE, PageIndex};

use crate::error::{Error, PageError};
use crate::leaf::{Entry, LEAF_PAGES};
use crate::names::CheckpointName;
use crate::store::Store;

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyReport {
    /// Pages with contents that the checkpoint refers to.
    pub pages: u64,
    /// Pages whose contents were read and are right.
    pub read: u64,
    /// Pages that cannot be restored.
    pub bad_pages: u64,
    /// What is wrong, each thing once: with the pages that it costs.
    pub problems: BTreeMap<String, u64>,
}

impl VerifyReport {
    fn add(&mut self, error: &dyn std::fmt::Display, pages: u64) {
        self.bad_pages += pages;
        *self.problems.entry(error.to_string()).or_default() += pages;
    }

    /// Whether everything that was looked at is right.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Store {
    /// Verifies a checkpoint: its manifest, its index and the tables of its packs, and the contents of so many percent of its pages.
    /// Does not end at what is damaged, but says all of it.
    ///
    /// # Errors
    ///
    /// If the manifest cannot be read, or the store does not answer.
    pub fn verify(&self, checkpoint: &CheckpointName, percent: u32) -> Result<VerifyReport, Error> {
        let image = self.image(checkpoint)?;
        let mut report = VerifyReport::default();
        let mut data = Vec::new();
        for (backend, of) in image.backends().iter().enumerate() {
            for leaf in 0..image.leaves_of(backend) {
                let first = leaf * LEAF_PAGES;
                let pages = of.pages().min(first + LEAF_PAGES) - first;
                match image.leaf(backend, leaf) {
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) => report.add(&error, pages),
                    Ok(entries) => {
                        for (pgoff, entry) in (first..of.pages()).zip(&entries.0) {
                            if let Entry::Data { pack, number } = *entry {
                                data.push((pack, number, backend, pgoff));
                            }
                        }
                    }
                }
            }
        }
        report.pages = data.len() as u64;
        data.sort_unstable();
        let mut page = [0; PAGE_SIZE];
        for packed in data.chunk_by(|one, other| one.0 == other.0) {
            let pack = packed[0].0;
            match image.pack(pack) {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    report.add(&error, packed.len() as u64);
                    continue;
                }
                Ok(_) => {}
            }
            for (_, number, backend, pgoff) in packed {
                // Whole frames, spread evenly: their numbers in the order of another generator than the pages'.
                let frame = u64::from(number / self.base.config.frame_pages);
                let drawn = (frame ^ (u64::from(pack) << 20)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                if (drawn * 100) >> 32 >= u64::from(percent) {
                    continue;
                }
                let Some(at) = PageIndex::new(*pgoff) else { continue };
                match image.read_page(*backend, at, &mut page) {
                    Ok(()) => report.read += 1,
                    Err(PageError::Away(error)) => return Err(error),
                    Err(error) => report.add(&error, 1),
                }
            }
        }
        Ok(report)
    }
}
