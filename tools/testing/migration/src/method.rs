// SPDX-License-Identifier: GPL-2.0
//! The ways to move a guest.

mod qemu;
pub(crate) mod vmem;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Memory};
use crate::machine::Machine;

/// A way to move a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// QEMU's pre-copy: the memory first, again and again where it was written meanwhile
    Precopy,
    /// QEMU's post-copy, switched to at once: the memory follows, by userfaultfd
    Postcopy,
    /// The same, with a connection of its own for what the guest waits for
    PostcopyPreempt,
    /// vmemctl, after rounds: what is left follows while the guest runs at its destination
    VmemHybrid,
    /// vmemctl, after rounds: what is left follows while the guest stands still
    VmemPrecopy,
    /// vmemctl, switched to at once
    VmemPostcopy,
}

/// All that is needed to move a guest; then it can be moved at once.
pub(crate) enum Prepared {
    Qemu(qemu::Prepared),
    /// In this mode.
    Vmem(vmem::Prepared, &'static str),
}

/// What has become of a guest that was to be moved.
pub(crate) struct Moved {
    /// Where it is.
    pub(crate) machine: Machine,
    /// What is left of it at its source.
    pub(crate) left: Option<Machine>,
    /// Whether it was moved, and not given up.
    pub(crate) done: bool,
    /// The downtime that the mover itself reports, in seconds.
    pub(crate) reported_downtime: Option<f64>,
    /// How much of its memory was not zero, if the mover tells.
    pub(crate) data_bytes: Option<u64>,
}

impl Method {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: &[Self] = &[
        Self::Precopy,
        Self::Postcopy,
        Self::PostcopyPreempt,
        Self::VmemHybrid,
        Self::VmemPrecopy,
        Self::VmemPostcopy,
    ];

    /// What the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Precopy => "QEMU pre-copy",
            Self::Postcopy => "QEMU post-copy",
            Self::PostcopyPreempt => "QEMU post-copy, preempt",
            Self::VmemHybrid => "vmem hybrid",
            Self::VmemPrecopy => "vmem pre-copy",
            Self::VmemPostcopy => "vmem post-copy",
        }
    }

    /// What the command line calls it.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::PostcopyPreempt => "postcopy-preempt",
            Self::VmemHybrid => "vmem-hybrid",
            Self::VmemPrecopy => "vmem-precopy",
            Self::VmemPostcopy => "vmem-postcopy",
        }
    }

    /// What vmemctl calls it, if it is a way of vmemctl.
    pub(crate) fn mode(self) -> Option<&'static str> {
        match self {
            Self::VmemHybrid => Some("hybrid"),
            Self::VmemPrecopy => Some("precopy"),
            Self::VmemPostcopy => Some("postcopy"),
            Self::Precopy | Self::Postcopy | Self::PostcopyPreempt => None,
        }
    }

    /// The memory at the source of a guest that is to be moved so: what suits the method best.
    pub(crate) fn memory(self) -> Memory {
        match self.mode() {
            Some(_) => Memory::Shared,
            None => Memory::Anonymous,
        }
    }

    /// Makes the other host ready to receive the guest. This is no part of the move.
    pub(crate) fn prepare(self, guest: &Guest, machine: Machine) -> Result<Prepared> {
        Ok(match self.mode() {
            Some(mode) => Prepared::Vmem(vmem::Prepared::new(guest, machine, &[])?, mode),
            None => Prepared::Qemu(qemu::Prepared::new(self, guest, machine)?),
        })
    }
}

impl Prepared {
    /// Moves the guest, until all of its memory is there, or in vain.
    pub(crate) fn run(self) -> Result<Moved> {
        match self {
            Self::Qemu(prepared) => prepared.run(),
            Self::Vmem(prepared, mode) => prepared.run(mode),
        }
    }
}
