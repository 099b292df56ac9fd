// SPDX-License-Identifier: GPL-2.0-or-later
//! The files of a guest's memory: those that QEMU has open, and not other files of the same names.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vmem::{MemoryFile, Name, ProcessMemory};
use vmem_process::Process;

use crate::error::Error;

/// A file, and what distinguishes it from others at its path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The number of the region whose node or file it is. QEMU may have the region open by another path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<u64>,
}

/// What distinguishes memory from all other that exists at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Identity {
    /// Number of a region.
    Region(u64),
    /// Device and inode of a file, or the number of a device.
    File(u64, u64),
}

impl BackendFile {
    /// The file that QEMU's process has open at `path`, as that process resolves it. A file that was put at the path later is refused.
    ///
    /// If nothing that QEMU has open is at the path, QEMU may have the file of a region there, in a mount that this process does not see, or that is
    /// not there any more. Then it is the node of the region, of which QEMU has a descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`], [`Error::File`].
    pub fn find(qemu: &Process, path: &Path) -> Result<Self, Error> {
        let pid = qemu.number();
        let process = PathBuf::from(format!("/proc/{pid}"));
        let failed = |path: &Path| io_of(path.to_owned());
        let directory = process.join("cwd");
        // An absolute path replaces the directory.
        let path = fs::read_link(&directory).map_err(failed(&directory))?.join(path);
        let found = fs::metadata(&path).map(|metadata| Self::of(&metadata, path.clone()));
        if let Ok(served) = &found {
            if !served.descriptors(pid)?.is_empty() {
                return Ok(served.clone());
            }
        }
        match (Self::of_hidden_region(pid, &path), found) {
            (Some(node), _) => Ok(node),
            (None, Ok(_)) => Err(Error::NotOpen { pid, path }),
            (None, Err(error)) => Err(failed(&path)(error)),
        }
    }

    /// The node of the region that the process has open by a file at this path, which only the process sees, or which was there.
    fn of_hidden_region(pid: i32, path: &Path) -> Option<Self> {
        let node = Name::new(path.file_name()?.to_str()?).ok()?.path();
        let served = Self::of(&fs::metadata(&node).ok()?, node);
        let region = served.region?;
        let is_at_path = match look_up_in(pid, path) {
            Ok(seen) => vmem::region_of(seen.as_fd()) == Some(region) && !served.descriptors(pid).ok()?.is_empty(),
            Err(Errno::NOENT) => {
                // The process may have opened it by links: the kernel says the path without them.
                let directory = path.parent().and_then(|directory| look_up_in(pid, directory).ok());
                let directory = directory.and_then(|seen| fs::read_link(format!("/proc/self/fd/{}", seen.as_raw_fd())).ok());
                let without_links = directory.and_then(|directory| Some(directory.join(path.file_name()?)));
                was_at(pid, without_links.as_deref().unwrap_or(path), region)
            }
            Err(_) => false,
        };
        is_at_path.then_some(served)
    }

    /// The numbers of the process's descriptors of the file or region. One that has just been closed does not count.
    fn descriptors(&self, pid: i32) -> Result<Vec<String>, Error> {
        if self.region.is_some() {
            let files = ProcessMemory::list(pid).unwrap_or_default().into_iter();
            let of_region = files.filter(|file| file.region.as_ref().map(|region| region.id) == self.region);
            return Ok(of_region.map(|file| file.fd.to_string()).collect());
        }
        let open = PathBuf::from(format!("/proc/{pid}/fd"));
        let files = fs::read_dir(&open).map_err(io_of(open))?.flatten();
        let of_file = files.filter(|file| fs::metadata(file.path()).is_ok_and(|metadata| self.is(&metadata)));
        Ok(of_file.map(|file| file.file_name().to_string_lossy().into_owned()).collect())
    }

    /// The path of the file, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether each descriptor that the process has of the file is one for reading.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`] if the process has none, [`Error::File`].
    pub fn is_read_only(&self, process: &Process) -> Result<bool, Error> {
        let pid = process.number();
        let (mut has_any, mut is_read_only) = (false, true);
        for descriptor in self.descriptors(pid)? {
            let path = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(descriptor);
            let info = fs::read_to_string(&path).map_err(io_of(path))?;
            has_any = true;
            is_read_only &= is_for_reading(&info);
        }
        match has_any {
            true => Ok(is_read_only),
            false => Err(Error::NotOpen {
                pid,
                path: self.path.clone(),
            }),
        }
    }

    fn of(metadata: &Metadata, path: PathBuf) -> Self {
        let (device, inode) = identity(metadata);
        let region = vmem::region_at(&path);
        Self {
            path,
            device,
            inode,
            region,
        }
    }

    fn identity(&self) -> Identity {
        match self.region {
            Some(region) => Identity::Region(region),
            None => Identity::File(self.device, self.inode),
        }
    }

    fn is(&self, metadata: &Metadata) -> bool {
        identity(metadata) == (self.device, self.inode)
    }

    /// Checks that `fd` is a descriptor of the file.
    ///
    /// # Errors
    ///
    /// [`Error::OtherFile`], [`Error::File`].
    pub fn check_descriptor(&self, fd: impl AsFd) -> Result<(), Error> {
        let found = identity_of(fd).map_err(io_of(self.path.clone()))?;
        if found == self.identity() {
            Ok(())
        } else {
            Err(Error::OtherFile(self.path.clone()))
        }
    }

    /// Checks that the file is still at its path.
    ///
    /// # Errors
    ///
    /// [`Error::OtherFile`], [`Error::File`].
    pub fn check(&self) -> Result<(), Error> {
        if self.region.is_some() {
            // Of a mount that is gone, the node is left.
            let node = || Some(vmem::node_path(self.path.file_name()?.to_str()?));
            let is_there = |path: &Path| vmem::region_at(path) == self.region;
            return match is_there(&self.path) || node().is_some_and(|node| is_there(&node)) {
                true => Ok(()),
                false => Err(Error::OtherFile(self.path.clone())),
            };
        }
        let metadata = fs::metadata(&self.path).map_err(io_of(self.path.clone()))?;
        if self.is(&metadata) {
            Ok(())
        } else {
            Err(Error::OtherFile(self.path.clone()))
        }
    }
}

/// What is at an absolute path where a process sees it, with links as that process resolves them: nothing of it is opened but the path.
fn look_up_in(pid: i32, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(format!("/proc/{pid}/root"), flags | OFlags::DIRECTORY, Mode::empty())?;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Whether the process has opened a file of this region, and no other file, at a path where nothing is any more. The kernel says the path of a
/// descriptor; after its mount is gone, it says the file's name alone.
fn was_at(pid: i32, path: &Path, region: u64) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let alone = path.file_name().map(|name| Path::new("/").join(name));
    let had_path = |descriptor: &Path| {
        let link = fs::read_link(descriptor).unwrap_or_default();
        let link = link.to_string_lossy();
        let link = Path::new(link.strip_suffix(" (deleted)").unwrap_or(&link));
        link == path || alone.as_deref() == Some(link)
    };
    let is_file = |descriptor: &Path| fs::metadata(descriptor).is_ok_and(|metadata| metadata.is_file());
    let regions = ProcessMemory::list(pid).unwrap_or_default();
    let is_region = |descriptor: &Path| {
        let is = |file: &MemoryFile| {
            descriptor.ends_with(file.fd.to_string()) && file.region.as_ref().is_some_and(|info| info.id == region)
        };
        regions.iter().any(is)
    };
    let mut candidates = descriptors
        .flatten()
        .map(|entry| entry.path())
        .filter(|descriptor| had_path(descriptor))
        .peekable();
    candidates.peek().is_some() && candidates.all(|descriptor| is_file(&descriptor) && is_region(&descriptor))
}

/// Whether a `/proc/PID/fdinfo/FD` is of a descriptor for reading alone.
fn is_for_reading(info: &str) -> bool {
    /// The bits of the flags that have the access mode (`O_ACCMODE`), of which none is set for `O_RDONLY`.
    const ACCESS_MODE: u32 = 0o3;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS_MODE == 0)
}

fn io_of(path: PathBuf) -> impl FnOnce(io::Error) -> Error {
    |source| Error::File { path, source }
}

/// What distinguishes the file of this descriptor from all others that exist at the same time.
pub(crate) fn identity_of(fd: impl AsFd) -> io::Result<Identity> {
    if let Some(region) = vmem::region_of(fd.as_fd()) {
        return Ok(Identity::Region(region));
    }
    let duplicate = File::from(fd.as_fd().try_clone_to_owned()?);
    let (device, inode) = identity(&duplicate.metadata()?);
    Ok(Identity::File(device, inode))
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
    use super::*;

    fn own() -> Process {
        Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process")
    }

    #[test]
    fn other_file_at_the_same_path_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        let own = own();
        let file = File::create(&path).expect("a file");
        let served = BackendFile::find(&own, &path).expect("it is open");
        served.check().expect("it is there");
        served.check_descriptor(&file).expect("the same file");
        let other = File::open("/dev/null").expect("a file");
        assert!(matches!(served.check_descriptor(&other), Err(Error::OtherFile(_))));
        let away = directory.path().join("away");
        fs::rename(&path, &away).expect("a file");
        assert!(served.check().is_err(), "nothing is there");
        fs::write(&path, "").expect("a file");
        assert!(served.check().is_err(), "another one is there");
        assert!(BackendFile::find(&own, &path).is_err(), "and is not open");
        drop(file);
        assert!(BackendFile::find(&own, &away).is_err(), "nor is this one any more");
    }

    #[test]
    fn identity_of_a_device_does_not_depend_on_its_node() {
        let identity = |path: &str| identity(&fs::metadata(path).expect("a device"));
        assert_eq!(identity("/dev/null"), identity("/proc/self/root/dev/null"));
        assert_ne!(identity("/dev/null"), identity("/dev/zero"));
        assert_eq!(identity("/dev/null").1, 0, "not of the node");
    }

    #[test]
    fn file_that_is_open_for_writing_too_is_not_read_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        fs::write(&path, "").expect("a file");
        let own = own();
        let _reader = File::open(&path).expect("a file");
        let served = BackendFile::find(&own, &path).expect("it is open");
        assert!(served.is_read_only(&own).expect("it is open"));
        let writer = File::options().write(true).open(&path).expect("a file");
        assert!(!served.is_read_only(&own).expect("it is open"));
        drop(writer);
        assert!(served.is_read_only(&own).expect("it is open"));
    }

    #[test]
    fn relative_path_is_resolved_in_the_process() {
        let own = own();
        let directory = std::env::current_dir().expect("a directory");
        let _open = File::open("Cargo.toml").expect("a file");
        let served = BackendFile::find(&own, Path::new("Cargo.toml")).expect("it is open");
        assert_eq!(served.path, directory.join("Cargo.toml"));
    }
}
