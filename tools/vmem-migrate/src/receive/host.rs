// SPDX-License-Identifier: GPL-2.0-or-later
//! The regions and the QEMU that this host makes for a guest.

use vmem::{Access, Control, Error, Files, MapHandle, RegionBuilder};
use vmem_cli::chain;
use vmem_qemu::{Qemu, command};

use crate::error::Cause;
use crate::message::Backend;
use crate::options::Receive;
use crate::record::StateDir;
use crate::report::Report;

/// The directory where QEMU finds regions as files, or the reason why it finds nodes only, which is reported unless a move is resumed.
pub(super) fn open_files(args: &Receive, report: &Report) -> Files {
    let files = Files::open(&args.files.clone().unwrap_or_default());
    if let Some(error) = files.error().filter(|_| !args.resume) {
        report.note(&format!("{}; QEMU finds regions in {}", chain(error), vmem::DIRECTORY));
    }
    files
}

/// Makes the regions of a guest of this name. Returns their names, and handles that keep the regions in existence.
pub(super) type MakeRegions<'a> = dyn Fn(&str, &[Backend]) -> Result<(Vec<String>, Vec<MapHandle>), Cause> + 'a;

/// Makes the regions of `--region`. A region exists as long as its handle, or a process, has it open.
pub(super) fn make_regions(control: &Control, files: &Files, args: &Receive) -> Result<Vec<MapHandle>, Cause> {
    args.regions
        .iter()
        .map(|(name, bytes)| {
            make_region(control, files, name, *bytes, args).map_err(Cause::call(format!("region {name}: cannot create it")))
        })
        .collect()
}

fn make_region(control: &Control, files: &Files, name: &str, bytes: u64, args: &Receive) -> Result<MapHandle, Error> {
    let mut builder = RegionBuilder::new(bytes).name(name);
    if let Some(owner) = args.owner {
        builder = owner.uid.into_iter().fold(builder, RegionBuilder::uid);
        builder = owner.gid.into_iter().fold(builder, RegionBuilder::gid);
    }
    if args.huge {
        builder = builder.huge();
    }
    // With poison, a touch of a lost page ends a process in the guest. Without it, the touch ends the guest.
    if control.features()?.poison {
        builder = builder.poison_unreadable();
    }
    // vmemd serves the region later. Until the handle below is open, the region exists because of this descriptor.
    let served = builder.create(control)?;
    files.check(name, served.id())?;
    MapHandle::open(name, Access::ReadOnly)
}

/// Makes a region for each memory backend of a guest. The name of a region has the names of the guest and of the backend.
pub(super) fn regions_for(
    control: &Control,
    files: &Files,
    guest: &str,
    memory: &[Backend],
    args: &Receive,
) -> Result<(Vec<String>, Vec<MapHandle>), Cause> {
    let mut names = Vec::new();
    let mut handles = Vec::new();
    for backend in memory {
        let mut made = None;
        for name in vmem_qemu::guest::region_names(guest, &backend.id) {
            match make_region(control, files, &name, backend.bytes, args) {
                Err(Error::NameTaken) => {}
                Err(error) => return Err(Cause::call(format!("region {name}: cannot create it"))(error)),
                Ok(handle) => {
                    made = Some((name, handle));
                    break;
                }
            }
        }
        let (name, handle) = made.ok_or_else(|| {
            Cause::other(format!(
                "guest {guest:?}: all names for the region of memory backend {:?} are taken: end guests that are not needed any more",
                backend.id
            ))
        })?;
        names.push(name);
        handles.push(handle);
    }
    Ok((names, handles))
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

/// Starts QEMU from the command of `args`, with these regions as its memory. Without a command, QEMU exists already.
pub(super) fn start_qemu(
    args: &Receive,
    files: &Files,
    memory: &[Backend],
    regions: &[String],
    state_dir: &StateDir,
) -> Result<Qemu, Cause> {
    let paths: Vec<_> = memory
        .iter()
        .zip(regions)
        .map(|(backend, name)| (backend.id.clone(), files.path(name)))
        .collect();
    let words = command::fill_in(&args.command, &args.qmp, &paths)?;
    Ok(Qemu::start(&words, &state_dir.log("qemu.log")?, &state_dir.name())?)
}

/// Adds QEMU's exit status and last messages to `cause`, if QEMU has failed.
pub(super) fn explain_failure(cause: Cause, qemu: &mut Qemu) -> Cause {
    match qemu.failure() {
        None => cause,
        Some(failure) => Cause::other(format!("{}; {failure}", chain(&cause))),
    }
}
