// SPDX-License-Identifier: GPL-2.0-or-later
//! The file that a snapshot is written to. It appears at its path as a whole: until it is complete it has another name.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, remove_file, rename, symlink_metadata};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use vmem_cli::{Error, Signals};

/// The suffix of the file name until the file is complete.
const PARTIAL: &str = ".partial";

/// An incomplete image. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct PartialImage {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    force: bool,
    is_complete: bool,
}

impl PartialImage {
    /// Begins an image for `path`. With `force`, it replaces another file. Only the owner may read the image, because it contains the
    /// memory.
    pub(super) fn create(path: &Path, force: bool) -> Result<Self, Error> {
        if !force && symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
        let mut partial = OsString::from(path);
        partial.push(PARTIAL);
        let partial = PathBuf::from(partial);
        // Another vmemctl may be writing an image: an existing file is never taken over.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::other(format!(
                "{} exists: remove it, unless another vmemctl is writing it",
                partial.display()
            )),
            _ => cannot("create", &partial)(error),
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            partial,
            force,
            is_complete: false,
        })
    }

    /// Sets the length of the image, which is all holes then.
    pub(super) fn set_len(&self, size: u64) -> Result<(), Error> {
        self.file.set_len(size).map_err(cannot("write to", &self.partial))
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(cannot("write to", &self.partial))
    }

    /// Completes the image: writes it to the disk, and gives it its name. A signal ends the wait for the disk.
    pub(super) fn finish(mut self, signals: &Signals) -> Result<(), Error> {
        let file = self.file.try_clone().map_err(cannot("write to", &self.partial))?;
        signals
            .unless(move || file.sync_all())?
            .map_err(cannot("write to", &self.partial))?;
        match self.rename() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&self.path)),
            renamed => renamed.map_err(cannot("create", &self.path))?,
        }
        self.is_complete = true;
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(cannot("write to", directory))
    }

    fn rename(&self) -> io::Result<()> {
        if self.force {
            return rename(&self.partial, &self.path);
        }
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE) {
            // Some file systems cannot rename without replacing. Whether the file exists was also checked in the beginning.
            Err(Errno::INVAL) if symlink_metadata(&self.path).is_err() => rename(&self.partial, &self.path),
            Err(Errno::INVAL) => Err(Errno::EXIST.into()),
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for PartialImage {
    fn drop(&mut self) {
        // A complete image no longer has this name, and another image may have it by now.
        if !self.is_complete {
            let _ = remove_file(&self.partial);
        }
    }
}

fn cannot(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    Error::call(format!("cannot {what} {}", path.display()))
}

fn exists(path: &Path) -> Error {
    Error::other(format!("{} exists: --force replaces it", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{metadata, read, read_dir, write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn complete(path: &Path, force: bool, bytes: &[u8]) -> Result<(), Error> {
        let image = PartialImage::create(path, force)?;
        image.set_len(8192)?;
        image.write_at(bytes, 4096)?;
        assert!(!path.exists() || force, "it is there before it is complete");
        image.finish(&Signals::default())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = read_dir(directory).expect("a directory").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn image_appears_when_it_is_complete() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        complete(&path, false, b"vmem").expect("an image");
        let bytes = read(&path).expect("the image");
        assert_eq!((bytes.len(), &bytes[4096..4100]), (8192, &b"vmem"[..]));
        let metadata = metadata(&path).expect("the image");
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn existing_file_is_replaced_only_by_force() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        write(&path, "old").expect("a file");
        assert!(complete(&path, false, b"new").is_err());
        assert_eq!(read(&path).expect("a file"), b"old");
        complete(&path, true, b"new").expect("an image");
        assert_eq!(&read(&path).expect("a file")[4096..4099], b"new");
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn file_that_appears_meanwhile_is_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let image = PartialImage::create(&path, false).expect("a file");
        write(&path, "other").expect("a file");
        assert!(image.finish(&Signals::default()).is_err());
        assert_eq!(read(&path).expect("a file"), b"other");
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn dropped_image_leaves_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        drop(PartialImage::create(&path, false).expect("a file"));
        let image = PartialImage::create(&path, false).expect("a file");
        let signals = Signals::default();
        signals.raise();
        assert!(matches!(image.finish(&signals), Err(Error::Stopped(_))));
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn second_writer_of_an_image_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let first = PartialImage::create(&path, true).expect("a file");
        assert!(PartialImage::create(&path, true).is_err());
        // Another image may begin once this one has its name.
        first.finish(&Signals::default()).expect("an image");
        PartialImage::create(&path, true).expect("a file");
    }
}
