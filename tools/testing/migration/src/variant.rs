// SPDX-License-Identifier: GPL-2.0-or-later
//! What can be done otherwise than usual, to find out what harms an emulated machine.

use clap::Args;

/// Switches, all of them off by default.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Variant {
    /// The guests are emulated (TCG), even where there is KVM
    #[arg(long = "guest-tcg")]
    pub(crate) emulated: bool,
    /// The guests do not ask KVM for asynchronous page faults (no-kvmapf)
    #[arg(long = "no-async-pf")]
    pub(crate) without_async_pf: bool,
    /// All QEMUs run on one processor of the machine
    #[arg(long = "one-processor")]
    pub(crate) one_processor: bool,
    /// The daemons may not raise their priority
    #[arg(long = "no-nice")]
    pub(crate) without_nice: bool,
}

impl Variant {
    /// The words before a command that starts QEMU.
    pub(crate) fn before_qemu(self) -> &'static [&'static str] {
        match self.one_processor {
            true => &["taskset", "-c", "1"],
            false => &[],
        }
    }

    /// The words before a command that starts vmemctl.
    pub(crate) fn before_vmemctl(self) -> &'static [&'static str] {
        match self.without_nice {
            true => &["setpriv", "--inh-caps=-sys_nice", "--bounding-set=-sys_nice"],
            false => &[],
        }
    }
}
