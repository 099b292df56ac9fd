// SPDX-License-Identifier: GPL-2.0

//! The directory of the file system: each region with a name is a file.

use super::{
    name::Name,
    registry::{
        self,
        NamedRegion,
        MAX_NODES, //
    }, //
};
use crate::sys::{
    file_system::{
        DirEntry,
        Directory,
        DirectoryTable,
        FileAttrs,
        FileChange,
        Totals, //
    },
    node::Access, //
};
use kernel::prelude::*;

/// The functions of the directory.
pub(crate) static DIRECTORY: DirectoryTable<NamedRegions> = DirectoryTable::new();

/// All regions with names. The number of a file is that of its region.
pub(crate) struct NamedRegions;

fn attrs_of(named: &NamedRegion, pages: u64) -> FileAttrs {
    let region = &named.region;
    let (atime_ns, mtime_ns, ctime_ns) = region.times.get();
    FileAttrs {
        id: region.id(),
        size: region.length(),
        pages,
        atime_ns,
        mtime_ns,
        ctime_ns,
        mode: named.access.mode,
        uid: named.access.uid,
        gid: named.access.gid,
    }
}

impl Directory for NamedRegions {
    fn find(name: &[u8]) -> Result<FileAttrs> {
        let name = Name::from_path(name).ok_or(ENOENT)?;
        Ok(attrs_of(&registry::look_up_name(name)?, 0))
    }

    fn attrs(id: u64) -> Result<FileAttrs> {
        let named = registry::look_up_id(id)?;
        let present = named.region.pages().counts().present;
        Ok(attrs_of(&named, present))
    }

    fn exists(id: u64) -> bool {
        registry::look_up_id(id).is_ok()
    }

    fn next(after: u64) -> Option<DirEntry> {
        let named = registry::next_named(after)?;
        Some(DirEntry {
            id: named.region.id(),
            name: named.name.to_field(),
        })
    }

    /// The size is fixed, and the mode has permission bits only.
    fn change(id: u64, change: &FileChange) -> Result {
        let named = registry::look_up_id(id)?;
        if change.size != named.region.length() || change.mode & !0o777 != 0 {
            return Err(EPERM);
        }
        registry::set_access(
            id,
            Access {
                mode: change.mode,
                uid: change.uid,
                gid: change.gid,
            },
        )?;
        named.region.times.set(
            (change.sets_atime != 0).then_some(change.atime_ns),
            (change.sets_mtime != 0).then_some(change.mtime_ns),
        );
        Ok(())
    }

    fn totals() -> Totals {
        let mut totals = Totals {
            pages: 0,
            present: 0,
            files: 0,
            free_files: u64::from(MAX_NODES),
        };
        let mut last = 0;
        while let Some(named) = registry::next_named(last) {
            last = named.region.id();
            totals.pages = totals.pages.saturating_add(named.region.pages().nr());
            totals.present = totals
                .present
                .saturating_add(named.region.pages().counts().present);
            totals.files = totals.files.saturating_add(1);
            totals.free_files = totals.free_files.saturating_sub(1);
        }
        totals
    }
}
