// SPDX-License-Identifier: GPL-2.0-or-later
//! A region is known by whatever way a program has it: node, file of any mount, of a mount of its own, or of one that is gone.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmem::{
    Access, Control, FILES_DIRECTORY, MapHandle, MemoryHandle, PAGE_SIZE, ProcessMemory, RegionBuilder, descriptors, region_at,
};

use super::{Daemon, Process, Source, beside, map, open};
use crate::failure::{Outcome, ensure, equal};
use crate::setting::{Setting, check_page, page};
use crate::suite::files::{Mount, region};
use crate::suite::qemu::{MEMORY, Qemu};
use crate::world::{run_command, wait_until};

crate::tests![
    region_is_known_through_each_way_to_it,
    file_that_is_called_as_a_region_is_none,
    source_knows_a_region_by_its_file,
    guest_whose_files_are_seen_by_qemu_alone_is_known,
    guest_whose_own_file_is_called_as_a_region_is_not_on_that_region,
    name_is_opened_by_the_file_or_else_by_the_node,
];

/// A program that has the region `one` open as descriptor 3, after this script.
fn holder(script: &str) -> Outcome<Process> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged", "/bin/sh", "-ec"]);
    command.arg(format!("{script}; exec sleep 1000"));
    let process = Process::new(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let comm = format!("/proc/{}/comm", process.0.id());
    wait_until("the program sleeps", || Ok(fs::read_to_string(&comm)?.trim() == "sleep"))?;
    Ok(process)
}

fn region_is_known_through_each_way_to_it() -> Outcome {
    let (a, b) = (Mount::new("a")?, Mount::new("b")?);
    let setting = Setting::create(region("one", 4))?;
    setting.fill_all()?;
    let id = setting.region.id();
    fs::create_dir_all("/mnt/c")?;
    run_command("mount", &["-t", "vmem", "vmem", "/mnt/c"])?;
    let mut holders = Vec::new();
    for script in [
        "exec 3<>/dev/vmem/one",
        "exec 3<>/mnt/a/one",
        "exec 3<>/mnt/b/one",
        "exec 3<>/mnt/c/one",
        "mount --make-rprivate /; mount -t vmem vmem /var/tmp; exec 3<>/var/tmp/one",
        "mount --make-rprivate /; mount -t vmem vmem /var/tmp; exec 3<>/var/tmp/one; umount -l /var/tmp",
    ] {
        holders.push((script, holder(script)?));
    }
    run_command("umount", &["-l", "/mnt/c"])?;
    let paths = [Path::new("/dev/vmem/one").to_owned(), a.path("one"), b.path("one")];
    let control = Control::open()?;
    for plain in [false, true] {
        if plain {
            setting.region.make_vma_anonymous()?;
        }
        for (script, holder) in &holders {
            let pid = holder.0.id() as i32;
            let found = ProcessMemory::list(pid)?;
            let found: Vec<_> = found
                .iter()
                .map(|file| (file.fd, file.region.as_ref().map(|info| info.id)))
                .collect();
            ensure!(found == [(3, Some(id))], "{script}: {found:?}");
            let is_listed = descriptors()
                .iter()
                .any(|found| (found.pid, found.fd, found.memory.id()) == (pid, 3, id));
            ensure!(is_listed, "{script}: it is not listed");
            for path in &paths {
                let memory = ProcessMemory::open(pid, path).map_err(|error| format!("{script}: {path:?}: {error}"))?;
                equal!(
                    (memory.file().fd, memory.file().region.as_ref().map(|info| info.id)),
                    (3, Some(id))
                );
                control.adopt(&memory)?.track()?.stop()?;
            }
            ensure!(ProcessMemory::open(pid, "/dev/shm/one").is_err());
        }
        for path in &paths {
            equal!(region_at(path), Some(id));
            ensure!(matches!(MemoryHandle::open(path, None)?, MemoryHandle::Region(_)), "{path:?}");
        }
    }
    Ok(())
}

fn file_that_is_called_as_a_region_is_none() -> Outcome {
    let mount = Mount::new("a")?;
    let _setting = Setting::create(region("one", 4))?;
    fs::write("/dev/shm/one", [1; PAGE_SIZE])?;
    let holder = holder("exec 3<>/dev/shm/one")?;
    let pid = holder.0.id() as i32;
    fs::remove_file("/dev/shm/one")?;
    for path in [Path::new("/dev/vmem/one").to_owned(), mount.path("one")] {
        ensure!(ProcessMemory::open(pid, &path).is_err(), "{path:?}");
    }
    equal!(
        ProcessMemory::open(pid, "/dev/shm/one")?
            .file()
            .region
            .as_ref()
            .map(|info| info.id),
        None
    );
    ensure!(!descriptors().iter().any(|found| found.pid == pid));
    Ok(())
}

fn source_knows_a_region_by_its_file() -> Outcome {
    let mount = Mount::new("a")?;
    let near = Setting::create(RegionBuilder::new(8 * PAGE_SIZE as u64).name("near"))?;
    near.region.ready()?;
    near.fill([0, 1])?;
    let path = mount.path("near").display().to_string();
    let source = Source::new(&[&format!("far={path}")])?;
    let daemon = Daemon::new(&source.address, &["--no-background", "--prefetch", "0"])?;
    let memory = map(&open("far")?)?;
    super::check_page(&memory, 1)?;
    // An absent page is asked for, and is no zeros.
    let reader = std::thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| super::check_page(&memory, 6));
        equal!(near.region.next_requests(1)?, [page(6)]);
        near.fill([6])?;
        reader.join().map_err(|_| "the reader has panicked")?
    });
    reader?;
    drop((daemon, memory, source));
    near.fill([2, 3, 4, 5, 7])?;
    near.region.make_vma_anonymous()?;
    check_page(&near.area()?, 7, 7)?;
    // A region has one lock, by whatever path it is named. A second source that is not refused would serve for ever.
    let serve = |path: &str| -> Outcome<Command> {
        let vmemd = beside("vmemd")?;
        let mut command = Command::new("timeout");
        command.arg("60").arg(vmemd.get_program());
        command
            .args(["serve", "--listen", "127.0.0.1:0", &format!("near={path}")])
            .stdin(Stdio::null());
        Ok(command)
    };
    let _releasing = Source::with(&["--free", "/mnt"], &["near=/dev/vmem/near"])?;
    let refused = serve(&path)?.output()?;
    let errors = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && errors.contains("another"), "{errors}");
    Ok(())
}

fn guest_whose_files_are_seen_by_qemu_alone_is_known() -> Outcome {
    let builder = || RegionBuilder::new(MEMORY).name("hidden");
    for after in ["", "umount -l /run/vmem; "] {
        let setting = Setting::create(builder())?;
        setting.region.mark_zero(&[setting.region.pages()]).complete()?;
        fs::create_dir_all("/run/vmem")?;
        let socket = "/mnt/hidden.qmp";
        let memory = format!("memory-backend-file,id=ram,size={MEMORY},mem-path=/run/vmem/hidden,share=on");
        let qmp = format!("unix:{socket},server=on,wait=off");
        let mut qemu = Qemu::in_own_mount("/run/vmem", &memory, &["-qmp", &qmp])?;
        wait_until("QEMU listens", || Ok(Path::new(socket).exists()))?;
        if !after.is_empty() {
            run_command(
                "nsenter",
                &["--mount", "--target", &qemu.pid().to_string(), "umount", "-l", "/run/vmem"],
            )?;
        }
        ensure!(!Path::new("/run/vmem/hidden").exists());
        let measured = beside("vmemctl")?
            .args(["dirty-rate", "--qmp", socket, "--seconds", "0.2"])
            .output()?;
        let said = String::from_utf8_lossy(&measured.stdout);
        let errors = String::from_utf8_lossy(&measured.stderr);
        ensure!(
            measured.status.success() && said.contains("pages/s"),
            "{after:?}: {said}{errors}"
        );
        ensure!(qemu.runs()?, "QEMU has ended");
        drop((qemu, setting));
        wait_until("the region is gone", || Ok(!Path::new("/dev/vmem/hidden").exists()))?;
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

fn guest_whose_own_file_is_called_as_a_region_is_not_on_that_region() -> Outcome {
    let setting = Setting::create(RegionBuilder::new(MEMORY).name("hidden"))?;
    setting.region.mark_zero(&[setting.region.pages()]).complete()?;
    let socket = "/mnt/hidden.qmp";
    let by_node = "exec 3<>/dev/vmem/hidden";
    let by_lost_file = "mkdir /srv/lost && mount -t vmem vmem /srv/lost && exec 3<>/srv/lost/hidden && umount -l /srv/lost";
    // QEMU has the region open, too. Its guest's file is on a file system that is not one of shared memory, as on a disk.
    for (open, is_removed) in [(by_node, false), (by_node, true), (by_lost_file, true)] {
        let script = format!("mount -t ramfs ramfs /srv && {open}");
        let memory = format!("memory-backend-file,id=ram,size={MEMORY},mem-path=/srv/hidden,share=on");
        let qmp = format!("unix:{socket},server=on,wait=off");
        let mut qemu = Qemu::with_own_mounts(&script, &memory, &["-qmp", &qmp])?;
        wait_until("QEMU listens", || Ok(Path::new(socket).exists()))?;
        let pid = qemu.pid().to_string();
        // QEMU listens before it makes its memory.
        let seen_by_qemu = format!("/proc/{pid}/root/srv/hidden");
        wait_until("QEMU has made its memory", || Ok(Path::new(&seen_by_qemu).exists()))?;
        if is_removed {
            run_command("nsenter", &["--mount", "--target", &pid, "rm", "/srv/hidden"])?;
        }
        let measured = beside("vmemctl")?
            .args(["dirty-rate", "--qmp", socket, "--seconds", "0.2"])
            .output()?;
        let said = String::from_utf8_lossy(&measured.stdout);
        let errors = String::from_utf8_lossy(&measured.stderr);
        ensure!(
            !measured.status.success() && errors.contains("/srv/hidden"),
            "{open}, removed {is_removed}: {said}{errors}"
        );
        ensure!(qemu.runs()?, "QEMU has ended");
        drop(qemu);
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

fn name_is_opened_by_the_file_or_else_by_the_node() -> Outcome {
    let _setting = Setting::create(region("one", 4))?;
    let opened = |access| -> Outcome<PathBuf> {
        let handle = MapHandle::open("one", access)?;
        Ok(fs::read_link(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()))?)
    };
    equal!(opened(Access::ReadWrite)?, Path::new("/dev/vmem/one"));
    fs::create_dir_all(FILES_DIRECTORY)?;
    let file = Path::new(FILES_DIRECTORY).join("one");
    fs::write(&file, "what a program wrote that came too early")?;
    let early = opened(Access::ReadWrite);
    fs::remove_file(&file)?;
    equal!(early?, Path::new("/dev/vmem/one"));
    run_command("mount", &["-t", "vmem", "-o", "ro", "vmem", FILES_DIRECTORY])?;
    equal!(opened(Access::ReadOnly)?, file);
    equal!(opened(Access::ReadWrite)?, Path::new("/dev/vmem/one"));
    run_command("mount", &["-o", "remount,bind,rw", FILES_DIRECTORY])?;
    equal!(opened(Access::ReadWrite)?, file);
    Ok(())
}
