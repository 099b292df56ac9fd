// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory management at work: swap, compaction and moves between nodes (which migrate pages), KSM, huge pages, reclaim.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::board::{Board, Note};
use crate::numbers::Numbers;
use crate::pace::Pace;

const GROUPS: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/stress";
const KSM: &str = "/sys/kernel/mm/ksm";
const HUGE: &str = "/sys/kernel/mm/transparent_hugepage";

/// A machine whose memory management has something to do.
pub(crate) struct Machine {
    swap: String,
    /// All memory is moved from one node to another, now and then.
    pub(crate) moves: bool,
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

/// A number that the kernel tells in a file; 0 if it does not.
fn number(path: &str) -> u64 {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
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
        // A kernel without it, or a machine with one node, has no other node to move memory to.
        let moves = Path::new("/sys/devices/system/node/node1").exists()
            && write(format!("{GROUPS}/cgroup.subtree_control"), "+cpuset").is_ok();
        fs::create_dir(GROUP).context("cgroup")?;
        write(format!("{GROUP}/memory.max"), "512M")?;
        write(format!("{KSM}/pages_to_scan"), "500")?;
        write(format!("{KSM}/sleep_millisecs"), "5")?;
        // On from the start: a slow kernel may come to the step that switches it on once in a run, or never.
        write(format!("{KSM}/run"), "1")?;
        Ok(Self { swap, moves })
    }

    /// The calling process's memory is reclaimed with the others'.
    pub(crate) fn enter() -> anyhow::Result<()> {
        write(format!("{GROUP}/cgroup.procs"), &std::process::id().to_string())
    }

    /// The life of who keeps the memory management at work: until the run is over, or it dies. It is watched as everybody is, for each of
    /// these writes returns when the work is done.
    pub(crate) fn run(&self, board: &Board, actor: usize, mut numbers: Numbers) -> anyhow::Result<()> {
        let mut pace = Pace::new();
        while !board.is_over()? {
            board.count(actor, Note::Steps)?;
            if pace.is_due(board)? {
                self.work(&mut numbers);
            }
            let merged = number(&format!("{KSM}/pages_sharing"));
            if merged > board.note(actor, Note::Merged)? {
                board.set_note(actor, Note::Merged, merged)?;
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Does one thing. What the kernel cannot do just now it says, and that is well: what it has done is counted in the end.
    fn work(&self, numbers: &mut Numbers) {
        let (path, value) = match numbers.below(14) {
            0 => ("/proc/sys/vm/compact_memory".to_owned(), "1".to_owned()),
            1..4 => (format!("{GROUP}/memory.reclaim"), format!("{}M", 1 + numbers.below(24))),
            4 => (format!("{KSM}/run"), numbers.pick(&["0", "1", "1", "1"]).to_owned()),
            5 => (
                format!("{HUGE}/shmem_enabled"),
                numbers.pick(&["never", "advise", "within_size", "always"]).to_owned(),
            ),
            6 => (
                format!("{HUGE}/khugepaged/scan_sleep_millisecs"),
                numbers.pick(&["1", "10000"]).to_owned(),
            ),
            7 => ("/proc/sys/vm/drop_caches".to_owned(), "2".to_owned()),
            8..10 if self.moves => (format!("{GROUP}/cpuset.mems"), numbers.pick(&["0", "1", "0-1"]).to_owned()),
            _ => return,
        };
        let _ = fs::write(path, value);
    }

    /// Everything as it was, and the module out. That it can be is the last thing to see.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        write(format!("{KSM}/run"), "2")?;
        write(format!("{HUGE}/shmem_enabled"), "never")?;
        command("swapoff", &[&self.swap])?;
        fs::remove_dir(GROUP).context("cgroup")?;
        // vmemd leaves its mount.
        let _ = command("umount", &["/run/vmem"]);
        command("rmmod", &["vmem"])
    }
}
