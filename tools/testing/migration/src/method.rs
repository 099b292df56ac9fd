// SPDX-License-Identifier: GPL-2.0-or-later
//! The ways to move a guest.

mod qemu;
pub(crate) mod vmem;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Memory};
use crate::machine::Machine;
use crate::timeline::Timeline;

/// A way to move a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// QEMU's pre-copy: the memory first, again and again where it was written meanwhile
    Precopy,
    /// The same; a guest that writes too fast is slowed down
    PrecopyAutoConverge,
    /// The same; of a page that is sent again only what has changed
    PrecopyXbzrle,
    /// The same, over several connections
    Multifd,
    /// QEMU's post-copy, switched to at once: the memory follows, by userfaultfd
    Postcopy,
    /// The same, switched to after one round of pre-copy
    PostcopyAfterRound,
    /// Post-copy at once, with a connection of its own for what the guest waits for
    PostcopyPreempt,
    /// vmemctl, after rounds: what is left follows while the guest runs at its destination
    VmemHybrid,
    /// vmemctl, after rounds: what is left follows while the guest stands still
    VmemPrecopy,
    /// vmemctl, switched to at once
    VmemPostcopy,
    /// vmem-hybrid with TLS
    VmemHybridTls,
    /// vmem-precopy with TLS
    VmemPrecopyTls,
    /// vmem-postcopy with TLS
    VmemPostcopyTls,
}

/// All that is needed to move a guest; then it can be moved at once.
pub(crate) enum Prepared {
    Qemu(qemu::Prepared),
    Vmem(vmem::Ready),
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
    /// What happened when.
    pub(crate) timeline: Timeline,
}

impl Method {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: &[Self] = &[
        Self::Precopy,
        Self::PrecopyAutoConverge,
        Self::PrecopyXbzrle,
        Self::Multifd,
        Self::Postcopy,
        Self::PostcopyAfterRound,
        Self::PostcopyPreempt,
        Self::VmemHybrid,
        Self::VmemPrecopy,
        Self::VmemPostcopy,
        Self::VmemHybridTls,
        Self::VmemPrecopyTls,
        Self::VmemPostcopyTls,
    ];

    /// Those that the demo shows, and that guests are moved in again and again: one of each kind. All of them end, whatever the guest writes.
    pub(crate) const FEW: &[Self] = &[
        Self::PrecopyAutoConverge,
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
            Self::PrecopyAutoConverge => "QEMU pre-copy, auto-converge",
            Self::PrecopyXbzrle => "QEMU pre-copy, XBZRLE",
            Self::Multifd => "QEMU pre-copy, multifd",
            Self::Postcopy => "QEMU post-copy",
            Self::PostcopyAfterRound => "QEMU post-copy after a round",
            Self::PostcopyPreempt => "QEMU post-copy, preempt",
            Self::VmemHybrid => "vmem hybrid",
            Self::VmemPrecopy => "vmem pre-copy",
            Self::VmemPostcopy => "vmem post-copy",
            Self::VmemHybridTls => "vmem hybrid, TLS",
            Self::VmemPrecopyTls => "vmem pre-copy, TLS",
            Self::VmemPostcopyTls => "vmem post-copy, TLS",
        }
    }

    /// What the command line calls it.
    pub(crate) fn short(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What vmemctl calls it, if it is a way of vmemctl.
    pub(crate) fn mode(self) -> Option<&'static str> {
        match self {
            Self::VmemHybrid | Self::VmemHybridTls => Some("hybrid"),
            Self::VmemPrecopy | Self::VmemPrecopyTls => Some("precopy"),
            Self::VmemPostcopy | Self::VmemPostcopyTls => Some("postcopy"),
            _ => None,
        }
    }

    /// Whether it is a way of vmemctl with TLS.
    pub(crate) fn has_tls(self) -> bool {
        matches!(self, Self::VmemHybridTls | Self::VmemPrecopyTls | Self::VmemPostcopyTls)
    }

    /// QEMU's capabilities for it.
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::PrecopyAutoConverge => &["auto-converge"],
            Self::PrecopyXbzrle => &["xbzrle"],
            Self::Multifd => &["multifd"],
            Self::Postcopy | Self::PostcopyAfterRound => &["postcopy-ram"],
            Self::PostcopyPreempt => &["postcopy-ram", "postcopy-preempt"],
            _ => &[],
        }
    }

    /// Whether the guest is at its destination before all of its memory is.
    pub(crate) fn is_postcopy(self) -> bool {
        matches!(self, Self::Postcopy | Self::PostcopyAfterRound | Self::PostcopyPreempt)
    }

    /// The memory at the source of a guest that is to be moved so: what suits the method best.
    pub(crate) fn memory(self) -> Memory {
        match self.mode() {
            Some(_) => Memory::Shared,
            None => Memory::Anonymous,
        }
    }

    /// Makes the other host ready to receive the guest, with a QEMU that waits for it. This is no part of the move.
    pub(crate) fn prepare(self, guest: &Guest, machine: Machine) -> Result<Prepared> {
        Ok(match self.mode() {
            Some(mode) => Prepared::Vmem(vmem::Ready::new(guest, machine, mode, self.has_tls())?),
            None => Prepared::Qemu(qemu::Prepared::new(self, guest, machine)?),
        })
    }
}

impl Prepared {
    /// Moves the guest, until all of its memory is there, or in vain.
    pub(crate) fn run(self) -> Result<Moved> {
        match self {
            Self::Qemu(prepared) => prepared.run(),
            Self::Vmem(ready) => ready.run(),
        }
    }
}
