// SPDX-License-Identifier: GPL-2.0
//! `vmemctl region info`: one region, or shared memory that a process has.

use indicatif::BinaryBytes;
use serde_json::json;
use vmem::{Access, Control, Descriptor, Error, Info, MapHandle, MemoryFile, PAGE_SIZE, ProcessMemory};
use vmem_cli::chain;

use super::{NO_MODULE, holders, out, shown, state};
use crate::cli::{MemoryOf, RegionInfo};
use crate::failure::{Failure, Trouble};

/// Prints what the command line names.
pub(super) fn run(args: &RegionInfo, json: bool) -> Result<(), Failure> {
    match (&args.name, &args.memory) {
        (Some(name), _) => of_region(name, json),
        (None, Some(memory)) => of_memory(memory, json),
        (None, None) => Err(Trouble::other("neither NAME nor --pid and --memory").into()),
    }
}

fn of_region(name: &str, json: bool) -> Result<(), Failure> {
    let failed = || Trouble::vmem(format!("region {name}"));
    let handle = MapHandle::open(name, Access::ReadOnly).map_err(failed())?;
    let info = handle.info().map_err(failed())?;
    drop(handle);
    let all = vmem::descriptors();
    let open: Vec<&Descriptor> = all.iter().filter(|descriptor| descriptor.memory.id() == info.id).collect();
    if json {
        let open: Vec<_> = open
            .iter()
            .map(|holder| json!({"pid": holder.pid, "command": holder.command, "fd": holder.fd}))
            .collect();
        let mut line = json_of(name, &info);
        line["holders"] = open.into();
        out(&line.to_string());
    } else {
        print(&[
            ("name", name.to_owned()),
            ("number", info.id.to_string()),
            (
                "size",
                format!("{} in {} pages", BinaryBytes(info.size), info.size / PAGE_SIZE as u64),
            ),
            ("state", state(&info).to_owned()),
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
            ("open by", holders(open.into_iter())),
        ]);
    }
    Ok(())
}

fn json_of(name: &str, info: &Info) -> serde_json::Value {
    json!({
        "event": "region",
        "name": name,
        "id": info.id,
        "bytes": info.size,
        "state": state(info),
        "present": info.present,
        "unreadable": info.unreadable,
        "requested": info.requested,
        "queued": info.queued,
        "waiters": info.waiters,
        "oldest_wait_seconds": info.oldest_wait.as_secs_f64(),
        "faults": info.faults,
        "requests": info.requests,
        "sigbus": info.sigbus,
        "mappings": info.mappings,
    })
}

fn of_memory(args: &MemoryOf, json: bool) -> Result<(), Failure> {
    let memory = ProcessMemory::open(args.pid, &args.memory).map_err(Trouble::vmem("cannot find the memory"))?;
    let control = Control::open().map_err(Trouble::vmem(NO_MODULE))?;
    // Nothing about the memory changes by this, and it is adopted no more when this is dropped.
    let obstacle = control.adopt(&memory).err();
    let file = memory.file();
    if json {
        out(&json!({
            "event": "memory",
            "pid": args.pid,
            "fd": file.fd,
            "path": file.path,
            "bytes": file.size,
            "allocated_bytes": file.allocated,
            "obstacle": obstacle.as_ref().map(|error| chain(error)),
        })
        .to_string());
        return Ok(());
    }
    print(&lines_of(args.pid, file, obstacle.as_ref()));
    Ok(())
}

fn lines_of(pid: i32, file: &MemoryFile, obstacle: Option<&Error>) -> [(&'static str, String); 5] {
    let possible = obstacle.map_or("possible".to_owned(), |error| format!("not possible: {}", chain(error)));
    [
        ("path", shown(&file.path)),
        ("process", format!("{pid}, descriptor {}", file.fd)),
        (
            "size",
            format!("{} in {} pages", BinaryBytes(file.size), file.size.div_ceil(PAGE_SIZE as u64)),
        ),
        ("allocated", BinaryBytes(file.allocated).to_string()),
        ("tracking", possible),
    ]
}

fn print(lines: &[(&str, String)]) {
    for (name, value) in lines {
        out(&format!("{name:<12}{value}"));
    }
}
