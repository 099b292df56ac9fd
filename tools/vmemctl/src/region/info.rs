// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl region info`: shows one region, or shared memory of a process.

use vmem::{Access, Control, Descriptor, Info, MapHandle, MemoryFile, PAGE_SIZE, ProcessMemory};
use vmem_cli::{Error, chain};

use super::line::{Counters, Holder, RegionLine};
use super::{adoption, figures_of, holders, out, shown, state};
use crate::cli::RegionInfo;
use crate::memory_of::MemoryOf;

/// A line: its title and its text.
type Line = (&'static str, String);

/// Shows the memory that the command line names.
pub(super) fn run(args: &RegionInfo, json: bool) -> Result<(), Error> {
    match (&args.memory.name, &args.memory.of_process) {
        (Some(name), _) => of_region(name, json),
        (None, Some(memory)) => of_memory(memory, json),
        (None, None) => Err(Error::other("neither NAME nor --pid and --memory")),
    }
}

fn of_region(name: &str, json: bool) -> Result<(), Error> {
    let failed = || Error::call(format!("region {name}"));
    let handle = MapHandle::open(name, Access::ReadOnly).map_err(failed())?;
    let info = handle.info().map_err(failed())?;
    drop(handle);
    let all = vmem::descriptors();
    let open: Vec<&Descriptor> = all.iter().filter(|descriptor| descriptor.memory.id() == info.id).collect();
    let figures = figures_of(open.iter().copied());
    if json {
        out(&super::json(&RegionLine::Region {
            name,
            tracked: figures.is_some_and(|figures| figures.tracked),
            holders: open.into_iter().map(Holder::of).collect(),
            counters: Counters::of(&info),
        }));
        return Ok(());
    }
    print(&[("name", name.to_owned())]);
    print(&lines_of_region(&info));
    let log = figures.map_or("-".to_owned(), |figures| match figures.tracked {
        true => format!("tracked, {} pages are in the log", figures.dirty),
        false => adoption(figures).word().to_owned(),
    });
    print(&[("log", log), ("open by", holders(open.into_iter()))]);
    Ok(())
}

/// State and counters, for users.
fn lines_of_region(info: &Info) -> [Line; 11] {
    [
        ("number", info.id.to_string()),
        ("size", size(info.size)),
        ("state", state(info).word().to_owned()),
        ("present", format!("{} pages", info.present)),
        ("unreadable", format!("{} pages", info.unreadable)),
        (
            "requested",
            format!("{} pages, of which {} are not taken", info.requested, info.queued),
        ),
        (
            "waiters",
            format!(
                "{} threads, the longest for {:.3} s",
                info.waiters,
                info.oldest_wait.as_secs_f64()
            ),
        ),
        ("faults", info.faults.to_string()),
        ("requests", info.requests.to_string()),
        ("SIGBUS", info.sigbus.to_string()),
        ("mappings", info.mappings.to_string()),
    ]
}

fn of_memory(args: &MemoryOf, json: bool) -> Result<(), Error> {
    let memory = ProcessMemory::open(args.pid, &args.memory).map_err(Error::call("cannot find the memory"))?;
    let control = Control::open().map_err(Error::call(vmem_cli::NO_MODULE))?;
    // Adopting does not change the memory. It ends when this is dropped.
    let obstacle = control.adopt(&memory).err();
    let file = memory.file();
    if json {
        out(&super::json(&RegionLine::Memory {
            pid: args.pid,
            fd: file.fd,
            path: file.path.to_string_lossy(),
            bytes: file.size,
            allocated_bytes: file.allocated,
            region: file.region.as_ref().map(Counters::of),
            obstacle: obstacle.as_ref().map(|error| chain(error)),
        }));
        return Ok(());
    }
    print(&lines_of_file(args.pid, file));
    print(&[("tracking", tracking(obstacle.as_ref()))]);
    Ok(())
}

fn lines_of_file(pid: i32, file: &MemoryFile) -> Vec<Line> {
    let mut lines = vec![
        ("path", shown(&file.path)),
        ("process", format!("{pid}, descriptor {}", file.fd)),
    ];
    match &file.region {
        Some(info) => lines.extend(lines_of_region(info)),
        None => lines.extend([("size", size(file.size)), ("allocated", vmem_cli::bytes(file.allocated))]),
    }
    lines
}

/// Whether memory can be tracked.
fn tracking(obstacle: Option<&vmem::Error>) -> String {
    obstacle.map_or("possible".to_owned(), |error| format!("not possible: {}", chain(error)))
}

fn size(bytes: u64) -> String {
    format!("{} in {} pages", vmem_cli::bytes(bytes), bytes.div_ceil(PAGE_SIZE as u64))
}

fn print(lines: &[(&str, String)]) {
    for (name, value) in lines {
        out(&format!("{name:<12}{value}"));
    }
}
