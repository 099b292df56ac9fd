// SPDX-License-Identifier: GPL-2.0-or-later
//! Files and directories that are there whole, or not at all.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::Error;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(crate) enum Readers {
    Owner,
    Everybody,
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Write {
        path: path.to_owned(),
        source,
    }
}

/// A directory that gets its name when it is complete. Only its owner can look into it.
pub(crate) struct NewDirectory<'a> {
    name: &'a Path,
    unfinished: TempDir,
}

impl<'a> NewDirectory<'a> {
    /// [`Error::Exists`] if there is something with that name.
    pub(crate) fn new(name: &'a Path) -> Result<Self, Error> {
        if name.symlink_metadata().is_ok() {
            return Err(Error::Exists(name.to_owned()));
        }
        let mut builder = Builder::new();
        builder.prefix(".new-").permissions(Permissions::from_mode(0o700));
        let unfinished = builder.tempdir_in(parent(name)).map_err(failed(name))?;
        Ok(Self { name, unfinished })
    }

    /// Writes a file in it.
    pub(crate) fn put(&self, file: &str, text: &str, readers: Readers) -> Result<(), Error> {
        write(&self.unfinished.path().join(file), text, readers)
    }

    /// Gives it its name. [`Error::Exists`] if something has got that name meanwhile.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let renamed = match renameat_with(CWD, self.unfinished.path(), CWD, self.name, RenameFlags::NOREPLACE) {
            // NFS has no such rename. The ordinary one replaces an empty directory at most.
            Err(Errno::INVAL | Errno::NOSYS) => renameat(CWD, self.unfinished.path(), CWD, self.name),
            renamed => renamed,
        };
        renamed.map_err(|errno| match errno {
            Errno::EXIST | Errno::NOTEMPTY => Error::Exists(self.name.to_owned()),
            errno => failed(self.name)(errno.into()),
        })?;
        // It has another name now, so there is nothing to remove.
        let _ = self.unfinished.keep();
        sync(parent(self.name)).map_err(failed(self.name))
    }
}

/// Writes a file, or replaces it, in one step.
pub(crate) fn write(path: &Path, text: &str, readers: Readers) -> Result<(), Error> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    let written = (|| {
        let mut file: NamedTempFile = Builder::new().prefix(".new-").tempfile_in(parent(path))?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync(parent(path))
    })();
    written.map_err(failed(path))
}

fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}
