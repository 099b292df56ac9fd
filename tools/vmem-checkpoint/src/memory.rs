// SPDX-License-Identifier: GPL-2.0
//! Memory whose writes are logged from one checkpoint to the next.

use vmem::{Adopted, Control, PAGE_SIZE, PageSet, Snapshot, SnapshotOptions, Tracking};
use vmem_qemu::OpenBackend;

use crate::error::Error;

/// A memory that is tracked.
pub(crate) struct Tracked {
    pub(crate) backend: OpenBackend,
    tracking: Tracking,
    /// The pages that the next checkpoint has to look at, besides those in the log: all pages before the first one, then those that were
    /// taken out of the log and are not in a checkpoint. What a checkpoint that fails has taken out stays here.
    pub(crate) owed: PageSet,
}

impl Tracked {
    /// Begins to track all of these memories, or none. All pages of all of them are owed.
    pub(crate) fn begin(backends: Vec<OpenBackend>) -> Result<Vec<Self>, Error> {
        let control = Control::open().map_err(Error::memory(vmem_cli::NO_MODULE))?;
        // No program is slowed down before all of its memory can be tracked.
        let adopted = backends.iter().map(|backend| adopt(&control, backend));
        let adopted = adopted.collect::<Result<Vec<_>, Error>>()?;
        let begin = |(backend, adopted): (OpenBackend, Adopted)| {
            let tracking = adopted.track().map_err(Error::memory(format!("cannot track {backend}")))?;
            Ok(Self {
                owed: PageSet::all_of(tracking.pages()),
                tracking,
                backend,
            })
        };
        backends.into_iter().zip(adopted).map(begin).collect()
    }

    /// Takes the log, so that the pages in it are protected again and the snapshot has less to do.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        let log = self.tracking.clean(self.tracking.pages());
        // These pages were taken out of the log, also if it ended early.
        log.pages.iter().for_each(|pages| self.owed.insert(*pages));
        let taken = log.error.map_or(Ok(()), Err);
        taken.map_err(Error::memory(format!("cannot read the log of {}", self.backend)))
    }

    /// Adds what was in the log at the instant of this snapshot.
    pub(crate) fn owe(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        // If this fails, the pages return to the log with the end of the snapshot.
        let increment = snapshot.increment(snapshot.pages()).complete();
        let increment = increment.map_err(Error::memory(format!("cannot read the increment of {}", self.backend)))?;
        increment.into_iter().for_each(|pages| self.owed.insert(pages));
        Ok(())
    }

    /// How many pages the next checkpoint would look at now.
    pub(crate) fn pending(&self) -> Result<u64, Error> {
        let logged = self
            .tracking
            .dirty()
            .map_err(Error::memory(format!("cannot read the log of {}", self.backend)))?;
        Ok(count(&self.owed) + logged)
    }

    /// Nothing is owed: a checkpoint with it is in the store.
    pub(crate) fn settle(&mut self) {
        self.owed = PageSet::none_of(self.tracking.pages());
    }

    /// Everything is owed: the checkpoint that the log goes on from is gone.
    pub(crate) fn owe_all(&mut self) {
        self.owed = PageSet::all_of(self.tracking.pages());
    }

    /// Ends tracking.
    pub(crate) fn stop(self) -> Result<(), Error> {
        let what = format!("cannot end the tracking of {}", self.backend);
        self.tracking.stop().map_err(Error::memory(what))
    }
}

/// Arms snapshots of all memories at one instant, with so many bytes for all copies together; 0 is no limit.
pub(crate) fn arm(memories: &[Tracked], copies: u64) -> Result<Vec<Snapshot>, Error> {
    // The kernel limits the copies of each memory. The smallest share that a part of the limit gives is taken for all: the sum is the limit.
    let share = match copies {
        0 => 0,
        copies => (copies / (memories.len() as u64).max(1)).max(PAGE_SIZE as u64),
    };
    let options = SnapshotOptions::default().clean(true).once(true).limit(share);
    let trackings: Vec<&Tracking> = memories.iter().map(|memory| &memory.tracking).collect();
    Snapshot::take(&trackings, options).map_err(Error::memory("cannot take a snapshot of the memory"))
}

/// The bytes of so many pages.
pub(crate) fn bytes_of(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

/// The number of pages of a set.
pub(crate) fn count(set: &PageSet) -> u64 {
    set.words().iter().map(|word| u64::from(word.count_ones())).sum()
}

fn adopt(control: &Control, backend: &OpenBackend) -> Result<Adopted, Error> {
    let what = format!("cannot track {backend}");
    let adopted = control.adopt(&backend.handle).map_err(Error::memory(&*what))?;
    if adopted.size() != backend.bytes.next_multiple_of(PAGE_SIZE as u64) {
        return Err(Error::other(format!(
            "{what}: it has {} bytes, and {} according to its program",
            adopted.size(),
            backend.bytes
        )));
    }
    // Its contents are somewhere else, and a reader of an absent page waits for it, for how long nobody knows.
    let absent = adopted
        .present_map()
        .map_err(Error::memory(&*what))?
        .absent()
        .map(|pages| pages.count())
        .sum();
    if absent > 0 {
        return Err(Error::Incomplete {
            what: backend.to_string(),
            pages: absent,
        });
    }
    Ok(adopted)
}
