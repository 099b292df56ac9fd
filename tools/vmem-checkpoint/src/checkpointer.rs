// SPDX-License-Identifier: GPL-2.0-or-later
//! Makes checkpoints of one guest or program, one after the other.

mod beginning;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vmem::PAGE_SIZE;
use vmem_cli::Signals;
use vmem_process::Process;
use vmem_qemu::{COMMAND_LIMIT, GuestMemory, Qmp, guest};
use vmem_store::{CheckpointName, CommitOptions, GuestName, Store, Writer};

use crate::absent::{Selection, Service};
use crate::checkpoint_options::Options;
use crate::clone_memory::{CloneBackend, CloneMemory};
use crate::clone_taken::{self, CloneSubject};
use crate::cut::{Cut, cut};
use crate::disks::{DISKS, Disk, Plan, with_overlays};
use crate::error::Error;
use crate::freeze::{FROZEN, Freezing};
use crate::freezer::Freezer;
use crate::hooks::Hooked;
use crate::memory::{Tracked, arm};
use crate::statistics::{Made, Step};
use crate::stored_origin::StoredOrigin;
use crate::subject::{OpenMemories, Opened, Subject, check_unchanged};
use crate::taken::{Images, Taken};
use crate::wanted::Wanted;
use crate::write::write;
use crate::{DEVICE_STATE, MAX_DEVICE_STATE, RUN_STATE};

/// The memory that checkpoints are made of.
enum Memories {
    /// Its writes are logged.
    Tracked(Vec<Tracked>),
    /// Private mappings of a base: each checkpoint looks at all pages that are the clone's own.
    Clone(CloneMemory),
}

/// Checkpoints of one subject. Its memory is tracked as long as this value lives, and plain memory again afterwards; that of a clone is not.
pub struct Checkpointer {
    subject: Subject,
    store: Store,
    guest: GuestName,
    options: Options,
    memories: Memories,
    /// The QEMU of a guest.
    qemu: Option<Process>,
    /// The latest checkpoint that was made here: what the log goes on from.
    latest: Option<CheckpointName>,
    /// The checkpoint whose pages `latest` has for those that were absent.
    origin: Option<StoredOrigin>,
}

impl Checkpointer {
    /// Opens the subject's memory and begins to track it.
    ///
    /// # Errors
    ///
    /// The memory cannot be found, is not shared, is tracked already; its name suits no store; the store cannot be read.
    pub fn begin(subject: Subject, store: Store, options: Options) -> Result<Self, Error> {
        let Opened { name, qemu, memories } = subject.open(&options.state)?;
        let guest = match &options.name {
            Some(name) => name.clone(),
            None => name
                .parse()
                .map_err(|error| Error::other(format!("{error}: give the checkpoint another one with --name")))?,
        };
        let memories = match memories {
            OpenMemories::Shared(backends) => Memories::Tracked(Tracked::begin(backends, &store)?),
            OpenMemories::Clone(memory) => {
                if store.config().id.to_string() != memory.base.store {
                    return Err(Error::other(format!(
                        "the guest is a clone of {} in another store: only the store of the base can have its checkpoints",
                        memory.base.checkpoint
                    )));
                }
                Memories::Clone(memory)
            }
        };
        Ok(Self {
            memories,
            subject,
            store,
            guest,
            options,
            qemu,
            latest: None,
            origin: None,
        })
    }

    /// The name in the store.
    #[must_use]
    pub fn guest(&self) -> &GuestName {
        &self.guest
    }

    /// How many pages the next checkpoint would look at now. Of a clone, that is all that it has written since it was started.
    ///
    /// # Errors
    ///
    /// The memory is not tracked any more.
    pub fn pending(&self) -> Result<u64, Error> {
        match &self.memories {
            Memories::Tracked(memories) => memories.iter().map(Tracked::pending).sum(),
            Memories::Clone(memory) => memory.pending(),
        }
    }

    /// Whether the program has ended whose memory this is.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // A guest's memory can be in regions, which no process holds.
        let has_ended = |qemu: &Process| qemu.wait(Duration::ZERO);
        let memory_has_ended = match &self.memories {
            Memories::Tracked(memories) => memories.iter().any(|memory| memory.backend.handle.has_ended()),
            Memories::Clone(_) => false,
        };
        self.qemu.as_ref().is_some_and(has_ended) || memory_has_ended
    }

    /// Makes a checkpoint. After an error there is none, and the next one has all that this one would have had.
    ///
    /// The first one is compared with the guest's latest in the store by the hashes of its pages, if there is one. Each other one has the pages
    /// that were written since the one before, or have come.
    ///
    /// Pages that are absent are left to the checkpoint from which the memory is filled, if that is in this store; then the first one is compared
    /// with that. Others are waited for, until `signals` end it.
    ///
    /// # Errors
    ///
    /// [`Error::is_passing`] tells those after which another one can be tried.
    pub fn checkpoint(&mut self, signals: &Signals, report: &(dyn Fn(Step<'_>) + Sync)) -> Result<Made, Error> {
        let began = Instant::now();
        let (writer, origin) = self.writer().map_err(|error| or_signal(error, signals))?;
        self.check_served(origin.as_ref())?;
        signals.check()?;
        let mut hooked = Hooked::begin(&self.options.hooks, &self.guest, signals)?;
        let taken = match (&self.subject, &self.qemu, &self.memories) {
            (Subject::Guest { qmp }, Some(qemu), Memories::Clone(memory)) => {
                let clone = CloneSubject {
                    qmp,
                    qemu,
                    memory,
                    guest: &self.guest,
                    options: &self.options,
                };
                clone_taken::take(&clone, &self.store, &writer, signals)
            }
            _ => self.take(signals),
        };
        hooked.resumed();
        let made = taken.and_then(|taken| {
            let overlays = overlays(&taken.disks);
            let made = self.store(taken, (writer, origin), began, signals, report);
            made.map_err(|source| with_overlays(overlays, or_signal(source, signals)))
        });
        hooked.end(made.as_ref().map(|made| &made.checkpoint));
        made
    }

    /// Stores what was taken.
    fn store(
        &mut self,
        taken: Taken,
        (writer, origin): (Writer, Option<StoredOrigin>),
        began: Instant,
        signals: &Signals,
        report: &(dyn Fn(Step<'_>) + Sync),
    ) -> Result<Made, Error> {
        let Taken {
            images,
            guest,
            freezing,
            disks,
        } = taken;
        let written = self.write(&images, origin.as_ref(), &writer, signals, report)?;
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
        let copied_pages = images.copied()?;
        signals.check()?;
        let parent = writer.parent().map(|parent| parent.checkpoint.clone());
        let manifest = writer.commit(commit)?;
        // From here on the log goes on from this checkpoint.
        let closed = images.closed();
        if let (Memories::Tracked(memories), Images::Snapshots(snapshots)) = (&mut self.memories, &images) {
            for (memory, snapshot) in memories.iter_mut().zip(snapshots) {
                memory.settle();
                // If this fails, its pages are in the next checkpoint, too.
                if let Err(error) = snapshot.done(snapshot.pages()) {
                    tracing::debug!("{}: {error}", memory.backend);
                }
            }
        }
        if self.latest.is_none() {
            self.origin = origin;
        }
        self.latest = Some(manifest.checkpoint.clone());
        let statistics = manifest.statistics;
        let stored_bytes = statistics.pack_bytes + statistics.index_bytes;
        let pause = guest.as_ref().and_then(|cut| cut.pause);
        let seconds = |part: fn(&crate::Pause) -> Duration| pause.as_ref().map(|pause| part(pause).as_secs_f64());
        Ok(Made {
            checkpoint: manifest.checkpoint,
            parent,
            memory_bytes: self.memories.sizes().into_iter().map(|(_, bytes)| bytes).sum(),
            pages: written.pages(),
            awaited_pages: written.awaited(),
            referred_pages: written.referred,
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
        match self.memories {
            Memories::Tracked(memories) => memories.into_iter().try_for_each(Tracked::stop),
            Memories::Clone(_) => Ok(()),
        }
    }

    /// Writes the pages of the images that the parent may have otherwise. Returns which these are.
    fn write(
        &mut self,
        images: &Images,
        origin: Option<&StoredOrigin>,
        writer: &Writer,
        signals: &Signals,
        report: &(dyn Fn(Step<'_>) + Sync),
    ) -> Result<Selection, Error> {
        let selection = match (&mut self.memories, images) {
            (Memories::Tracked(memories), Images::Snapshots(snapshots)) => {
                for (memory, snapshot) in memories.iter_mut().zip(snapshots) {
                    memory.owe(snapshot)?;
                }
                Selection::of(memories, snapshots, origin, &self.store)?
            }
            (_, Images::Clone(images)) => Selection {
                wanted: images.iter().map(|image| Wanted::there(image.set.clone())).collect(),
                referred: 0,
            },
            (Memories::Clone(_), Images::Snapshots(_)) => Selection::default(),
        };
        let awaited = selection.awaited();
        if selection.referred > 0 || awaited > 0 {
            report(Step::Absent {
                referred: selection.referred,
                origin: origin.map(|origin| &origin.checkpoint),
                awaited,
            });
        }
        let mut service = match &self.memories {
            Memories::Tracked(memories) => Service::of(memories, &selection.wanted),
            Memories::Clone(_) => Service::default(),
        };
        let mut check = || match self.has_ended() {
            true => Err(Error::other("the program has ended before all of its memory had come")),
            false => service.check(),
        };
        let wanted = &selection.wanted;
        match images {
            Images::Snapshots(snapshots) => write(snapshots, wanted, writer, signals, &mut check, report)?,
            Images::Clone(images) => write(images, wanted, writer, signals, &mut check, report)?,
        }
        Ok(selection)
    }

    /// Takes the snapshots, and of a guest the device state at the same instant.
    fn take(&mut self, signals: &Signals) -> Result<Taken, Error> {
        let copies = self.options.copies;
        let Memories::Tracked(memories) = &mut self.memories else {
            return Err(Error::OtherMemory);
        };
        let (Subject::Guest { qmp: socket }, Some(qemu)) = (&self.subject, &self.qemu) else {
            memories.iter_mut().try_for_each(Tracked::prepare)?;
            let snapshots = arm(memories, copies)?;
            return Ok(Taken {
                images: Images::Snapshots(snapshots),
                guest: None,
                freezing: Freezing::default(),
                disks: Vec::new(),
            });
        };
        // The connection ends with the cut: between checkpoints, others can use QEMU's socket.
        let mut qmp = Qmp::connect(socket, COMMAND_LIMIT)?;
        guest::memory_backends(&mut qmp)?;
        let found = GuestMemory::of(&mut qmp)?;
        check_unchanged(qemu, memories.iter().map(|memory| &memory.backend), &found)?;
        let directory = self.options.disks.as_deref();
        let plan = directory
            .map(|directory| Plan::of(&mut qmp, directory, self.guest.as_str()))
            .transpose()?;
        let limits = self.options.limits();
        let memories = RefCell::new(memories);
        let freezer = Freezer::new(self.options.agent.as_ref(), &self.guest);
        let prepare = |runs: bool| {
            memories.borrow_mut().iter_mut().try_for_each(Tracked::prepare)?;
            signals.check()?;
            freezer.freeze(runs)
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
        let resumed = || freezer.thaw();
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
            images: Images::Snapshots(armed),
            guest: Some(guest),
            freezing: freezer.freezing.take(),
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

impl Memories {
    /// The names and sizes in bytes.
    fn sizes(&self) -> Vec<(String, u64)> {
        match self {
            Self::Tracked(memories) => {
                let size = |memory: &Tracked| (memory.backend.id.clone(), memory.backend.bytes);
                memories.iter().map(size).collect()
            }
            Self::Clone(memory) => {
                let size = |backend: &CloneBackend| (backend.id.clone(), backend.bytes);
                memory.memories.iter().map(size).collect()
            }
        }
    }
}

fn overlays(disks: &[Disk]) -> Vec<String> {
    disks.iter().map(|disk| disk.overlay.display().to_string()).collect()
}

fn run_state(guest: Option<&Cut<()>>) -> &'static str {
    match guest {
        None => "program",
        Some(cut) if cut.runs => "running",
        Some(_) => "paused",
    }
}
