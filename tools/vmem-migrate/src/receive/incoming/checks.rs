// SPDX-License-Identifier: GPL-2.0-or-later
//! Checks of the memory that QEMU reports. QEMU's paths are not trusted.

use std::path::Path;

use vmem::{Access, DIRECTORY, FILES_DIRECTORY, MapHandle, Name};
use vmem_qemu::MemoryBackend;

use crate::error::Cause;
use crate::message::Backend;

/// The region of each offered backend, as QEMU reports it.
pub(super) fn match_memory(offered: &[Backend], found: &[MemoryBackend]) -> Result<Vec<String>, Cause> {
    let mut names = Vec::new();
    for backend in offered {
        let id = &backend.id;
        let memory = found.iter().find(|memory| memory.id == *id);
        let memory = memory.ok_or_else(|| {
            Cause::other(format!(
                "QEMU here has no memory backend {id:?}: give it the backends that the source's QEMU has"
            ))
        })?;
        if memory.bytes != backend.bytes {
            return Err(Cause::other(format!(
                "memory backend {id} has {} bytes here and {} at the source",
                memory.bytes, backend.bytes
            )));
        }
        let not_region = || {
            Cause::other(format!(
                "memory backend {id} is in {}, which is no region: use mem-path={FILES_DIRECTORY}/NAME",
                memory.path.display()
            ))
        };
        names.push(region_name(&memory.path).ok_or_else(not_region)?.to_string());
    }
    if offered.len() == found.len() {
        Ok(names)
    } else {
        Err(Cause::other("QEMU here has more memory backends than at the source"))
    }
}

/// The name of the region at a path of QEMU: of its node, or of its file. QEMU may have the file in a mount that this process does not see.
fn region_name(path: &Path) -> Option<Name> {
    let hidden = || {
        let name = Name::new(path.file_name()?.to_str()?).ok()?;
        let exists = MapHandle::open(name.as_str(), Access::ReadOnly).is_ok();
        (exists && !path.exists()).then_some(name)
    };
    vmem::region_name(path).or_else(hidden)
}

/// Refuses a region that QEMU has not mapped, or that is not empty. QEMU's path may be that of another file: QEMU may have another
/// /dev or /run, or a file may have been made at this path before the region existed. Pages that are present in a region already are not this
/// guest's.
pub(super) fn check_region(name: &str) -> Result<(), Cause> {
    let info = MapHandle::open(name, Access::ReadOnly).and_then(|handle| handle.info());
    let info = info.map_err(Cause::call(format!("region {name}: cannot read its state")))?;
    if info.mappings == 0 {
        Err(Cause::other(format!(
            "region {name}: QEMU has mapped another file of that path: give QEMU the {DIRECTORY} or {FILES_DIRECTORY} of this host"
        )))
    } else if info.plain || info.present != 0 || info.unreadable != 0 {
        Err(Cause::other(format!(
            "region {name} is not empty: it has pages of another guest; use a new region"
        )))
    } else {
        Ok(())
    }
}
