// SPDX-License-Identifier: GPL-2.0-or-later
//! Which QEMU runs on which host: VMEM_QEMU in the environment says it.

use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Context, Error, Result, bail, ensure};

use crate::network::Host;

/// Of which release it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    /// Debian's own.
    Stable,
    /// That of its backports, which tools/testing/root/qemu has put beside it.
    Backports,
}

/// One for each host: `backports`, or `stable:backports` for the first host and the second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Qemus([Release; 2]);

static CHOSEN: OnceLock<Qemus> = OnceLock::new();

/// Takes the choice from the environment. One that is not there is an error.
pub(crate) fn choose() -> Result<()> {
    let text = std::env::var("VMEM_QEMU").unwrap_or_default();
    let qemus: Qemus = text.parse().with_context(|| format!("VMEM_QEMU={text}"))?;
    for release in qemus.0 {
        let program = release.program();
        ensure!(
            release == Release::Stable || Path::new(program).exists(),
            "{program} is missing: run 'tools/testing/root/qemu'"
        );
    }
    let _ = CHOSEN.set(qemus);
    Ok(())
}

fn chosen() -> Qemus {
    CHOSEN.get().copied().unwrap_or(Qemus([Release::Stable; 2]))
}

/// The program of this host.
pub(crate) fn program(host: Host) -> &'static str {
    let Qemus([first, second]) = chosen();
    match host {
        Host::First => first.program(),
        Host::Second => second.program(),
    }
}

/// The type of machine that the QEMUs of both hosts know. Without a version it means another one in each release, and a guest cannot be moved.
pub(crate) fn machine_type() -> &'static str {
    match chosen() {
        Qemus([first, second]) if first == second => "pc",
        _ => "pc-i440fx-10.0",
    }
}

/// The network device of a guest that both hosts can run.
pub(crate) fn network_device() -> &'static str {
    match chosen() {
        Qemus([first, second]) if first == second => "virtio-net-pci",
        // 10.0.13 makes each queue of a virtio device 1024 long, whatever its properties say, and 11.1.3 does not take the state of such a one.
        _ => "vmxnet3",
    }
}

impl Release {
    fn program(self) -> &'static str {
        match self {
            Self::Stable => "qemu-system-x86_64",
            Self::Backports => "/opt/qemu-backports/bin/qemu-system-x86_64",
        }
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "" | "stable" => Self::Stable,
            "backports" => Self::Backports,
            _ => bail!("{text:?} is neither stable nor backports"),
        })
    }
}

impl FromStr for Qemus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, second) = text.split_once(':').unwrap_or((text, text));
        Ok(Self([first.parse()?, second.parse()?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_for_both_hosts_or_one_for_each() -> Result<()> {
        use Release::{Backports, Stable};
        for (text, releases) in [
            ("", [Stable, Stable]),
            ("backports", [Backports, Backports]),
            ("stable:backports", [Stable, Backports]),
            ("backports:", [Backports, Stable]),
        ] {
            assert_eq!(text.parse::<Qemus>()?, Qemus(releases));
        }
        assert!("11.1".parse::<Qemus>().is_err());
        Ok(())
    }
}
