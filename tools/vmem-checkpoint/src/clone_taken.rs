// SPDX-License-Identifier: GPL-2.0-or-later
//! What a checkpoint of a clone takes at its instant.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmem::PageSet;
use vmem_cli::Signals;
use vmem_process::Process;
use vmem_qemu::{COMMAND_LIMIT, Qmp};
use vmem_store::{GuestName, Store, Writer};

use crate::checkpoint_options::Options;
use crate::clone_cut::{self, How};
use crate::clone_memory::CloneMemory;
use crate::cut::Cut;
use crate::device_state::device_state;
use crate::disks::{Plan, with_overlays};
use crate::error::Error;
use crate::freezer::Freezer;
use crate::other_memory::{self, OtherMemory};
use crate::private_pages::{self, CloneImage};
use crate::taken::{Images, Taken};

/// A clone whose checkpoints are made.
pub(crate) struct CloneSubject<'a> {
    /// QEMU's socket.
    pub(crate) qmp: &'a Path,
    /// Its process when the checkpoints were begun.
    pub(crate) qemu: &'a Process,
    /// Its memory then.
    pub(crate) memory: &'a CloneMemory,
    /// Its name in the store.
    pub(crate) guest: &'a GuestName,
    pub(crate) options: &'a Options,
}

/// Copies the pages that a clone has for itself, and takes the device state at the same instant.
///
/// # Errors
///
/// Another guest answers, or it has other memory; those of the store, of the copies and of QEMU.
pub(crate) fn take(clone: &CloneSubject<'_>, store: &Store, writer: &Writer, signals: &Signals) -> Result<Taken, Error> {
    let CloneSubject {
        qmp: socket,
        qemu,
        memory: first,
        guest,
        options,
    } = clone;
    let mut qmp = Qmp::connect(socket, COMMAND_LIMIT)?;
    let (memory, process) = CloneMemory::find(&mut qmp, &options.state)?;
    if process.number() != qemu.number() || qemu.wait(Duration::ZERO) {
        return Err(Error::OtherGuest {
            expected: qemu.number(),
            found: process.number(),
        });
    }
    if !memory.is_same(first) {
        return Err(Error::OtherMemory);
    }
    // What the store has to give is there before the guest stands still.
    let base = Arc::new(store.image(&memory.base.checkpoint)?);
    let template = device_state(&base)?;
    let others = OtherMemory::of(&memory, &template)?;
    let sets = differing(&memory, store, writer)?;
    private_pages::check(memory.pending()?, options.copies)?;
    let plan = options
        .disks
        .as_deref()
        .map(|directory| Plan::of(&mut qmp, directory, guest.as_str()))
        .transpose()?;
    let freezer = Freezer::new(options.agent.as_ref(), guest);
    let copy = || Ok((private_pages::copy(&memory, options.copies)?, others.copy(&memory)?));
    let Cut {
        armed: (private, other_memory),
        device_state: devices,
        runs,
        pause,
    } = clone_cut::cut(
        qmp,
        &process,
        &How {
            limits: options.limits(),
            signals,
            plan: plan.as_ref(),
            deputy: &options.continuer,
        },
        |runs| freezer.freeze(runs),
        copy,
        || freezer.thaw(),
    )?;
    let named = |error| with_overlays(plan.as_ref().map_or(Vec::new(), Plan::files), error);
    let disks = plan.as_ref().map_or(Ok(Vec::new()), Plan::disks).map_err(named)?;
    let mut images = Vec::new();
    for ((private, mut set), memory) in private.into_iter().zip(sets).zip(&memory.memories) {
        private.set.runs().for_each(|run| set.insert(run));
        let (backend, _) = base.manifest().backend(&memory.id).ok_or_else(|| named(Error::OtherMemory))?;
        images.push(CloneImage {
            private,
            set,
            base: Arc::clone(&base),
            backend,
        });
    }
    Ok(Taken {
        images: Images::Clone(images),
        guest: Some(Cut {
            armed: (),
            device_state: other_memory::device_state(&template, &other_memory, &devices).map_err(named)?,
            runs,
            pause,
        }),
        freezing: freezer.freezing.take(),
        disks,
    })
}

/// Of each memory of a clone, the pages that the parent has otherwise than the base. What the clone has not written is as the base has it.
fn differing(memory: &CloneMemory, store: &Store, writer: &Writer) -> Result<Vec<PageSet>, Error> {
    let mut sets: Vec<_> = memory
        .memories
        .iter()
        .map(|backend| PageSet::none_of(backend.pages))
        .collect();
    let parent = writer.parent().map(|parent| &parent.checkpoint).ok_or(Error::OtherMemory)?;
    if *parent == memory.base.checkpoint {
        return Ok(sets);
    }
    for diff in store.diff(&memory.base.checkpoint, parent)? {
        let number = memory.memories.iter().position(|backend| backend.id == diff.name);
        if let Some(set) = number.and_then(|number| sets.get_mut(number)) {
            diff.changed.into_iter().for_each(|run| set.insert(run));
        }
    }
    Ok(sets)
}
