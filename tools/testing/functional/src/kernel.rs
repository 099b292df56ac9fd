// SPDX-License-Identifier: GPL-2.0-or-later
//! Parts of the kernel that a test switches on for itself: a swap device, a memory cgroup, a setting in sysfs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::failure::{Outcome, ensure, equal};
use crate::world::{field, run_command};

/// Whether the kernel handles broken memory (CONFIG_MEMORY_FAILURE), as that of a distribution does.
pub(crate) fn handles_broken_memory() -> bool {
    Path::new("/proc/sys/vm/memory_failure_recovery").exists()
}

/// Whether it is one of the debug kernels, on which all takes many times as long (tools/testing/kernel).
pub(crate) fn checks_itself() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    release.ends_with("-vmem-kasan") || release.ends_with("-vmem-kcsan")
}

/// A block device in compressed memory.
pub(crate) struct Disk {
    number: String,
}

impl Disk {
    /// A device of this size, as zram takes it (`512M`).
    pub(crate) fn new(size: &str) -> Outcome<Self> {
        run_command("modprobe", &["zram"])?;
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")?.trim().to_owned();
        let disk = Self { number };
        fs::write(format!("/sys/block/zram{}/disksize", disk.number), size)?;
        Ok(disk)
    }

    /// Its node.
    pub(crate) fn path(&self) -> String {
        format!("/dev/zram{}", self.number)
    }

    /// An open of it for direct I/O.
    pub(crate) fn open_direct(&self) -> Outcome<File> {
        let direct = OFlags::DIRECT.bits() as i32;
        Ok(OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(direct)
            .open(self.path())?)
    }
}

impl Drop for Disk {
    /// Gives its memory back. The device stays until the machine ends: on a kernel whose objects are released late on purpose
    /// (CONFIG_DEBUG_KOBJECT_RELEASE) the removal of a block device is itself a report.
    fn drop(&mut self) {
        // Busy for as long as the last close takes.
        for _ in 0..100 {
            if fs::write(format!("/sys/block/zram{}/reset", self.number), "1").is_ok() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

/// A swap device that is in use.
pub(crate) struct Swap {
    disk: Disk,
}

impl Swap {
    /// Swap of 256 MiB.
    pub(crate) fn new() -> Outcome<Self> {
        let swap = Self {
            disk: Disk::new("256M")?,
        };
        run_command("mkswap", &[&swap.disk.path()])?;
        run_command("swapon", &[&swap.disk.path()])?;
        Ok(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = run_command("swapoff", &[&self.disk.path()]);
    }
}

/// A memory cgroup.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A new one.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Moves the calling process into it.
    pub(crate) fn enter(&self) -> Outcome {
        self.set("cgroup.procs", &std::process::id().to_string())
    }

    /// Writes one of its files.
    pub(crate) fn set(&self, file: &str, value: &str) -> Outcome {
        Ok(fs::write(self.0.join(file), value)?)
    }

    /// A number of its `memory.stat`, in bytes.
    pub(crate) fn stat(&self, name: &str) -> Outcome<u64> {
        let text = fs::read_to_string(self.0.join("memory.stat"))?;
        field(&text.replace(' ', ": "), name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the last process in it is buried.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

/// A group of the freezer of cgroup v1, which stops its processes where they are, as suspending the machine does. (That of cgroup v2 is told by
/// signals, which who waits in the kernel does not see.)
pub(crate) struct Freezer {
    mount: PathBuf,
    group: PathBuf,
}

impl Freezer {
    /// Whether the kernel has it.
    pub(crate) fn available() -> bool {
        fs::read_to_string("/proc/cgroups").is_ok_and(|list| list.lines().any(|line| line.starts_with("freezer\t")))
    }

    /// A new group.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let mount = PathBuf::from("/tmp/freezer");
        fs::create_dir_all(&mount)?;
        run_command(
            "mount",
            &["-t", "cgroup", "-o", "freezer", "freezer", &mount.to_string_lossy()],
        )?;
        let group = mount.join(name);
        let freezer = Self { mount, group };
        fs::create_dir(&freezer.group)?;
        Ok(freezer)
    }

    /// Puts a process into it.
    pub(crate) fn add(&self, pid: i32) -> Outcome {
        Ok(fs::write(self.group.join("cgroup.procs"), pid.to_string())?)
    }

    /// Tells all of it to freeze, and says whether all has.
    pub(crate) fn freeze(&self) -> Outcome<bool> {
        fs::write(self.group.join("freezer.state"), "FROZEN")?;
        Ok(fs::read_to_string(self.group.join("freezer.state"))?.trim() == "FROZEN")
    }

    /// Lets all go on.
    pub(crate) fn thaw(&self) -> Outcome {
        Ok(fs::write(self.group.join("freezer.state"), "THAWED")?)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = self.thaw();
        // Busy until the last process in it is buried.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        let _ = run_command("umount", &[&self.mount.to_string_lossy()]);
    }
}

/// Whether the machine can be told to suspend to idle.
pub(crate) fn can_suspend() -> bool {
    fs::read_to_string("/sys/power/state").is_ok_and(|states| states.split_whitespace().any(|state| state == "freeze"))
}

/// Has the machine suspend to idle: all processes are frozen, and then its devices are stopped. The virtual machine's file system cannot be
/// stopped, which ends it at once. A process that cannot be frozen would have ended it before, and is an error.
pub(crate) fn suspend() -> Outcome {
    let failures = || -> Outcome<u64> { Ok(fs::read_to_string("/sys/power/suspend_stats/failed_freeze")?.trim().parse()?) };
    let before = failures()?;
    // It wakes up should that file system be stopped some day.
    let alarm = Path::new("/sys/class/rtc/rtc0/wakealarm");
    let _ = fs::write(alarm, "+20");
    let suspended = fs::write("/sys/power/state", "freeze");
    let _ = fs::write(alarm, "0");
    equal!(failures()?, before);
    match suspended {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            let step = fs::read_to_string("/sys/power/suspend_stats/last_failed_step")?;
            equal!(step.lines().next(), Some("suspend"));
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Whether the machine is one that is started again after it has hibernated (`tools/testing/hibernation`).
pub(crate) fn can_hibernate() -> bool {
    std::env::var_os("VMEM_HIBERNATES").is_some()
}

/// Has the machine hibernate: all processes are frozen, the memory goes to the swap device, and the machine turns itself off. This returns in the machine
/// that is started with that device.
pub(crate) fn hibernate() -> Outcome {
    fs::write("/sys/power/disk", "shutdown")?;
    Ok(fs::write("/sys/power/state", "disk").map_err(|error| format!("the machine does not hibernate: {error}"))?)
}

/// A file with a setting, which is as it was when this is dropped.
pub(crate) struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    /// Writes `value`.
    pub(crate) fn new(path: &'static str, value: &str) -> Outcome<Self> {
        let text = fs::read_to_string(path)?;
        // Of several words in one line, the one in brackets is the setting.
        let chosen = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let before = chosen.unwrap_or(text.trim()).to_owned();
        fs::write(path, value).map_err(|error| format!("{path}: {value}: {error}"))?;
        let setting = Self { path, before };
        let now = fs::read_to_string(path)?;
        ensure!(now.contains(value), "{path} is {now:?} after {value:?} was written");
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

/// Whether this kernel leaves a page alone that was used and is taken out of page tables. One without the multi-generational LRU puts it into a list of
/// the processor for a while, as one to be activated.
pub(crate) fn lets_go_of_pages() -> bool {
    Path::new("/sys/kernel/mm/lru_gen/enabled").exists()
}
