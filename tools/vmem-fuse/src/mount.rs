// SPDX-License-Identifier: GPL-2.0-or-later
//! Mounts a store, and unmounts it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use vmem_store::Store;
use vmem_store_source::Location;

use crate::error::MountError;
use crate::filesystem::FileSystem;
use crate::handles::Handles;
use crate::open_file::OpenFile;
use crate::view::View;
use crate::workers::Workers;

/// How long leases may take to be given back at the end. One that is not given back ends by itself.
const LINGER: Duration = Duration::from_secs(3);

/// How a store is mounted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a request may take. Its answer is EIO then.
    pub timeout: Duration,
    /// Says to a person who holds the leases on the checkpoints that are open.
    pub holder: String,
}

/// A store that is mounted.
pub struct Mounted {
    directory: PathBuf,
    /// The device number of the file system.
    device: u64,
    session: BackgroundSession,
    workers: Arc<Workers>,
    files: Arc<Handles<OpenFile>>,
}

impl Mounted {
    /// Mounts a store at a directory: read-only, for the user of this process only, without device files, set-user-ID bits and programs.
    ///
    /// # Errors
    ///
    /// [`MountError`]; nothing is mounted then.
    pub fn new(store: Store, location: Location, directory: &Path, options: &Options) -> Result<Self, MountError> {
        let directory = mount_point(directory, &location)?;
        let mut config = Config::default();
        config.acl = SessionACL::Owner;
        config.mount_options = vec![
            MountOption::FSName(source(&location)),
            MountOption::RO,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
        ];
        let workers = Arc::new(Workers::new(options.timeout).map_err(MountError::Threads)?);
        let files = Arc::new(Handles::default());
        let file_system = FileSystem {
            view: Arc::new(View::new(store, location, options.holder.clone())),
            workers: workers.clone(),
            files: files.clone(),
            directories: Arc::default(),
        };
        let mount = |source| MountError::Mount {
            path: directory.clone(),
            source,
        };
        let session = Session::new(file_system, &directory, &config).map_err(mount)?;
        let session = session.spawn().map_err(MountError::Threads)?;
        // This asks the file system: its thread answers.
        let device = fs::metadata(&directory).map_err(mount)?.dev();
        Ok(Self {
            directory,
            device,
            session,
            workers,
            files,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether somebody has unmounted it, and nobody uses it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts it, also if it is in use, and gives the leases back. Programs that have files open can read as long as this process lives.
    ///
    /// # Errors
    ///
    /// It cannot be unmounted, and is dead when this process has ended.
    pub fn end(self) -> Result<(), MountError> {
        let result = match is_mounted(&self.directory, self.device) {
            Ok(false) => Ok(()),
            Ok(true) => detach(&self.directory),
            Err(error) => Err(error),
        };
        for file in self.files.remove_all() {
            self.workers.later(move || drop(file));
        }
        self.workers.finish(LINGER);
        // Dropped, it would unmount the directory once more, and that could be the mount of somebody else by now.
        std::mem::forget(self.session);
        result.map_err(|source| MountError::Unmount {
            path: self.directory,
            source,
        })
    }
}

/// The directory, without symbolic links.
fn mount_point(directory: &Path, location: &Location) -> Result<PathBuf, MountError> {
    let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOTCONN) => MountError::Ended(directory.to_owned()),
        _ => MountError::Directory {
            path: directory.to_owned(),
            source,
        },
    };
    // Opened, because the kernel may know the attributes still of a file system whose program has ended.
    let metadata = File::open(directory).and_then(|opened| opened.metadata()).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(directory.to_owned()));
    }
    let directory = directory.canonicalize().map_err(failed)?;
    #[allow(irrefutable_let_patterns, reason = "stores in S3 are a feature")]
    if let Location::Directory(store) = location {
        let store = store.canonicalize().map_err(|source| MountError::Directory {
            path: store.clone(),
            source,
        })?;
        if store.starts_with(&directory) {
            return Err(MountError::OverStore { store, directory });
        }
    }
    Ok(directory)
}

/// What `mount` and `df` print as the source. A comma would begin another option.
fn source(location: &Location) -> String {
    let is_plain = |c: char| !c.is_control() && c != ',' && c != '\\';
    location
        .to_string()
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect()
}

/// Whether the topmost mount at a directory is that of this device.
fn is_mounted(directory: &Path, device: u64) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(topmost(&mounts, directory) == Some(format!("{}:{}", major(device), minor(device))))
}

/// The device of the last mount at a directory, in the text of proc_pid_mountinfo(5).
fn topmost(mounts: &str, directory: &Path) -> Option<String> {
    let mut escaped = String::new();
    for c in directory.to_str()?.chars() {
        match c {
            ' ' | '\t' | '\n' | '\\' | '#' => escaped.push_str(&format!("\\{:03o}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    let found = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        (fields.nth(1)? == escaped).then_some(device)
    });
    found.map(str::to_owned)
}

/// Takes the mount out of the tree of files. It ends when nobody uses it any more.
fn detach(directory: &Path) -> io::Result<()> {
    match unmount(directory, UnmountFlags::DETACH) {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    // Users other than root have a set-user-ID program for this.
    let status = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(directory)
        .stdin(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("fusermount3: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestStore;

    #[test]
    fn directory_must_be_one_and_must_not_hide_the_store() {
        let test = TestStore::new();
        let parent = test.directory.path();
        let free = parent.join("free");
        fs::create_dir(&free).expect("a directory");
        let link = parent.join("link");
        std::os::unix::fs::symlink(&free, &link).expect("a link");
        let found = mount_point(&link, &test.location).expect("a directory");
        assert_eq!(found, free.canonicalize().expect("a directory"));
        let bad = |path: &Path| mount_point(path, &test.location).expect_err("no place for a mount");
        assert!(matches!(bad(parent), MountError::OverStore { .. }));
        assert!(matches!(bad(&test.path()), MountError::OverStore { .. }));
        assert!(matches!(bad(&parent.join("none")), MountError::Directory { .. }));
        fs::write(parent.join("file"), "").expect("a file");
        assert!(matches!(bad(&parent.join("file")), MountError::NotDirectory(_)));
    }

    #[test]
    fn source_is_no_further_option() {
        let location: Location = "/srv/a,allow_other\\x".parse().expect("a place");
        assert_eq!(source(&location), "/srv/a_allow_other_x");
    }

    #[test]
    fn topmost_mount_of_a_directory_is_known() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 0:45 / /mnt/a\\040b ro shared:1 - fuse store ro\n\
                      31 22 0:46 / /mnt/c ro - fuse store ro\n\
                      32 31 0:47 / /mnt/c rw - tmpfs none rw\n";
        let of = |path: &str| topmost(mounts, Path::new(path));
        assert_eq!(of("/mnt/a b").as_deref(), Some("0:45"));
        assert_eq!(of("/mnt/c").as_deref(), Some("0:47"));
        assert_eq!(of("/mnt"), None);
    }
}
