// SPDX-License-Identifier: GPL-2.0-or-later
//! The mounts of the file system `vmem`, which shows each region with a name as a regular file.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, mkdir, stat};
use rustix::mount::MountFlags;
use vmem_sys::Errno;

use crate::file_kind::is_file_system;

/// The name of the file system type, and what `df` shows as its source.
const TYPE: &str = "vmem";

/// Why the file system is not mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory cannot be made or opened.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        source: Errno,
    },
    /// The directory is not empty.
    #[error("{} has files, which a mount would hide (records of an earlier vmemctl belong in /run/vmemctl): move them away, or name another directory with --files", .0.display())]
    NotEmpty(PathBuf),
    /// The kernel does not mount it.
    #[error("cannot mount the files of regions at {}{}", path.display(), hint(*source))]
    Mount {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        source: Errno,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => " (that takes CAP_SYS_ADMIN, and no container)",
        Errno::NODEV => " (the module is not loaded, or an older one)",
        _ => "",
    }
}

/// Whether programs find the files of regions in this directory: nothing else is mounted over them.
pub(crate) fn is_mounted(directory: &Path) -> bool {
    let is_directory = stat(directory).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    is_directory && is_file_system(directory)
}

/// The first directory, of those that `is_usable`, at which this process sees the file system, and which other users reach.
pub(crate) fn find(is_usable: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    mount_points(&String::from_utf8_lossy(&mounts))
        .into_iter()
        .find(|directory| is_usable(directory) && is_mounted(directory) && is_reachable(directory))
}

/// Mounts the file system at this directory, which is made if it is not there, unless another process does so first.
pub(crate) fn mount(directory: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Directory {
        path: directory.to_owned(),
        source,
    };
    match mkdir(directory, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).map_err(failed)?;
    if is_mounted(directory) {
        return Ok(());
    }
    // The very directory that was opened, whatever has its path meanwhile, and whatever is mounted there.
    let at = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let mut entries = fs::read_dir(&at).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(directory.to_owned()));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount(TYPE, at, TYPE, flags, None) {
        // Another process was faster: the kernel does not mount the file system over itself (EBUSY).
        Err(_) if is_mounted(directory) => Ok(()),
        mounted => mounted.map_err(|source| MountError::Mount {
            path: directory.to_owned(),
            source,
        }),
    }
}

/// Whether all users may look up what is in this directory.
fn is_reachable(directory: &Path) -> bool {
    let passes = |directory: &Path| stat(directory).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode).contains(Mode::XOTH));
    directory.ancestors().all(passes)
}

/// The directories at which all of the file system is mounted for writing, in the text of proc_pid_mountinfo(5), in its order.
fn mount_points(mounts: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        // A single file can be bound to another place.
        let root = fields.nth(3)?;
        let directory = fields.next()?;
        // The memory of a guest is written to.
        let is_writable = !fields.next()?.split(',').any(|option| option == "ro");
        (root == "/" && is_writable && file_system.split(' ').next() == Some(TYPE)).then(|| unescaped(directory))
    };
    mounts.lines().filter_map(of_line).collect()
}

/// A path of which blanks and backslashes are written as `\\` and three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let number = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_those_of_the_type_with_all_files() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 0:45 / /mnt/a\\040b rw,nosuid shared:1 - vmem vmem rw\n\
                      31 22 0:45 /guest0 /mnt/file rw - vmem vmem rw\n\
                      32 22 0:46 / /mnt/c rw - tmpfs vmem rw\n\
                      33 22 0:45 / /run/vmem rw - vmem none rw\n\
                      34 22 0:45 / /srv/read ro,relatime - vmem vmem rw\n\
                      nonsense\n";
        assert_eq!(mount_points(mounts), [Path::new("/mnt/a b"), Path::new("/run/vmem")]);
    }

    #[test]
    fn escapes_are_three_octal_digits() {
        for (escaped, path) in [
            ("/a\\134b", "/a\\b"),
            ("/\\011", "/\t"),
            ("/a\\04", "/a\\04"),
            ("/\\999", "/\\999"),
        ] {
            assert_eq!(unescaped(escaped), Path::new(path));
        }
    }

    #[test]
    fn directory_with_files_is_not_hidden() {
        let directory = std::env::temp_dir().join(format!("vmem-mount-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("record"), "").expect("a file");
        let result = mount(&directory);
        fs::remove_dir_all(&directory).expect("the directory");
        assert!(matches!(result, Err(MountError::NotEmpty(_))), "{result:?}");
    }

    #[test]
    fn directory_of_one_user_is_not_reachable() {
        let directory = std::env::temp_dir().join(format!("vmem-reach-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let mode = |bits| rustix::fs::chmod(&directory, Mode::from_raw_mode(bits)).expect("an own directory");
        mode(0o700);
        let closed = is_reachable(&directory);
        mode(0o711);
        let open = is_reachable(&directory);
        fs::remove_dir_all(&directory).expect("the directory");
        assert!(!closed && open);
        assert!(!is_mounted(Path::new("/")) && !is_mounted(Path::new("/proc/self/exe")));
    }
}
