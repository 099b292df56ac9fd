// SPDX-License-Identifier: GPL-2.0
//! Makes checkpoints of one guest or program, one after the other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmem::{PAGE_SIZE, PageSet, Snapshot};
use vmem_cli::{Progress, Signals};
use vmem_process::Process;
use vmem_qemu::{COMMAND_LIMIT, GuestMemory, Qmp, guest};
use vmem_store::{CheckpointName, CommitOptions, GuestName, Store, WriteOptions, Writer};

use crate::cut::{Cut, Limits, cut};
use crate::disks::{DISKS, Disk, Plan};
use crate::error::Error;
use crate::freeze::{self, FROZEN, Freezing, Frozen};
use crate::hooks::{Hooked, Hooks};
use crate::memory::{Tracked, arm, count};
use crate::statistics::Made;
use crate::subject::{Opened, Subject, check_unchanged};
use crate::write::write;
use crate::{DEVICE_STATE, MAX_DEVICE_STATE, RUN_STATE};

/// How checkpoints are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name in the store; the subject's own name unless given.
    pub name: Option<GuestName>,
    /// The most bytes of copies of pages that are overwritten before they are stored. 0 is no limit.
    pub copies: u64,
    /// How long QEMU may take to save its devices.
    pub timeout: Duration,
    /// Words that each checkpoint gets, by which retention can keep it.
    pub tags: BTreeSet<String>,
    /// The guest agent, if it is to be used.
    pub agent: Option<freeze::Options>,
    /// The directory where the guest's disks get overlays at the instant, if they are kept.
    pub disks: Option<PathBuf>,
    /// Commands around each checkpoint.
    pub hooks: Hooks,
}

/// Checkpoints of one subject. Its memory is tracked as long as this value lives, and plain memory again afterwards.
pub struct Checkpointer {
    subject: Subject,
    store: Store,
    guest: GuestName,
    options: Options,
    memories: Vec<Tracked>,
    /// The QEMU of a guest.
    qemu: Option<Process>,
    /// The latest checkpoint that was made here: what the log goes on from.
    latest: Option<CheckpointName>,
}

/// What was taken at the instant.
struct Taken {
    snapshots: Vec<Snapshot>,
    guest: Option<Cut<()>>,
    freezing: Freezing,
    disks: Vec<Disk>,
}

impl Checkpointer {
    /// Opens the subject's memory and begins to track it.
    ///
    /// # Errors
    ///
    /// The memory cannot be found, is not shared, is tracked already, lacks pages; or its name suits no store.
    pub fn begin(subject: Subject, store: Store, options: Options) -> Result<Self, Error> {
        let Opened { name, qemu, memories } = subject.open()?;
        let guest = match &options.name {
            Some(name) => name.clone(),
            None => name
                .parse()
                .map_err(|error| Error::other(format!("{error}: give the checkpoint another one with --name")))?,
        };
        Ok(Self {
            memories: Tracked::begin(memories)?,
            subject,
            store,
            guest,
            options,
            qemu,
            latest: None,
        })
    }

    /// The name in the store.
    #[must_use]
    pub fn guest(&self) -> &GuestName {
        &self.guest
    }

    /// How many pages the next checkpoint would look at now.
    ///
    /// # Errors
    ///
    /// The memory is not tracked any more.
    pub fn pending(&self) -> Result<u64, Error> {
        self.memories.iter().map(Tracked::pending).sum()
    }

    /// Whether the program has ended whose memory this is.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // A guest's memory can be in regions, which no process holds.
        let has_ended = |qemu: &Process| qemu.wait(Duration::ZERO);
        self.qemu.as_ref().is_some_and(has_ended) || self.memories.iter().any(|memory| memory.backend.handle.has_ended())
    }

    /// Makes a checkpoint. After an error there is none, and the next one has all that this one would have had.
    ///
    /// The first one is compared with the guest's latest in the store by the hashes of its pages, if there is one. Each other one has the pages
    /// that were written since the one before. `report` hears how many bytes of them are stored.
    ///
    /// # Errors
    ///
    /// [`Error::is_passing`] tells those after which another one can be tried.
    pub fn checkpoint(&mut self, signals: &Signals, report: &(dyn Fn(Progress) + Sync)) -> Result<Made, Error> {
        let began = Instant::now();
        let writer = self.writer().map_err(|error| or_signal(error, signals))?;
        signals.check()?;
        let mut hooked = Hooked::begin(&self.options.hooks, &self.guest, signals)?;
        let taken = self.take(signals);
        hooked.resumed();
        let made = taken.and_then(|taken| {
            let overlays = overlays(&taken.disks);
            let made = self.store(taken, writer, began, signals, report);
            made.map_err(|source| with_overlays(overlays, or_signal(source, signals)))
        });
        hooked.end(made.as_ref().map(|made| &made.checkpoint));
        made
    }

    /// Stores what was taken.
    fn store(
        &mut self,
        taken: Taken,
        writer: Writer,
        began: Instant,
        signals: &Signals,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<Made, Error> {
        let Taken {
            snapshots,
            guest,
            freezing,
            disks,
        } = taken;
        for (memory, snapshot) in self.memories.iter_mut().zip(&snapshots) {
            memory.owe(snapshot)?;
        }
        let sets: Vec<&PageSet> = self.memories.iter().map(|memory| &memory.owed).collect();
        let pages = sets.iter().map(|set| count(set)).sum();
        write(&snapshots, &sets, &writer, signals, report)?;
        let mut commit = CommitOptions {
            tags: self.options.tags.clone(),
            labels: BTreeMap::from([(RUN_STATE.to_owned(), run_state(guest.as_ref()).to_owned())]),
        };
        if let Some(pause) = guest.as_ref().and_then(|cut| cut.pause) {
            commit
                .labels
                .insert("pause-microseconds".to_owned(), pause.total.as_micros().to_string());
        }
        if freezing.frozen > 0 {
            commit.labels.insert(FROZEN.to_owned(), freezing.frozen.to_string());
        }
        if !disks.is_empty() {
            let text = serde_json::to_string(&disks).map_err(vmem_cli::Error::call("cannot describe the disks"))?;
            commit.labels.insert(DISKS.to_owned(), text);
        }
        let mut device_state_bytes = 0;
        if let Some(cut) = &guest {
            device_state_bytes = writer.put_blob(DEVICE_STATE, &mut &cut.device_state[..], MAX_DEVICE_STATE as u64)?;
        }
        // A snapshot that has failed says so at the latest now; all of its pages were read before.
        let mut copied_pages = 0;
        for snapshot in &snapshots {
            copied_pages += snapshot
                .info()
                .map_err(Error::memory("cannot get the state of the snapshot"))?
                .copied;
        }
        signals.check()?;
        let parent = writer.parent().map(|parent| parent.checkpoint.clone());
        let manifest = writer.commit(commit)?;
        // From here on the log goes on from this checkpoint.
        let closed = snapshots.iter().map(Snapshot::closed).max().unwrap_or_default();
        for (memory, snapshot) in self.memories.iter_mut().zip(&snapshots) {
            memory.settle();
            // If this fails, its pages are in the next checkpoint, too.
            if let Err(error) = snapshot.done(snapshot.pages()) {
                tracing::debug!("{}: {error}", memory.backend);
            }
        }
        self.latest = Some(manifest.checkpoint.clone());
        let statistics = manifest.statistics;
        let stored_bytes = statistics.pack_bytes + statistics.index_bytes;
        let pause = guest.as_ref().and_then(|cut| cut.pause);
        let seconds = |part: fn(&crate::Pause) -> Duration| pause.as_ref().map(|pause| part(pause).as_secs_f64());
        Ok(Made {
            checkpoint: manifest.checkpoint,
            parent,
            memory_bytes: self.memories.iter().map(|memory| memory.backend.bytes).sum(),
            pages,
            zero_pages: statistics.zero,
            unchanged_pages: statistics.unchanged,
            duplicate_pages: statistics.duplicate,
            stored_pages: statistics.stored,
            stored_bytes,
            ratio: stored_bytes as f64 / (statistics.stored.max(1) * PAGE_SIZE as u64) as f64,
            device_state_bytes,
            running: guest.as_ref().map(|cut| cut.runs),
            pause_seconds: seconds(|pause| pause.total),
            pause_devices_seconds: seconds(|pause| pause.devices),
            pause_arming_seconds: seconds(|pause| pause.arming),
            pause_resuming_seconds: seconds(|pause| pause.resuming),
            disks,
            frozen_file_systems: freezing.frozen,
            frozen_seconds: freezing.time.map(|time| time.as_secs_f64()),
            not_frozen: freezing.why_not,
            closed_seconds: closed.as_secs_f64(),
            copied_pages,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Ends tracking: the memory is plain again.
    ///
    /// # Errors
    ///
    /// This process is being killed; tracking ends with it.
    pub fn end(self) -> Result<(), Error> {
        self.memories.into_iter().try_for_each(Tracked::stop)
    }

    /// Begins a checkpoint in the store: what can fail there fails before the guest is stopped.
    fn writer(&mut self) -> Result<Writer, Error> {
        if let Some(latest) = &self.latest {
            match self.begin_from(Some(latest)) {
                // Somebody has removed it. Its pages are not in the log any more.
                Err(Error::Store(vmem_store::Error::NoCheckpoint(_))) => {
                    self.memories.iter_mut().for_each(Tracked::owe_all);
                    self.latest = None;
                }
                begun => return begun,
            }
        }
        let parent = match self.store.latest(&self.guest) {
            Ok(latest) => Some(latest),
            Err(vmem_store::Error::NoCheckpoints(_)) => None,
            Err(error) => return Err(error.into()),
        };
        self.begin_from(parent.as_ref())
    }

    fn begin_from(&self, parent: Option<&CheckpointName>) -> Result<Writer, Error> {
        let memories: Vec<_> = self
            .memories
            .iter()
            .map(|memory| (memory.backend.id.clone(), memory.backend.bytes))
            .collect();
        let mut options = WriteOptions::default();
        options.holder = format!(
            "vmemctl checkpoint create, guest {}, process {}",
            self.guest,
            std::process::id()
        );
        Ok(self.store.begin(&self.guest, parent, &memories, &options)?)
    }

    /// Takes the snapshots, and of a guest the device state at the same instant.
    fn take(&mut self, signals: &Signals) -> Result<Taken, Error> {
        let copies = self.options.copies;
        let (Subject::Guest { qmp: socket }, Some(qemu)) = (&self.subject, &self.qemu) else {
            self.memories.iter_mut().try_for_each(Tracked::prepare)?;
            let snapshots = arm(&self.memories, copies)?;
            return Ok(Taken {
                snapshots,
                guest: None,
                freezing: Freezing::default(),
                disks: Vec::new(),
            });
        };
        // The connection ends with the cut: between checkpoints, others can use QEMU's socket.
        let mut qmp = Qmp::connect(socket, COMMAND_LIMIT)?;
        guest::memory_backends(&mut qmp)?;
        let found = GuestMemory::of(&mut qmp)?;
        check_unchanged(qemu, self.memories.iter().map(|memory| &memory.backend), &found)?;
        let directory = self.options.disks.as_deref();
        let plan = directory
            .map(|directory| Plan::of(&mut qmp, directory, self.guest.as_str()))
            .transpose()?;
        let limits = Limits {
            timeout: self.options.timeout,
            device_state: MAX_DEVICE_STATE,
        };
        let memories = RefCell::new(&mut self.memories);
        // The file systems are frozen as late as can be, and thawed as soon as the guest runs: also by the drop, whatever happens.
        let (frozen, freezing) = (RefCell::new(None), RefCell::new(Freezing::default()));
        let prepare = |runs: bool| {
            memories.borrow_mut().iter_mut().try_for_each(Tracked::prepare)?;
            signals.check()?;
            let Some(agent) = &self.options.agent else { return Ok(()) };
            match Frozen::begin(agent, runs)? {
                Ok(begun) => {
                    freezing.borrow_mut().frozen = begun.count();
                    *frozen.borrow_mut() = Some(begun);
                }
                Err(why) => freezing.borrow_mut().why_not = Some(why),
            }
            Ok(())
        };
        let named = |error| with_overlays(plan.as_ref().map_or(Vec::new(), Plan::files), error);
        let has_overlays = Cell::new(false);
        let arm = |qmp: &mut Qmp| {
            let snapshots = arm(&memories.borrow(), copies)?;
            if let Some(plan) = &plan {
                plan.make(qmp)?;
                has_overlays.set(true);
            }
            Ok(snapshots)
        };
        let resumed = || {
            let thawed = frozen.borrow_mut().as_mut().map(Frozen::thaw);
            match thawed {
                None => {}
                Some(Ok(time)) => freezing.borrow_mut().time = Some(time),
                Some(Err(error)) => tracing::error!("guest {}: {}", self.guest, vmem_cli::chain(&error)),
            }
        };
        let Cut {
            armed,
            device_state,
            runs,
            pause,
        } = match cut(qmp, socket, limits, signals, prepare, arm, resumed) {
            // A QEMU that has ended keeps no settings.
            Err(Error::SettingsKept(_)) if qemu.wait(Duration::ZERO) => return Err(vmem_qemu::Error::Closed.into()),
            Err(error) if has_overlays.get() => return Err(named(error)),
            cut => cut?,
        };
        let disks = plan.as_ref().map_or(Ok(Vec::new()), Plan::disks).map_err(named)?;
        let guest = Cut {
            armed: (),
            device_state,
            runs,
            pause,
        };
        Ok(Taken {
            snapshots: armed,
            guest: Some(guest),
            freezing: freezing.take(),
            disks,
        })
    }
}

/// The signal that ended the wait for a store, if one did.
fn or_signal(error: Error, signals: &Signals) -> Error {
    match (&error, signals.check()) {
        (Error::Store(_), Err(stopped)) => stopped.into(),
        _ => error,
    }
}

fn overlays(disks: &[Disk]) -> Vec<String> {
    disks.iter().map(|disk| disk.overlay.display().to_string()).collect()
}

/// Says that the guest goes on with these overlays.
fn with_overlays(overlays: Vec<String>, source: Error) -> Error {
    if overlays.is_empty() {
        return source;
    }
    Error::Overlays {
        overlays,
        source: Box::new(source),
    }
}

fn run_state(guest: Option<&Cut<()>>) -> &'static str {
    match guest {
        None => "program",
        Some(cut) if cut.runs => "running",
        Some(_) => "paused",
    }
}
