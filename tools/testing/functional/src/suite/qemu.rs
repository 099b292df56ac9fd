// SPDX-License-Identifier: GPL-2.0-or-later
//! An unmodified QEMU, with a region as its guest's memory: on KVM if this machine has it, and has it from a processor.
//!
//! A KVM on emulated SVM now and then takes the whole machine with it (`migration/test`), and with that the results of all tests. There, QEMU
//! emulates; the tests that move guests have the other.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmem::{MAX_BATCH, PageRange, Region, RegionBuilder};

use super::files::{Mount, region};
use crate::failure::{Failure, Outcome, ensure, equal};
use crate::setting::Setting;
use crate::watchdog::still_moving;
use crate::world::{run_command, wait_until};

crate::tests![
    an_unmodified_qemu_runs_on_memory_that_is_filled_on_demand,
    a_qemu_whose_memory_does_not_come_can_be_killed,
    an_unmodified_qemu_runs_on_files_and_discards_their_memory,
];

pub(super) const MEMORY: u64 = 64 << 20;

/// A QEMU that is killed at the end of its test.
pub(super) struct Qemu(Child);

impl Qemu {
    /// Starts one on a region, whose firmware tells what it does.
    pub(super) fn new(region: &str) -> Outcome<Self> {
        let memory = format!("memory-backend-file,id=ram,size={MEMORY},mem-path=/dev/vmem/{region},share=on");
        Self::start(&memory, &[])
    }

    /// Starts one on this memory backend, `ram`.
    pub(super) fn start(memory: &str, options: &[&str]) -> Outcome<Self> {
        Self::run(Command::new("qemu-system-x86_64"), memory, options)
    }

    /// As [`Qemu::start`], with a mount of the file system at this directory that no other process sees.
    pub(super) fn in_own_mount(directory: &str, memory: &str, options: &[&str]) -> Outcome<Self> {
        Self::with_own_mounts(&format!("mount -t vmem vmem {directory}"), memory, options)
    }

    /// As [`Qemu::start`], after this script. No other process sees what it mounts.
    pub(super) fn with_own_mounts(script: &str, memory: &str, options: &[&str]) -> Outcome<Self> {
        let script = format!("{script} && exec qemu-system-x86_64 \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", &script, "sh"]);
        Self::run(command, memory, options)
    }

    fn run(mut command: Command, memory: &str, options: &[&str]) -> Outcome<Self> {
        // The firmware, the disks and what the guests execute are for x86-64.
        if !cfg!(target_arch = "x86_64") {
            return Err(Failure::lack("its guest is for x86-64"));
        }
        let child = command
            .args(["-nodefaults", "-display", "none"])
            .args(accelerators())
            .args(["-object", memory, "-machine", "pc,memory-backend=ram"])
            .args(options)
            .args([
                "-chardev",
                "stdio,id=firmware",
                "-device",
                "isa-debugcon,iobase=0x402,chardev=firmware",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self(child))
    }

    /// Waits until the firmware has said this.
    pub(super) fn hear(&mut self, text: &str) -> Outcome {
        let output = self.0.stdout.take().ok_or("it was heard already")?;
        for line in BufReader::new(output).lines() {
            if line?.contains(text) {
                return Ok(());
            }
        }
        Err(format!("QEMU ended before it said {text:?}").into())
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub(super) fn runs(&mut self) -> Outcome<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    fn kill(&mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// QEMU's options for what runs the guest.
pub(super) fn accelerators() -> Vec<&'static str> {
    let is_kvm = |name| std::env::var(name).is_ok_and(|accelerator| accelerator == "kvm");
    let on_kvm = is_kvm("VMEM_GUEST_ACCEL");
    let mut accelerators = vec![];
    if on_kvm || is_kvm("VMEM_ACCEL") {
        for module in ["kvm-amd", "kvm-intel"] {
            let _ = run_command("modprobe", &[module]);
        }
        accelerators.extend(["-accel", "kvm"]);
    }
    if !on_kvm {
        accelerators.extend(["-accel", "tcg"]);
    }
    accelerators
}

/// Answers requests, as the memory of a machine is that has just been switched on: with zeros.
pub(super) fn serve_zeros(region: &Region, stop: &AtomicBool) -> Outcome<u64> {
    let mut served = 0;
    while !stop.load(Ordering::SeqCst) {
        let wanted = region.next_requests_timeout(MAX_BATCH, Duration::from_millis(20))?;
        let ranges: Vec<PageRange> = wanted.into_iter().map(PageRange::from).collect();
        let changed = region.mark_zero(&ranges).complete()?;
        if changed > 0 {
            still_moving();
        }
        served += changed;
    }
    Ok(served)
}

fn an_unmodified_qemu_runs_on_memory_that_is_filled_on_demand() -> Outcome {
    let builder = || RegionBuilder::new(MEMORY).name("guest0");
    runs_on(Setting::create(builder())?)?;
    runs_on(Setting::create(builder().huge())?)
}

/// QEMU's firmware comes to its end on the region, which is then converted.
fn runs_on(setting: Setting) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let daemon = thread::spawn({
        let (region, stop) = (setting.region.clone(), stop.clone());
        move || serve_zeros(&region, &stop)
    });
    let mut qemu = Qemu::new("guest0")?;
    let heard = qemu.hear("No bootable device");
    stop.store(true, Ordering::SeqCst);
    let served = daemon.join().map_err(|_| "the daemon panicked")??;
    heard?;
    ensure!(served > 10, "only {served} pages were asked for");

    // The rest at once, and then it is plain memory under the guest's feet.
    setting.region.mark_zero(&[setting.region.pages()]).complete()?;
    setting.region.make_vma_anonymous()?;
    equal!(setting.region.info()?.mappings, 0);
    ensure!(qemu.runs()?);
    qemu.kill()
}

fn a_qemu_whose_memory_does_not_come_can_be_killed() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(MEMORY).name("guest0"))?;
    let mut qemu = Qemu::new("guest0")?;
    wait_until("it waits for a page", || {
        ensure!(qemu.runs()?, "QEMU has ended");
        Ok(setting.region.info()?.waiters > 0)
    })?;
    qemu.kill()?;
    equal!(setting.region.info()?.waiters, 0);
    Ok(())
}

/// A virtio-mem device begins with no memory plugged in: it discards all of its file, as a balloon does with a part. QEMU does not start if it
/// cannot.
fn an_unmodified_qemu_runs_on_files_and_discards_their_memory() -> Outcome {
    let mount = Mount::new("a")?;
    let pages = MEMORY as usize / vmem::PAGE_SIZE;
    let (guest, dimm) = (
        Setting::create(region("guest0", pages))?,
        Setting::create(region("dimm", pages))?,
    );
    dimm.fill(0..64)?;
    let stop = Arc::new(AtomicBool::new(false));
    let daemon = thread::spawn({
        let (region, stop) = (guest.region.clone(), stop.clone());
        move || serve_zeros(&region, &stop)
    });
    let file = |id, name| {
        format!(
            "memory-backend-file,id={id},size={MEMORY},mem-path={},share=on",
            mount.path(name).display()
        )
    };
    let dimm_file = file("dimm", "dimm");
    let device = [
        "-device",
        "virtio-mem-pci,memdev=dimm,requested-size=0",
        "-m",
        "64M,maxmem=256M",
        "-object",
        &dimm_file,
    ];
    let mut qemu = Qemu::start(&file("ram", "guest0"), &device)?;
    let heard = qemu.hear("No bootable device");
    stop.store(true, Ordering::SeqCst);
    let served = daemon.join().map_err(|_| "the daemon panicked")??;
    heard?;
    ensure!(served > 10, "only {served} pages were asked for");
    equal!(dimm.region.info()?.present, pages as u64);
    equal!(dimm.region.staging().metadata()?.blocks(), 0);
    dimm.no_request()?;
    qemu.kill()
}
