// SPDX-License-Identifier: GPL-2.0
//! The files that vmemd serves. They must be those that QEMU has open as the guest's memory, and not other files of the same names.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A file is not, or is no longer, the guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("QEMU (process {pid}) does not have {} open: what is there now is not the guest's memory", path.display())]
    NotOpen { pid: i32, path: PathBuf },
    #[error("{} is another file now, and not the guest's memory", .0.display())]
    Other(PathBuf),
}

/// A file, and what distinguishes it from others at its path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ServedFile {
    pub(crate) path: PathBuf,
    device: u64,
    inode: u64,
}

impl ServedFile {
    /// The file that process `pid` has open at `path`, as that process resolves it. A file that was put at the path later is refused.
    pub(crate) fn find(pid: i32, path: &Path) -> Result<Self, ServedError> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let failed = |path: &Path| io_of(path.to_owned());
        let directory = process.join("cwd");
        // An absolute path replaces the directory.
        let path = fs::read_link(&directory).map_err(failed(&directory))?.join(path);
        let served = Self::of(&fs::metadata(&path).map_err(failed(&path))?, path.clone());
        let open = process.join("fd");
        let mut files = fs::read_dir(&open).map_err(failed(&open))?.flatten();
        // A file that has just been closed does not count.
        if files.any(|file| fs::metadata(file.path()).is_ok_and(|metadata| served.is(&metadata))) {
            Ok(served)
        } else {
            let path = served.path;
            Err(ServedError::NotOpen { pid, path })
        }
    }

    fn of(metadata: &Metadata, path: PathBuf) -> Self {
        let (device, inode) = identity(metadata);
        Self { path, device, inode }
    }

    fn is(&self, metadata: &Metadata) -> bool {
        identity(metadata) == (self.device, self.inode)
    }

    /// Returns an error if another file is at this path now.
    pub(crate) fn check(&self) -> Result<(), ServedError> {
        let metadata = fs::metadata(&self.path).map_err(io_of(self.path.clone()))?;
        if self.is(&metadata) {
            Ok(())
        } else {
            Err(ServedError::Other(self.path.clone()))
        }
    }
}

fn io_of(path: PathBuf) -> impl FnOnce(io::Error) -> ServedError {
    |source| ServedError::Io { path, source }
}

/// What distinguishes a file from all others that exist at the same time.
fn identity(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_char_device() {
        // For a region, QEMU may use another node of the same device, in a /dev of its own. So the device number counts, and not the inode.
        (metadata.rdev(), 0)
    } else {
        (metadata.dev(), metadata.ino())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn other_file_at_the_same_path_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        let own = i32::try_from(std::process::id()).expect("a number");
        let file = File::create(&path).expect("a file");
        let served = ServedFile::find(own, &path).expect("it is open");
        served.check().expect("it is there");
        let away = directory.path().join("away");
        fs::rename(&path, &away).expect("a file");
        assert!(served.check().is_err(), "nothing is there");
        fs::write(&path, "").expect("a file");
        assert!(served.check().is_err(), "another one is there");
        assert!(ServedFile::find(own, &path).is_err(), "and is not open");
        drop(file);
        assert!(ServedFile::find(own, &away).is_err(), "nor is this one any more");
    }

    #[test]
    fn identity_of_a_device_does_not_depend_on_its_node() {
        let identity = |path: &str| identity(&fs::metadata(path).expect("a device"));
        assert_eq!(identity("/dev/null"), identity("/proc/self/root/dev/null"));
        assert_ne!(identity("/dev/null"), identity("/dev/zero"));
        assert_eq!(identity("/dev/null").1, 0, "not of the node");
    }

    #[test]
    fn relative_path_is_resolved_in_the_process() {
        let own = i32::try_from(std::process::id()).expect("a number");
        let directory = std::env::current_dir().expect("a directory");
        let _open = File::open("Cargo.toml").expect("a file");
        let served = ServedFile::find(own, Path::new("Cargo.toml")).expect("it is open");
        assert_eq!(served.path, directory.join("Cargo.toml"));
    }
}
