// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory whose writes are logged from one checkpoint to the next.

use vmem::{Adopted, Control, Info, PAGE_SIZE, PageSet, PresentMap, Snapshot, SnapshotOptions, TrackOptions, Tracking};
use vmem_qemu::OpenBackend;
use vmem_store::Store;

use crate::error::Error;
use crate::pages::count;
use crate::stored_origin::{self, StoredOrigin};
use crate::wanted::{Wanted, wanted};

/// A memory that is tracked.
pub(crate) struct Tracked {
    pub(crate) backend: OpenBackend,
    adopted: Adopted,
    tracking: Tracking,
    /// Whether pages that come are in the log: only then a checkpoint may refer to those that are absent, because the next one has them.
    logs_fills: bool,
    /// The pages that the next checkpoint has to look at, besides those in the log: all pages before the first one, then those that were
    /// taken out of the log and are not in a checkpoint. What a checkpoint that fails has taken out stays here.
    pub(crate) owed: PageSet,
    /// The pages that were absent when the snapshot was prepared.
    lacking: PageSet,
    /// All pages are present, and stay so.
    is_complete: bool,
}

impl Tracked {
    /// Begins to track all of these memories, or none. All pages of all of them are owed.
    pub(crate) fn begin(backends: Vec<OpenBackend>, store: &Store) -> Result<Vec<Self>, Error> {
        let control = Control::open().map_err(Error::memory(vmem_cli::NO_MODULE))?;
        // No program is slowed down before all of its memory can be tracked.
        let adopted = backends.iter().map(|backend| adopt(&control, backend));
        let adopted = adopted.collect::<Result<Vec<_>, Error>>()?;
        let (mut incomplete, mut are_complete) = (Vec::new(), Vec::new());
        for (backend, adopted) in backends.iter().zip(&adopted) {
            let is_complete = !lacks_pages(adopted, backend)?;
            are_complete.push(is_complete);
            if !is_complete {
                incomplete.push(described(adopted, backend));
            }
        }
        let logs_fills = !incomplete.is_empty() && StoredOrigin::find(&incomplete, store)?.is_some();
        drop(incomplete);
        let begin = |((backend, adopted), is_complete): ((OpenBackend, Adopted), bool)| {
            let tracking = adopted.track_with(TrackOptions::default().fills(logs_fills));
            let tracking = tracking.map_err(Error::memory(format!("cannot track {backend}")))?;
            Ok(Self {
                owed: PageSet::all_of(tracking.pages()),
                lacking: PageSet::none_of(tracking.pages()),
                tracking,
                adopted,
                backend,
                logs_fills,
                is_complete,
            })
        };
        backends.into_iter().zip(adopted).zip(are_complete).map(begin).collect()
    }

    /// How it is found in an origin.
    pub(crate) fn described(&self) -> stored_origin::Memory<'_> {
        described(&self.adopted, &self.backend)
    }

    /// Whether a checkpoint may refer to pages that are absent, and there may be some.
    pub(crate) fn may_refer(&self) -> Result<bool, Error> {
        Ok(self.logs_fills && self.absent(&self.info()?) != 0)
    }

    /// The error if pages are absent and nobody is there who could bring them.
    pub(crate) fn unserved(&self) -> Result<Option<Error>, Error> {
        let info = self.info()?;
        let pages = self.absent(&info);
        Ok((!info.attached && pages != 0).then(|| Error::Unserved {
            what: self.backend.to_string(),
            pages,
        }))
    }

    fn info(&self) -> Result<Info, Error> {
        let what = || format!("cannot get the state of {}", self.backend);
        self.adopted.info().map_err(Error::memory(what()))
    }

    /// How many pages are absent in this state. The number is had at once; the map of which ones they are takes 32 MiB for each TiB.
    fn absent(&self, info: &Info) -> u64 {
        match self.is_complete {
            true => 0,
            false => self.adopted.pages().count().saturating_sub(info.present),
        }
    }

    /// What is to be written of its snapshot, and how many pages are left to the parent because they are absent. `is_filled` says that the
    /// memory was filled from the parent's origin after the instant.
    pub(crate) fn wanted(&self, snapshot: &Snapshot, is_filled: bool) -> Result<(Wanted, u64), Error> {
        let mut absent = PageSet::none_of(snapshot.pages());
        if !self.is_complete {
            let what = format!("cannot tell which pages of {} were absent", self.backend);
            let present = snapshot.present_map().map_err(Error::memory(what))?;
            present.absent().for_each(|run| absent.insert(run));
        }
        Ok(wanted(&self.owed, &self.lacking, absent, is_filled && self.logs_fills))
    }

    /// Takes the log, so that the pages in it are protected again and the snapshot has less to do. Notes which pages are absent.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        if !self.is_complete {
            let present = present(&self.adopted, &self.backend)?;
            self.lacking = PageSet::none_of(self.tracking.pages());
            present.absent().for_each(|run| self.lacking.insert(run));
            self.is_complete = self.lacking.is_empty();
        }
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
    Ok(adopted)
}

fn described<'a>(adopted: &Adopted, backend: &'a OpenBackend) -> stored_origin::Memory<'a> {
    stored_origin::Memory {
        name: &backend.id,
        region: adopted.id(),
        pages: adopted.pages().count(),
    }
}

fn lacks_pages(adopted: &Adopted, backend: &OpenBackend) -> Result<bool, Error> {
    Ok(present(adopted, backend)?.absent().next().is_some())
}

fn present(adopted: &Adopted, backend: &OpenBackend) -> Result<PresentMap, Error> {
    let what = format!("cannot tell which pages of {backend} are present");
    adopted.present_map().map_err(Error::memory(what))
}
