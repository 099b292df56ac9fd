// SPDX-License-Identifier: GPL-2.0
//! The memory management at work: swap, compaction (which migrates pages), KSM, huge pages, reclaim.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::numbers::Numbers;

const GROUP: &str = "/sys/fs/cgroup/stress";
const KSM: &str = "/sys/kernel/mm/ksm";
const HUGE: &str = "/sys/kernel/mm/transparent_hugepage";

/// A machine whose memory management has something to do.
pub(crate) struct Machine {
    swap: String,
}

fn command(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

fn write(path: impl AsRef<Path>, value: &str) -> anyhow::Result<()> {
    let path = path.as_ref();
    fs::write(path, value).with_context(|| format!("{}: {value}", path.display()))
}

impl Machine {
    /// Inserts the module, and switches on swap and the rest.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let module = std::env::var("VMEM_KO").unwrap_or_else(|_| "build/module/vmem.ko".into());
        command("insmod", &[&module])?;
        command("modprobe", &["zram"])?;
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").context("zram")?;
        let number = number.trim();
        write(format!("/sys/block/zram{number}/disksize"), "256M")?;
        let swap = format!("/dev/zram{number}");
        command("mkswap", &["--quiet", &swap])?;
        command("swapon", &[&swap])?;
        fs::create_dir(GROUP).context("cgroup")?;
        write(format!("{GROUP}/memory.max"), "512M")?;
        write(format!("{KSM}/pages_to_scan"), "500")?;
        write(format!("{KSM}/sleep_millisecs"), "5")?;
        Ok(Self { swap })
    }

    /// The calling process's memory is reclaimed with the others'.
    pub(crate) fn enter() -> anyhow::Result<()> {
        write(format!("{GROUP}/cgroup.procs"), &std::process::id().to_string())
    }

    /// Does one thing. What the kernel cannot do just now it says, and that is well.
    pub(crate) fn work(&self, numbers: &mut Numbers) {
        let (path, value) = match numbers.below(12) {
            0 => ("/proc/sys/vm/compact_memory".to_owned(), "1".to_owned()),
            1..5 => (format!("{GROUP}/memory.reclaim"), format!("{}M", 1 + numbers.below(24))),
            5 => (format!("{KSM}/run"), numbers.below(2).to_string()),
            6 => (
                format!("{HUGE}/shmem_enabled"),
                numbers.pick(&["never", "advise", "within_size", "always"]).to_owned(),
            ),
            7 => (
                format!("{HUGE}/khugepaged/scan_sleep_millisecs"),
                numbers.pick(&["1", "10000"]).to_owned(),
            ),
            8 => ("/proc/sys/vm/drop_caches".to_owned(), "2".to_owned()),
            _ => return,
        };
        let _ = fs::write(path, value);
    }

    /// Everything as it was, and the module out. That it can be is the last thing to see.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        write(format!("{KSM}/run"), "2")?;
        write(format!("{HUGE}/shmem_enabled"), "never")?;
        command("swapoff", &[&self.swap])?;
        fs::remove_dir(GROUP).context("cgroup")?;
        command("rmmod", &["vmem"])
    }
}
