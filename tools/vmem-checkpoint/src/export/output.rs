// SPDX-License-Identifier: GPL-2.0-or-later
//! Files and directories that get their name when all of them is there.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::Error;

/// An output that is being written, beside its place and under another name. It is removed if it is not finished.
#[derive(Debug)]
pub(super) struct Output {
    unfinished: PathBuf,
    place: PathBuf,
    force: bool,
    /// Whether a directory of these files may be replaced by this one; `None` for a file.
    files: Option<Vec<String>>,
    is_finished: bool,
}

impl Output {
    /// Begins a file, for its owner only: memory holds secrets.
    pub(super) fn file(place: &Path, force: bool) -> Result<(Self, File), Error> {
        let output = Self::new(place, force, None)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&output.unfinished)
            .map_err(|error| output.failed(error))?;
        Ok((output, file))
    }

    /// Begins a directory that will have files of these names, for its owner only.
    pub(super) fn directory(place: &Path, force: bool, files: Vec<String>) -> Result<Self, Error> {
        let output = Self::new(place, force, Some(files))?;
        let made = DirBuilder::new().mode(0o700).create(&output.unfinished);
        made.map_err(|error| output.failed(error))?;
        Ok(output)
    }

    /// Checks that the place may be taken, before anything is written.
    fn new(place: &Path, force: bool, files: Option<Vec<String>>) -> Result<Self, Error> {
        let Some(name) = place.file_name() else {
            return Err(Error::other(format!(
                "{} has no name: give a file or directory to be made",
                place.display()
            )));
        };
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}.unfinished", std::process::id()));
        let mut output = Self {
            unfinished: place.with_file_name(unfinished),
            place: place.to_owned(),
            force,
            files,
            // There is nothing yet.
            is_finished: true,
        };
        output.check_place()?;
        output.is_finished = false;
        Ok(output)
    }

    /// A new file in the directory.
    pub(super) fn create(&self, name: &str) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        options.open(self.unfinished.join(name)).map_err(|error| self.failed(error))
    }

    /// For `map_err`: the output cannot be written.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        let what = format!("cannot write {}; nothing is left of it", self.place.display());
        vmem_cli::Error::call(what)(error).into()
    }

    /// Gives the output its name. The files of a directory were synced already.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.check_place()?;
        let replaced = self.rename().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists(),
            _ => self.failed(error),
        })?;
        self.is_finished = true;
        if replaced {
            // The old directory has the other name now.
            self.remove();
        }
        let above = self.place.parent().filter(|above| !above.as_os_str().is_empty());
        let synced = File::open(above.unwrap_or(Path::new("."))).and_then(|above| above.sync_all());
        synced.map_err(vmem_cli::Error::call(format!(
            "cannot sync the directory of {}",
            self.place.display()
        )))?;
        Ok(())
    }

    /// Renames, and says whether something else has the name of what was unfinished now.
    fn rename(&self) -> io::Result<bool> {
        if !self.force || !self.place.exists() {
            return match renameat_with(CWD, &self.unfinished, CWD, &self.place, RenameFlags::NOREPLACE) {
                // Not all file systems can; another program would have to take the name at this very moment.
                Err(rustix::io::Errno::INVAL) if !self.place.exists() => {
                    fs::rename(&self.unfinished, &self.place).map(|()| false)
                }
                renamed => Ok(renamed.map(|()| false)?),
            };
        }
        if self.files.is_none() {
            return fs::rename(&self.unfinished, &self.place).map(|()| false);
        }
        renameat_with(CWD, &self.unfinished, CWD, &self.place, RenameFlags::EXCHANGE)?;
        Ok(true)
    }

    fn exists(&self) -> Error {
        Error::other(format!("{} is there already: --force replaces it", self.place.display()))
    }

    /// Only what an export could have made is replaced: a mistyped path loses nothing.
    fn check_place(&self) -> Result<(), Error> {
        let found = match fs::symlink_metadata(&self.place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(|error| self.failed(error))?,
        };
        if !self.force {
            return Err(self.exists());
        }
        let other = |what: &str| Error::other(format!("{} {what}: it is not replaced", self.place.display()));
        let Some(files) = &self.files else {
            return match found.is_file() {
                true => Ok(()),
                false => Err(other("is no regular file")),
            };
        };
        if !found.is_dir() {
            return Err(other("is no directory"));
        }
        for entry in fs::read_dir(&self.place).map_err(|error| self.failed(error))? {
            let name = entry.map_err(|error| self.failed(error))?.file_name();
            let is_known = name
                .to_str()
                .is_some_and(|name| name.ends_with(".raw") || files.iter().any(|file| file == name));
            if !is_known {
                return Err(other(&format!("has {name:?}, which no export has made")));
            }
        }
        Ok(())
    }

    fn remove(&self) {
        let removed = match self.files {
            Some(_) => fs::remove_dir_all(&self.unfinished),
            None => fs::remove_file(&self.unfinished),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", self.unfinished.display());
            }
            _ => {}
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_finished {
            self.remove();
        }
    }
}
