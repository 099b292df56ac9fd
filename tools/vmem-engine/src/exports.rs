// SPDX-License-Identifier: GPL-2.0-or-later
//! The exports of a source that regions are filled from.

use std::collections::HashMap;

use vmem_source::Export;

use crate::error::Error;

/// The number of each region's export in a source, and the other way round.
#[derive(Debug)]
pub(crate) struct Exports {
    numbers: Vec<usize>,
    regions: HashMap<usize, usize>,
}

impl Exports {
    /// Finds the exports `wanted`, one for each region in their order, among those of a source. Size and identity must be the same.
    pub(crate) fn find<'a>(offered: &[Export], wanted: impl IntoIterator<Item = &'a Export>) -> Result<Self, Error> {
        let (mut numbers, mut regions) = (Vec::new(), HashMap::new());
        for (region, expected) in wanted.into_iter().enumerate() {
            let found = offered.iter().position(|export| export == expected);
            let number = found.ok_or_else(|| Error::MemoryChanged(expected.name.clone()))?;
            numbers.push(number);
            regions.insert(number, region);
        }
        Ok(Self { numbers, regions })
    }

    /// The number of a region's export.
    pub(crate) fn number(&self, region: usize) -> usize {
        self.numbers[region]
    }

    /// The region that is filled from an export; `None` if none is.
    pub(crate) fn region(&self, number: usize) -> Option<usize> {
        self.regions.get(&number).copied()
    }
}
