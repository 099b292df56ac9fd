// SPDX-License-Identifier: GPL-2.0
//! The regions and the QEMU that this host makes for a guest.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use vmem::{Access, Control, Error, MapHandle, RegionBuilder};
use vmem_cli::{Signals, chain};
use vmem_qmp::Qmp;

use super::template;
use crate::error::Cause;
use crate::guest::LIMIT;
use crate::log_file::tail;
use crate::message::Backend;
use crate::name::clean;
use crate::options::Receive;
use crate::printable::printable;
use crate::record::StateDir;
use crate::scope;

/// How long QEMU may take to listen at its socket.
const START: Duration = Duration::from_secs(60);

/// Makes the regions of a guest of this name. Returns their names, and handles that keep the regions in existence.
pub(super) type MakeRegions<'a> = dyn Fn(&str, &[Backend]) -> Result<(Vec<String>, Vec<MapHandle>), Cause> + 'a;

/// Makes the regions of `--region`. A region exists as long as its handle, or a process, has it open.
pub(super) fn make_regions(control: &Control, args: &Receive) -> Result<Vec<MapHandle>, Cause> {
    args.regions
        .iter()
        .map(|(name, bytes)| make_region(control, name, *bytes, args).map_err(Cause::vmem(format!("cannot make region {name}"))))
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
    // With poison, a touch of a lost page ends a process in the guest. Without it, the touch ends the guest.
    if control.features()?.poison {
        builder = builder.poison_unreadable();
    }
    // vmemd serves the region later. Until the handle below is open, the region exists because of this descriptor.
    let _served = builder.create(control)?;
    MapHandle::open(name, Access::ReadOnly)
}

/// Makes a region for each memory backend of a guest. The name of a region has the names of the guest and of the backend.
pub(super) fn regions_for(
    control: &Control,
    guest: &str,
    memory: &[Backend],
    args: &Receive,
) -> Result<(Vec<String>, Vec<MapHandle>), Cause> {
    let mut names = Vec::new();
    let mut handles = Vec::new();
    for backend in memory {
        let mut made = None;
        for name in candidates(guest, &backend.id) {
            match make_region(control, &name, backend.bytes, args) {
                Err(Error::NameTaken) => {}
                Err(error) => return Err(Cause::vmem(format!("cannot make region {name}"))(error)),
                Ok(handle) => {
                    made = Some((name, handle));
                    break;
                }
            }
        }
        let (name, handle) = made.ok_or_else(|| Cause::other(format!("all names for a region of {guest:?} are taken")))?;
        names.push(name);
        handles.push(handle);
    }
    Ok((names, handles))
}

/// Names for a region, the preferred one first. A name may be taken by the region of an earlier guest.
fn candidates(guest: &str, id: &str) -> impl Iterator<Item = String> {
    // Region names have 31 bytes at most.
    let base = format!("{}.{}", clean(guest, 14), clean(id, 12));
    (1..=99).map(move |number| match number {
        1 => base.clone(),
        _ => format!("{base}.{number}"),
    })
}

/// Adds a hint to `trouble` if QEMU waits for pages of one of these regions: no pages arrive before QEMU can receive the guest.
pub(super) fn explain(cause: Cause, regions: &[String]) -> Cause {
    let waits = |name: &&String| {
        let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
        info.is_ok_and(|info| info.waiters > 0)
    };
    match regions.iter().find(waits) {
        None => cause,
        Some(name) => Cause::other(format!(
            "{}; QEMU waits for pages of region {name}, which come only with the guest: was it started with prealloc=on, -mem-prealloc or \
             -overcommit mem-lock=on?",
            chain(&cause)
        )),
    }
}

/// A QEMU, and whether vmemctl has started it.
pub(super) struct Qemu {
    child: Option<Child>,
    log: PathBuf,
    /// The length of the log before QEMU was started.
    before: u64,
    /// vmemctl has changed the state of QEMU.
    changed: bool,
}

impl Qemu {
    /// A QEMU that vmemctl has not started.
    pub(super) fn existing() -> Self {
        Self {
            child: None,
            log: PathBuf::new(),
            before: 0,
            changed: false,
        }
    }

    /// Starts QEMU from the command template, with these nodes as its memory.
    pub(super) fn start(args: &Receive, memory: &[Backend], nodes: &[String], state_dir: &StateDir) -> Result<Self, Cause> {
        let words = template::fill_in(&args.command, &args.qmp, memory, nodes)?;
        let [program, arguments @ ..] = &words[..] else {
            return Ok(Self::existing());
        };
        let failed = || Cause::io(format!("cannot start {program}"));
        let log = state_dir.log("qemu.log")?;
        let errors = File::options().create(true).append(true).open(&log).map_err(failed())?;
        let before = errors.metadata().map_err(failed())?.len();
        let child = scope::command(program, "qemu", state_dir.directory())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(errors.try_clone().map_err(failed())?)
            .stderr(errors)
            // QEMU outlives this program. A process group of its own keeps signals of the terminal from QEMU.
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        Ok(Self {
            child: Some(child),
            log,
            before,
            changed: false,
        })
    }

    /// Connects to QEMU, once QEMU listens.
    pub(super) fn connect(&mut self, path: &Path, signals: &Signals) -> Result<Qmp, Cause> {
        let until = Instant::now() + START;
        loop {
            let error = match Qmp::connect_retry(path, LIMIT, Duration::from_millis(500)) {
                Ok(qmp) => return Ok(qmp),
                Err(error @ vmem_qmp::Error::Connect { .. }) => error,
                Err(error) => return Err(error.into()),
            };
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            // A QEMU that becomes a daemon exits with status 0. After any other status, `explain` adds QEMU's messages to the error.
            if ended.is_some_and(|status| !status.success()) {
                return Err(error.into());
            }
            signals.check()?;
            if self.child.is_none() || Instant::now() >= until {
                return Err(error.into());
            }
        }
    }

    /// The last lines that QEMU has written.
    pub(super) fn last_words(&self) -> String {
        const LINES: usize = 3;
        let text = tail(&self.log, self.before);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
        last.iter().map(|line| printable(line)).collect::<Vec<_>>().join("; ")
    }

    /// Adds QEMU's exit status and last messages to `trouble`, if QEMU has failed.
    pub(super) fn explain(&mut self, cause: Cause) -> Cause {
        const MOMENT: Duration = Duration::from_millis(500);
        let until = Instant::now() + MOMENT;
        let Some(child) = &mut self.child else { return cause };
        loop {
            match child.try_wait() {
                // A QEMU that becomes a daemon exits with status 0.
                Ok(Some(status)) if status.success() => return cause,
                Ok(Some(status)) => {
                    let (what, words) = (chain(&cause), self.last_words());
                    return Cause::other(format!("{what}; QEMU has ended ({status}): {words}"));
                }
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                _ => return cause,
            }
        }
    }

    /// Whether the process that vmemctl started has failed. A QEMU that becomes a daemon exits with status 0.
    pub(super) fn has_failed(&mut self) -> bool {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        ended.is_some_and(|status| !status.success())
    }

    /// Notes that QEMU is prepared for a guest from now on.
    pub(super) fn changes(&mut self) {
        self.changed = true;
    }

    /// Kills QEMU if vmemctl has started it, because its guest has not arrived. Returns whether another guest can be prepared.
    pub(super) fn end(&mut self) -> bool {
        let Some(child) = &mut self.child else { return !self.changed };
        // QEMU may have ended just now.
        let _ = child.kill();
        // A QEMU that became a daemon has exited with status 0, and still runs.
        child.wait().is_ok_and(|status| !status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_valid_region_names() {
        let long = "a guest with a very long name/indeed";
        for name in candidates(long, "the memory of the first NUMA node") {
            assert!(vmem::Name::new(&name).is_ok(), "{name}");
        }
        assert_eq!(
            candidates("guest0", "ram").take(2).collect::<Vec<_>>(),
            ["guest0.ram", "guest0.ram.2"]
        );
    }

    /// Starts a shell script instead of QEMU. Its log is in `state`.
    fn started(script: &str, state: &Path) -> Qemu {
        use clap::Parser;
        let words = ["vmemctl", "receive", "--qmp", "/nobody/qmp", "--", "sh", "-c"];
        let cli = crate::options::cli::Cli::parse_from(words.into_iter().chain([script]));
        let crate::options::cli::Command::Receive(args) = &cli.command else {
            panic!("not receive")
        };
        let state_dir = StateDir::new(state, "in", "guest0").expect("a state directory");
        let qemu = Qemu::start(args, &[], &[], &state_dir).expect("a process");
        state_dir.remove();
        qemu
    }

    #[test]
    fn last_messages_of_a_failed_qemu_are_reported_and_stay_in_the_log() {
        let state = tempfile::tempdir().expect("a directory");
        for _ in 0..2 {
            let mut qemu = started("echo qemu: first; echo qemu: last >&2; exit 3", state.path());
            let error = qemu
                .connect(Path::new("/nobody/qmp"), &Signals::default())
                .expect_err("no QEMU");
            let text = qemu.explain(error).to_string();
            assert!(
                text.ends_with("QEMU has ended (exit status: 3): qemu: first; qemu: last"),
                "{text}"
            );
        }
        let log = std::fs::read_to_string(state.path().join("log/in.guest0.qemu.log")).expect("a log");
        assert_eq!(log.lines().count(), 4, "{log}");
    }
    #[test]
    fn another_guest_can_be_prepared_only_if_this_qemu_left_nothing() {
        let state = tempfile::tempdir().expect("a directory");
        assert!(started("exec sleep 1000", state.path()).end(), "it has not ended");
        let mut in_the_background = started("exit 0", state.path());
        let child = in_the_background.child.as_mut().expect("a process");
        child.wait().expect("a process");
        assert!(!in_the_background.end(), "it has another process, and the regions");
        let mut found = Qemu::existing();
        assert!(found.end(), "nobody has touched it");
        found.changes();
        assert!(!found.end());
    }
}
