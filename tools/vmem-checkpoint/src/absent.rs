// SPDX-License-Identifier: GPL-2.0-or-later
//! Absent pages: those of memory that was restored or moved, and is not complete.
//!
//! Nobody has written to an absent page: a page is present before it can be written to, and stays present. If the store has the checkpoint from
//! which the memory is filled, its *origin*, that has the page, and a new checkpoint refers to it. Others are waited for.
//!
//! The origin is proven twice. Before the instant, it becomes the parent of the new checkpoint. After the instant, it decides about each memory,
//! and only then it is read which pages are absent: so these were absent at the instant, and absent when their memory was filled from the
//! origin. A page that has come by then is read as all others are, wherever it came from. Pages that come are in the log, so that the next
//! checkpoint reads them, too. `model.rs` has each order of events.

use std::time::{Duration, Instant};

use vmem::Snapshot;
use vmem_store::Store;

use crate::error::Error;
use crate::memory::Tracked;
use crate::pages::count;
use crate::stored_origin::StoredOrigin;
use crate::wanted::Wanted;

/// How long a wait for pages goes on while no vmemd serves their region. A restore starts another one within a few seconds.
const UNSERVED_LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked who serves a region.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be written of several memories.
#[derive(Default)]
pub(crate) struct Selection {
    pub(crate) wanted: Vec<Wanted>,
    /// How many absent pages are left to the parent.
    pub(crate) referred: u64,
}

impl Selection {
    /// Selects the pages of these snapshots. The memories owe what was in the log at the instant.
    pub(crate) fn of(
        memories: &[Tracked],
        snapshots: &[Snapshot],
        origin: Option<&StoredOrigin>,
        store: &Store,
    ) -> Result<Self, Error> {
        // Before it is read which pages are absent.
        let is_filled = match origin {
            Some(origin) => origin.fills(&memories.iter().map(Tracked::described).collect::<Vec<_>>(), store),
            None => vec![false; memories.len()],
        };
        let (mut selected, mut referred) = (Vec::new(), 0);
        for ((memory, snapshot), is_filled) in memories.iter().zip(snapshots).zip(is_filled) {
            let (wanted, left) = memory.wanted(snapshot, is_filled)?;
            selected.push(wanted);
            referred += left;
        }
        Ok(Self {
            wanted: selected,
            referred,
        })
    }

    /// How many pages are written.
    pub(crate) fn pages(&self) -> u64 {
        self.wanted.iter().map(|wanted| count(&wanted.set)).sum()
    }

    /// How many of them are waited for.
    pub(crate) fn awaited(&self) -> u64 {
        self.wanted.iter().map(|wanted| count(&wanted.awaited)).sum()
    }
}

/// Looks whether somebody serves the regions whose pages are waited for.
#[derive(Default)]
pub(crate) struct Service<'a> {
    memories: Vec<&'a Tracked>,
    looked: Option<Instant>,
    /// Since when nobody was seen who serves one of them.
    unserved: Option<Instant>,
}

impl<'a> Service<'a> {
    /// Of those of these memories of which pages are waited for.
    pub(crate) fn of(memories: &'a [Tracked], wanted: &[Wanted]) -> Self {
        let waits = memories.iter().zip(wanted).filter(|(_, wanted)| !wanted.awaited.is_empty());
        Self {
            memories: waits.map(|(memory, _)| memory).collect(),
            ..Self::default()
        }
    }

    /// # Errors
    ///
    /// [`Error::Unserved`] if nobody has served one of them for a while.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now - looked < LOOK_INTERVAL) {
            return Ok(());
        }
        self.looked = Some(now);
        let mut unserved = None;
        for memory in &self.memories {
            unserved = unserved.or(memory.unserved()?);
        }
        let since = unserved.as_ref().map(|_| self.unserved.unwrap_or(now));
        self.unserved = since;
        match (unserved, since) {
            (Some(error), Some(since)) if now - since >= UNSERVED_LIMIT => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod model;
