// SPDX-License-Identifier: GPL-2.0-or-later
//! Where programs find regions as files, if they do.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::lstat;
use vmem_sys::Errno;

use crate::file_kind::FileKind;
use crate::{Error, FILES_DIRECTORY, MountError, mount, node_path};

/// The longest path of a directory of files, in bytes: so that paths of 1024 regions fit in one message.
const LONGEST: usize = 255;

/// Where the files of regions are to be. Its text form is the argument of `--files`: a directory, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FilesOption {
    /// Where the file system is mounted, [`FILES_DIRECTORY`] first. If it is mounted nowhere, it is mounted there.
    #[default]
    Anywhere,
    /// At this directory. If the file system is not mounted there, it is.
    At(PathBuf),
    /// Nowhere: programs are told the nodes.
    Nowhere,
}

/// Where programs find regions as files.
///
/// # Example
///
/// ```no_run
/// use vmem::{Files, FilesOption};
///
/// let files = Files::open(&FilesOption::default());
/// if let Some(error) = files.error() {
///     eprintln!("{error}; programs find regions in /dev/vmem");
/// }
/// println!("{}", files.path("guest0").display());
/// ```
#[derive(Debug)]
pub enum Files {
    /// In this directory, at which the file system is mounted.
    Mounted(PathBuf),
    /// Not in this directory, because of this error.
    NotMounted(PathBuf, MountError),
    /// They are not asked for.
    NotWanted,
}

impl FilesOption {
    /// The text form, for the command line of another program; `None` for what holds unless it is given.
    pub fn argument(&self) -> Option<String> {
        match self {
            Self::Anywhere => None,
            Self::At(directory) => Some(directory.display().to_string()),
            Self::Nowhere => Some("none".to_owned()),
        }
    }
}

impl FromStr for FilesOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        match is_usable(Path::new(text)) {
            true => Ok(Self::At(text.into())),
            false => Err(format!(
                "none, or an absolute path of at most {LONGEST} bytes without control characters and without .. in it"
            )),
        }
    }
}

impl Files {
    /// Finds the file system, or mounts it. If it can be neither found nor mounted, programs have the nodes.
    pub fn open(option: &FilesOption) -> Self {
        let (directory, elsewhere) = match option {
            FilesOption::Anywhere => (Path::new(FILES_DIRECTORY), true),
            FilesOption::At(directory) => (directory.as_path(), false),
            FilesOption::Nowhere => return Self::NotWanted,
        };
        if mount::is_mounted(directory) {
            return Self::Mounted(directory.to_owned());
        }
        if let Some(found) = elsewhere.then(|| mount::find(is_usable)).flatten() {
            return Self::Mounted(found);
        }
        match mount::mount(directory) {
            Ok(()) => Self::Mounted(directory.to_owned()),
            Err(error) => Self::NotMounted(directory.to_owned(), error),
        }
    }

    /// Why there are none although they were asked for.
    pub fn error(&self) -> Option<&MountError> {
        match self {
            Self::NotMounted(_, error) => Some(error),
            Self::Mounted(_) | Self::NotWanted => None,
        }
    }

    /// The path by which programs open the region with this name: its file, or else its node.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Mounted(directory) => directory.join(name),
            Self::NotMounted(..) | Self::NotWanted => node_path(name),
        }
    }

    /// Whether `path` is one by which programs open the region with this name: that of its file, or that of its node.
    pub fn is_path_of(&self, path: &Path, name: &str) -> bool {
        path == self.path(name) || path == node_path(name)
    }

    /// Makes sure that programs which open the file of the region with this name get that region: the one with the number `id`. Without a mount,
    /// another file at the path is found that a program made, which came too early.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignNode`]; [`Error::Open`] if nothing is there, or the caller may not look it up.
    pub fn check(&self, name: &str, id: u64) -> Result<(), Error> {
        let (directory, is_mounted) = match self {
            Self::Mounted(directory) => (directory, true),
            Self::NotMounted(directory, _) => (directory, false),
            Self::NotWanted => return Ok(()),
        };
        let path = directory.join(name);
        let found = match FileKind::at(&path) {
            Ok(FileKind::File(found)) if found == id => return Ok(()),
            Ok(FileKind::File(_)) => "the file of another region",
            Ok(FileKind::Node | FileKind::Call) => "another file",
            Ok(FileKind::Other(found)) => found,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) if !is_mounted && lstat(&path).is_err() => return Ok(()),
            Err(source) => return Err(Error::Open { path, source }),
        };
        Err(Error::ForeignNode { path, found })
    }
}

/// Whether a directory of this path can be told to others, in messages and command lines.
fn is_usable(directory: &Path) -> bool {
    let is_plain = |text: &str| text.len() <= LONGEST && !text.chars().any(char::is_control);
    let is_normal = |component: std::path::Component<'_>| !matches!(component, std::path::Component::ParentDir);
    directory.is_absolute() && directory.to_str().is_some_and(is_plain) && directory.components().all(is_normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_mounted(directory: &Path) -> Files {
        Files::NotMounted(directory.to_owned(), MountError::NotEmpty(directory.to_owned()))
    }

    #[test]
    fn option_is_none_or_an_absolute_directory() {
        let parse = |text: &str| text.parse::<FilesOption>();
        assert_eq!(parse("none"), Ok(FilesOption::Nowhere));
        assert_eq!(parse("/run/v"), Ok(FilesOption::At("/run/v".into())));
        for text in ["none", "/run/v"] {
            assert_eq!(parse(text).expect("an option").argument().as_deref(), Some(text));
        }
        assert_eq!(FilesOption::default().argument(), None);
        for text in ["", "run/vmem", "/run/../etc", "/a\nb", &format!("/{}", "x".repeat(LONGEST))] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn path_is_that_of_the_file_or_else_that_of_the_node() {
        let files = Files::Mounted("/run/v".into());
        assert_eq!(files.path("a"), Path::new("/run/v/a"));
        assert!(files.is_path_of(Path::new("/run/v/a"), "a") && files.is_path_of(Path::new("/dev/vmem/a"), "a"));
        assert!(!files.is_path_of(Path::new("/run/vmem/a"), "a") && !files.is_path_of(Path::new("/run/v/b"), "a"));
        for files in [Files::NotWanted, not_mounted(Path::new("/run/v"))] {
            assert_eq!(files.path("a"), Path::new("/dev/vmem/a"));
        }
    }

    #[test]
    fn file_that_is_no_region_is_found() {
        let directory = std::env::temp_dir().join(format!("vmem-files-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let check = |files: &Files| files.check("a", 1);
        let missing = (check(&Files::Mounted(directory.clone())), check(&not_mounted(&directory)));
        std::fs::write(directory.join("a"), "").expect("a file");
        let there = [Files::Mounted(directory.clone()), not_mounted(&directory)].map(|files| check(&files));
        let unwanted = check(&Files::NotWanted);
        std::fs::remove_dir_all(&directory).expect("the directory");
        assert!(
            matches!(
                missing,
                (
                    Err(Error::Open {
                        source: Errno::NOENT,
                        ..
                    }),
                    Ok(())
                )
            ),
            "{missing:?}"
        );
        for result in there {
            assert!(
                matches!(
                    result,
                    Err(Error::ForeignNode {
                        found: "a plain file",
                        ..
                    })
                ),
                "{result:?}"
            );
        }
        assert!(unwanted.is_ok());
    }
}
