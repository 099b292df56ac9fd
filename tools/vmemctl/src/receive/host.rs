// SPDX-License-Identifier: GPL-2.0
//! What this host gives to a guest: regions, and a QEMU.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use vmem::{Access, Control, Error, MapHandle, RegionBuilder};
use vmem_cli::chain;
use vmem_qmp::{Qmp, QmpError};

use super::template;
use crate::cli::Receive;
use crate::failure::Trouble;
use crate::guest::LIMIT;
use crate::message::Backend;
use crate::name::clean;
use crate::scope;

/// How long QEMU may take to listen.
const START: Duration = Duration::from_secs(60);

/// The regions of `--region`. They exist as long as this is held, or somebody has them open.
pub(super) fn make_regions(control: &Control, args: &Receive) -> Result<Vec<MapHandle>, Trouble> {
    args.regions
        .iter()
        .map(|(name, bytes)| {
            make_region(control, name, *bytes, args).map_err(Trouble::vmem(format!("cannot make region {name}")))
        })
        .collect()
}

fn make_region(control: &Control, name: &str, bytes: u64, args: &Receive) -> Result<MapHandle, Error> {
    let mut builder = RegionBuilder::new(bytes).name(name);
    if let Some((uid, gid)) = args.owner {
        builder = builder.uid(uid);
        builder = gid.into_iter().fold(builder, RegionBuilder::gid);
    }
    if args.huge {
        builder = builder.huge();
    }
    // It is created here, and served by vmemd. Until it is open, the region exists because of this.
    let _served = builder.create(control)?;
    MapHandle::open(name, Access::ReadOnly)
}

/// A region for each backend of a guest, named after both.
pub(super) fn regions_for(
    control: &Control,
    guest: &str,
    memory: &[Backend],
    args: &Receive,
) -> Result<(Vec<String>, Vec<MapHandle>), Trouble> {
    let mut names = Vec::new();
    let mut handles = Vec::new();
    for backend in memory {
        let mut made = None;
        for name in candidates(guest, &backend.id) {
            match make_region(control, &name, backend.bytes, args) {
                Err(Error::NameTaken) => {}
                Err(error) => return Err(Trouble::vmem(format!("cannot make region {name}"))(error)),
                Ok(handle) => {
                    made = Some((name, handle));
                    break;
                }
            }
        }
        let (name, handle) = made.ok_or_else(|| Trouble::other(format!("all names for a region of {guest:?} are taken")))?;
        names.push(name);
        handles.push(handle);
    }
    Ok((names, handles))
}

/// Names for a region, the best first: one that an earlier guest still has is not to be had.
fn candidates(guest: &str, id: &str) -> impl Iterator<Item = String> {
    // Region names have 31 bytes at most.
    let base = format!("{}.{}", clean(guest, 14), clean(id, 12));
    (1..=99).map(move |number| match number {
        1 => base.clone(),
        _ => format!("{base}.{number}"),
    })
}

/// Refuses a guest that this host has no memory for: it would be killed when its memory comes, after it has left the source.
pub(super) fn check_memory(memory: &[Backend], args: &Receive) -> Result<(), Trouble> {
    let wanted = memory.iter().try_fold(0_u64, |sum, backend| sum.checked_add(backend.bytes));
    let wanted = wanted.ok_or_else(|| Trouble::other("the guest has more memory than there can be"))?;
    let text = std::fs::read_to_string("/proc/meminfo").map_err(Trouble::io("/proc/meminfo"))?;
    let available = available(&text).ok_or_else(|| Trouble::other("/proc/meminfo has no MemAvailable"))?;
    if args.overcommit || wanted <= available {
        Ok(())
    } else {
        Err(Trouble::other(format!(
            "the guest has {} MiB of memory, and {} MiB are available here (--overcommit takes it nevertheless)",
            wanted >> 20,
            available >> 20
        )))
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Why QEMU could not be asked, with more words if it waits for pages of one of these regions: none come before it takes the guest.
pub(super) fn explain(trouble: Trouble, regions: &[String]) -> Trouble {
    let waits = |name: &&String| {
        let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
        info.is_ok_and(|info| info.waiters > 0)
    };
    match regions.iter().find(waits) {
        None => trouble,
        Some(name) => Trouble::other(format!(
            "{}; QEMU waits for pages of region {name}, which come only with the guest: was it started with prealloc=on, -mem-prealloc or \
             -overcommit mem-lock=on?",
            chain(&trouble)
        )),
    }
}

/// A QEMU, and whether it is ours.
pub(super) struct Qemu {
    child: Option<Child>,
    log: PathBuf,
}

impl Qemu {
    /// One that somebody else has started.
    pub(super) fn existing() -> Self {
        Self {
            child: None,
            log: PathBuf::new(),
        }
    }

    /// Starts one from the template, with these nodes as its memory.
    pub(super) fn start(args: &Receive, memory: &[Backend], nodes: &[String], log: &Path) -> Result<Self, Trouble> {
        let words = template::fill_in(&args.command, &args.qmp, memory, nodes)?;
        let [program, arguments @ ..] = &words[..] else {
            return Ok(Self::existing());
        };
        let failed = || Trouble::io(format!("cannot start {program}"));
        let errors = File::create(log).map_err(failed())?;
        let child = scope::command(program, "qemu", log.parent().unwrap_or(log))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(errors.try_clone().map_err(failed())?)
            .stderr(errors)
            // The guest outlives this program, and the terminal's signals are not for it.
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        Ok(Self {
            child: Some(child),
            log: log.to_owned(),
        })
    }

    /// Connects to it, once it listens.
    pub(super) fn connect(&mut self, path: &Path) -> Result<Qmp, Trouble> {
        let until = Instant::now() + START;
        loop {
            let error = match Qmp::connect_soon(path, LIMIT, Duration::from_millis(500)) {
                Ok(qmp) => return Ok(qmp),
                Err(error @ QmpError::Connect { .. }) => error,
                Err(error) => return Err(error.into()),
            };
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            // One that goes into the background ends well.
            if let Some(status) = ended.filter(|status| !status.success()) {
                return Err(Trouble::other(format!("QEMU ended ({status}): {}", self.last_words())));
            }
            if self.child.is_none() || Instant::now() >= until {
                return Err(error.into());
            }
        }
    }

    /// The last line that it said.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().last().unwrap_or_default().to_owned()
    }

    /// Ends it, if it was started here, whatever it waits for: its guest has not come.
    pub(super) fn end(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_regions() {
        let long = "a guest with a very long name/indeed";
        for name in candidates(long, "the memory of the first NUMA node") {
            assert!(vmem::Name::new(&name).is_ok(), "{name}");
        }
        assert_eq!(
            candidates("guest0", "ram").take(2).collect::<Vec<_>>(),
            ["guest0.ram", "guest0.ram.2"]
        );
    }

    #[test]
    fn memory_that_is_available_is_found() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   16 kB\n"), Some(16384));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }
}
