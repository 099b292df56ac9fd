// SPDX-License-Identifier: GPL-2.0-or-later
//! Where figures are from: this machine, and what the runner says of the one below.

use std::fs;

use vmem_figures::Setting;

use crate::cpu;
use crate::failure::{Failure, Outcome};

/// This machine.
pub(crate) fn here() -> Outcome<Setting> {
    let uname = rustix::system::uname();
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
    Ok(Setting {
        kernel: uname.release().to_string_lossy().into_owned(),
        cpu: field("/proc/cpuinfo", "model name")?,
        cpus: cpu::count(),
        memory_mib: kib("MemTotal")? / 1024,
        accelerator: told("VMEM_BENCH_ACCELERATOR"),
        host_cpu: told("VMEM_BENCH_HOST_CPU"),
        commit: told("VMEM_BENCH_COMMIT"),
    })
}

/// A line of `/proc/meminfo`, in KiB.
pub(crate) fn kib(name: &str) -> Outcome<u64> {
    let value = field("/proc/meminfo", name)?;
    let number = value.trim_end_matches(" kB").parse();
    number.map_err(|_| Failure::Wrong(format!("/proc/meminfo has {name}: {value}")))
}

/// The value of the first line `name: value` of a file.
pub(crate) fn field(path: &str, name: &str) -> Outcome<String> {
    let text = fs::read_to_string(path).map_err(|source| Failure::Io {
        what: path.into(),
        source,
    })?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(key, _)| key.trim() == name);
    found
        .map(|(_, value)| value.trim().to_owned())
        .ok_or_else(|| Failure::Wrong(format!("{path} has no {name}")))
}
