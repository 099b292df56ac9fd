// SPDX-License-Identifier: GPL-2.0-or-later
//! The machine around a test: the module, and that nothing is left after a test.

use std::fs;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmem::FILES_DIRECTORY;

use crate::failure::{Outcome, ensure, equal};
use crate::patience;

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    let place = Location::caller();
    let since = Instant::now();
    while !condition()? {
        ensure!(
            since.elapsed() < patience::of_a_state(),
            "{place}: waited in vain until {what}"
        );
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The module to test.
fn module() -> PathBuf {
    std::env::var_os("VMEM_KO").map_or_else(|| "build/module/vmem.ko".into(), PathBuf::from)
}

/// Runs a program of the system.
pub(crate) fn run_command(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// Inserts the module, and waits for the control device.
pub(crate) fn insert_module() -> Outcome {
    let module = module();
    run_command("insmod", &[&module.to_string_lossy()])?;
    wait_until("the control device is there", || Ok(Path::new("/dev/vmem/control").exists()))
}

/// Whether the file system is mounted where daemons mount it.
pub(crate) fn is_mounted() -> bool {
    rustix::fs::statfs(FILES_DIRECTORY).is_ok_and(|found| found.f_type == i64::from(vmem_sys::VMEM_SUPER_MAGIC))
}

/// Unmounts what daemons have mounted, and leave.
pub(crate) fn unmount_files() -> Outcome {
    if is_mounted() {
        run_command("umount", &[FILES_DIRECTORY])?;
    }
    Ok(())
}

/// Removes the module.
pub(crate) fn remove_module() -> Outcome {
    unmount_files()?;
    run_command("rmmod", &["vmem"]).map(drop)
}

/// How many users the module has, other than the mount of daemons: descriptors, mappings, another mount.
pub(crate) fn module_users() -> Outcome<u64> {
    let users: u64 = fs::read_to_string("/sys/module/vmem/refcnt")?.trim().parse()?;
    Ok(users.saturating_sub(is_mounted().into()))
}

/// Names of the nodes, without that of the control device.
pub(crate) fn nodes() -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/dev/vmem")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "control" {
            names.push(name);
        }
    }
    Ok(names)
}

/// How many descriptors this process has open.
fn descriptors() -> Outcome<Vec<String>> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        // The descriptor of this very listing is gone when it is looked at.
        if let Ok(target) = fs::read_link(&path) {
            open.push(format!("{} {}", path.display(), target.display()));
        }
    }
    open.retain(|open| !open.ends_with("/fd"));
    open.sort();
    Ok(open)
}

/// `pid` and its descendants.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        family.extend(children);
        next += 1;
    }
    family
}

/// Runs a test, and then sees that it left nothing.
pub(crate) fn run(test: fn() -> Outcome) -> Outcome {
    let before = descriptors()?;
    if let Err(failure) = test() {
        return match clean_up() {
            Ok(()) => Err(failure),
            // The next tests say the same, and are not to blame.
            Err(left) => Err(format!("{}; the test has left: {}", failure.text(), left.text()).into()),
        };
    }
    equal!(descriptors()?, before);
    equal!(family(std::process::id()).len(), 1);
    if !Path::new("/sys/module/vmem").exists() {
        return Err("the test has left the machine without the module".into());
    }
    unmount_files()?;
    // The last use of a region may end a moment after the process that made it.
    wait_unused()?;
    equal!(nodes()?, Vec::<String>::new());
    Ok(())
}

/// Waits until nothing uses the module. The error says who does.
fn wait_unused() -> Outcome {
    let waited = wait_until("nothing uses the module", || Ok(module_users()? == 0));
    waited.map_err(|failure| format!("{}: {:?}", failure.text(), uses()).into())
}

/// The descriptors and mappings of regions that processes have, this one included.
fn uses() -> Vec<String> {
    let descriptors = vmem::descriptors().into_iter();
    let mut uses: Vec<String> = descriptors
        .map(|found| format!("{} {}: {}", found.pid, found.command, found.path.display()))
        .collect();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let maps = fs::read_to_string(process.path().join("maps")).unwrap_or_default();
        let of_regions = maps.lines().filter(|line| line.contains(" /vmem"));
        uses.extend(of_regions.map(|line| format!("{}: {line}", process.path().display())));
    }
    uses
}

/// Ends what a failed test has left, as far as that can be, so that the next one is not blamed for it. A thread that waits for a page stays.
fn clean_up() -> Outcome {
    let this = std::process::id();
    for pid in family(this).into_iter().filter(|pid| *pid != this) {
        let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, Signal::KILL));
    }
    if !Path::new("/sys/module/vmem").exists() {
        let _ = insert_module();
    }
    let _ = unmount_files();
    wait_unused()
}

/// A field of a `/proc` file of lines `NAME: VALUE`.
pub(crate) fn field(text: &str, name: &str) -> Outcome<u64> {
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| (key == name).then(|| value.trim().trim_end_matches(" kB")));
    match value {
        Some(value) => Ok(value.parse().map_err(|error| format!("{name}: {value:?}: {error}"))?),
        None => Err(format!("no field {name} in {text:?}").into()),
    }
}

/// The threads of a process.
pub(crate) fn threads(pid: i32) -> Outcome<Vec<i32>> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect()
}
