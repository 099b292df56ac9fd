// SPDX-License-Identifier: GPL-2.0-or-later
//! Checkpoints of running guests, and of the memory of any program.
//!
//! * [`cut`] takes a guest's device state and arms the snapshot of its memory at one instant, and the guest stands still only for that.
//! * [`Checkpointer`] makes checkpoints of a [`Subject`], a guest or a program, in a store (`vmem_store`): the first one full, the others
//!   with the pages that were written since.
//!   Pages that are absent, because the memory was restored or moved and is not complete, are referred to in the store, or waited for.
//! * [`restore`] fills regions from a checkpoint, by a vmemd, and starts a QEMU with its device state, which [`incoming`] gives to it.
//! * [`base`] fills regions that stay, and [`clone`] starts guests that share them.
//! * [`export`] writes a checkpoint into files that other programs read.
//!
//! [`disks`] are kept at the same instant by overlays, and [`freeze`] has the guest's file systems frozen around the instant.
//!
//! Documentation/checkpoint.rst says what is promised.
#![forbid(unsafe_code)]

mod absent;
pub mod base;
mod base_record;
mod checkpoint_options;
mod checkpointer;
pub mod clone;
mod clone_cut;
mod clone_memory;
mod clone_taken;
pub mod cut;
mod deputy;
mod device_state;
pub mod disks;
mod error;
mod events;
pub mod export;
mod filler;
pub mod freeze;
mod freezer;
pub mod hooks;
pub mod incoming;
mod launch;
mod memory;
pub mod merge;
mod other_memory;
mod overlays;
mod page_tables;
mod pages;
mod private_pages;
mod recorder;
pub mod restore;
pub mod standstill;
mod state_reader;
mod statistics;
mod stored_origin;
mod subject;
mod taken;
mod wakeup;
mod wanted;
mod write;

pub use base_record::BaseName;
pub use checkpoint_options::Options;
pub use checkpointer::Checkpointer;
pub use error::Error;
pub use statistics::{Made, Pause, Step};
pub use subject::Subject;

/// The blob of a checkpoint that has QEMU's device state.
pub const DEVICE_STATE: &str = "device-state";

/// The label that says whether the guest was running or paused at the instant: `running`, `paused`, or `program` if there is no guest.
pub const RUN_STATE: &str = "run-state";

/// The largest device state that is taken from QEMU or from a store, in bytes.
pub const MAX_DEVICE_STATE: usize = 1 << 30;
