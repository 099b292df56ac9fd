// SPDX-License-Identifier: GPL-2.0-or-later
//! Removes checkpoints that nobody reads, and protects others from that.

use crate::error::Error;
use crate::holder::Reader;
use crate::lease;
use crate::names::{CheckpointName, GuestName, protection, used};
use crate::objects::Put;
use crate::removal_mark::{self, MAX_CHECKPOINTS, RemovalMark};
use crate::store::Store;

/// What has become of a checkpoint that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is gone.
    Removed,
    /// It was gone already.
    Gone,
    /// It is protected, and stays.
    Protected,
    /// Readers have leases on it, and it stays.
    Read(Vec<Reader>),
}

/// Which readers' leases keep a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// All: a process that was killed may have left a guest that another one is to serve.
    ByAll,
    /// Those of processes of which it is not known that they have ended.
    ByLiving,
}

impl Store {
    /// Removes a checkpoint. What it alone refers to, the garbage collection takes later.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoint`], [`Error::Protected`]; [`Error::BeingRead`] if a reader has a lease on it: the reader may have to open the checkpoint
    /// again, under its name. A reader counts no more if its process was one of this host and has ended. [`Error::RemovalLate`].
    pub fn remove(&self, checkpoint: &CheckpointName) -> Result<(), Error> {
        let removed = self.remove_all(&checkpoint.guest, &[checkpoint.sequence], Kept::ByLiving)?;
        match removed.into_iter().next() {
            Some((_, Outcome::Removed)) => Ok(()),
            Some((_, Outcome::Protected)) => Err(Error::Protected(checkpoint.clone())),
            Some((_, Outcome::Read(readers))) => Err(Error::BeingRead {
                checkpoint: checkpoint.clone(),
                readers,
            }),
            Some((_, Outcome::Gone)) | None => Err(Error::NoCheckpoint(checkpoint.clone())),
        }
    }

    /// Removes those of these checkpoints that nobody reads and that are not protected, and says what became of each.
    pub(crate) fn remove_all(&self, guest: &GuestName, sequences: &[u64], kept: Kept) -> Result<Vec<(u64, Outcome)>, Error> {
        let mut outcomes = Vec::with_capacity(sequences.len());
        while let Some(rest) = sequences.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            self.remove_some(guest, &rest[..rest.len().min(MAX_CHECKPOINTS)], kept, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Removes as many of these as it can under one mark: one at least.
    fn remove_some(
        &self,
        guest: &GuestName,
        sequences: &[u64],
        kept: Kept,
        outcomes: &mut Vec<(u64, Outcome)>,
    ) -> Result<(), Error> {
        let mark = RemovalMark::set(&self.base, guest, sequences)?;
        // After the mark: a reader whose lease comes later sees it.
        let mut read = lease::read(&self.base)?.read;
        let listing = self.base.listing(guest)?;
        for (number, sequence) in sequences.iter().copied().enumerate() {
            match mark.late() {
                // A reader may not respect the mark any more when the next one is deleted.
                Some(passed) if number == 0 => return Err(Error::RemovalLate(passed / 1000)),
                Some(_) => return Ok(()),
                None => {}
            }
            let checkpoint = CheckpointName {
                guest: guest.clone(),
                sequence,
            };
            let Some(name) = listing.manifests.get(&sequence) else {
                outcomes.push((sequence, Outcome::Gone));
                continue;
            };
            if listing.protected.contains(&sequence) {
                outcomes.push((sequence, Outcome::Protected));
                continue;
            }
            let mut readers = read.remove(&checkpoint).unwrap_or_default();
            if kept == Kept::ByLiving {
                readers.retain(|reader| !reader.has_ended);
            }
            if !readers.is_empty() {
                outcomes.push((sequence, Outcome::Read(readers)));
                continue;
            }
            // Its number must not be used again: the name of a checkpoint means one thing for ever.
            if listing.next() == sequence + 1 {
                self.base.put(&used(&checkpoint), b"", Put::Replace)?;
            }
            // Those that count less first: a crash in between must not bring one of them back.
            let replaced = listing.replaced.iter().filter(|name| name.checkpoint.sequence == sequence);
            for name in replaced.chain([name]) {
                self.base.delete(&name.object())?;
            }
            outcomes.push((sequence, Outcome::Removed));
        }
        Ok(())
    }

    /// Protects a checkpoint from being removed, or does not any more.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoint`], also if it is removed at the same time; [`Error::BeingRemoved`].
    pub fn protect(&self, checkpoint: &CheckpointName, protected: bool) -> Result<(), Error> {
        let name = protection(checkpoint);
        if !protected {
            return self.base.delete(&name);
        }
        self.check_there(checkpoint)?;
        self.base.put(&name, b"", Put::Replace)?;
        // Who removes it may have looked before.
        let protected = removal_mark::wait(&self.base, checkpoint).and_then(|()| self.check_there(checkpoint));
        if let Err(error @ Error::NoCheckpoint(_)) = protected {
            self.base.delete(&name)?;
            return Err(error);
        }
        protected
    }

    fn check_there(&self, checkpoint: &CheckpointName) -> Result<(), Error> {
        let listing = self.base.listing(&checkpoint.guest)?;
        match listing.manifests.contains_key(&checkpoint.sequence) {
            true => Ok(()),
            false => Err(Error::NoCheckpoint(checkpoint.clone())),
        }
    }
}
