// SPDX-License-Identifier: GPL-2.0-or-later
//! `--verify`: regions stay as they are until all their pages were compared with the source's.

use std::sync::Arc;

use vmem_engine::{Completion, Connect, Stats, Target, Verification, Verified};

use crate::failure::Failure;

/// How many pages the error names.
const NAMED: usize = 16;

/// How far the comparison is.
enum Stage {
    /// Pages are absent.
    Waiting(Vec<Target>),
    Comparing(Verification),
    Over,
}

/// The comparison of a run.
pub(super) struct Verifying {
    stage: Stage,
    connect: Connect,
    window: u64,
    stats: Arc<Stats>,
}

impl Verifying {
    pub(super) fn new(targets: Vec<Target>, connect: Connect, window: u64, stats: Arc<Stats>) -> Self {
        Self {
            stage: Stage::Waiting(targets),
            connect,
            window,
            stats,
        }
    }

    /// Whether the regions must stay as they are.
    pub(super) fn holds_back(&self) -> bool {
        !matches!(self.stage, Stage::Over)
    }

    /// Whether there may be a result soon.
    pub(super) fn is_comparing(&self) -> bool {
        matches!(self.stage, Stage::Comparing(_))
    }

    /// Starts the comparison once all pages are present. Returns what it has found, once.
    pub(super) fn step(&mut self, regions: &[Completion]) -> Result<Option<Verified>, Failure> {
        match &mut self.stage {
            Stage::Waiting(targets) => {
                if regions.iter().all(|region| region.state().present == region.pages().count()) {
                    let (targets, connect) = (std::mem::take(targets), Arc::clone(&self.connect));
                    let verification = Verification::start(targets, connect, self.window, Arc::clone(&self.stats))?;
                    self.stage = Stage::Comparing(verification);
                }
                Ok(None)
            }
            Stage::Comparing(verification) => {
                let Some(result) = verification.result() else {
                    return Ok(None);
                };
                self.stage = Stage::Over;
                Ok(Some(result?))
            }
            Stage::Over => Ok(None),
        }
    }
}

/// The failure of a comparison that has found different pages.
pub(super) fn check(verified: &Verified) -> Result<(), Failure> {
    if verified.different == 0 {
        return Ok(());
    }
    let first = verified.first.iter().take(NAMED);
    let names: Vec<_> = first.map(|(region, page)| format!("{region}: {page}")).collect();
    Err(Failure::Different {
        pages: verified.different,
        first: names.join(", "),
    })
}
