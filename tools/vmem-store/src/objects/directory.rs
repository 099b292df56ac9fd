// SPDX-License-Identifier: GPL-2.0-or-later
//! Objects as files of a directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Fetched, ObjectError, ObjectMeta, Objects, Part, Put};
use crate::hex::to_hex;
use crate::names::CONFIG;
use crate::random::random;

/// A directory on a local or shared file system.
///
/// Directories are made for their owner only (0700), files too (0600): an image of memory holds secrets. A file is written under another
/// name in `tmp`, synced, and then linked or renamed; the directory is synced after it. `object_store`'s directory does neither modes nor
/// reads without a thread of their own, which a page fault would wait for.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// A store was found here: what is written belongs to it, and not into a directory that is there while the store's is not mounted.
    is_store: AtomicBool,
}

/// Where files are written before they get their name. No object's name begins so.
const UNFINISHED: &str = "tmp";

impl Directory {
    /// The objects in `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            is_store: AtomicBool::new(false),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, ObjectError> {
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !name.split('/').all(is_plain) {
            return Err(ObjectError::other(format!("{name:?} is no name of an object")));
        }
        Ok(self.root.join(name))
    }

    /// Checks that the store that was found here is here now.
    fn check_there(&self) -> Result<(), ObjectError> {
        match self.is_store.load(Ordering::Relaxed) && !self.root.join(CONFIG).try_exists()? {
            true => Err(ObjectError::Transient(Arc::from(
                Box::<dyn std::error::Error + Send + Sync>::from("the directory has no store any more (is it mounted?)"),
            ))),
            false => Ok(()),
        }
    }

    /// Makes a directory and those above it, each durable.
    fn make(path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) else {
                    return Err(error);
                };
                Self::make(above)?;
                match DirBuilder::new().mode(0o700).create(path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
            }
            made => made?,
        }
        match path.parent().filter(|above| !above.as_os_str().is_empty()) {
            Some(above) => File::open(above)?.sync_all(),
            None => Ok(()),
        }
    }

    fn write(&self, unfinished: &Path, path: &Path, bytes: &[u8], put: Put) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        let directory = path.parent().unwrap_or(&self.root);
        Self::make(directory)?;
        match put {
            Put::New => fs::hard_link(unfinished, path)?,
            Put::Replace => fs::rename(unfinished, path)?,
        }
        File::open(directory)?.sync_all()
    }

    fn walk(&self, directory: &Path, found: &mut Vec<ObjectMeta>) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let Some(name) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else {
                continue;
            };
            if name == UNFINISHED {
                continue;
            }
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                self.walk(&path, found)?;
            } else if metadata.is_file() {
                found.push(ObjectMeta {
                    name: name.to_owned(),
                    size: metadata.len(),
                    modified: metadata.modified()?,
                });
            }
        }
        Ok(())
    }
}

impl Objects for Directory {
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        self.check_there()?;
        let unfinished = self.root.join(UNFINISHED);
        let own = random::<16>().map_err(|error| ObjectError::Other(Arc::new(error)))?;
        Self::make(&self.root).and_then(|()| Self::make(&unfinished))?;
        let unfinished = unfinished.join(to_hex(&own));
        let written = self.write(&unfinished, &path, bytes, put);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", unfinished.display())
            }
            _ => {}
        }
        Ok(written?)
    }

    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError> {
        let file = File::open(self.path(name)?)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ObjectError::NotFound);
        }
        let size = metadata.len();
        let range = part.of(size)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(|_| ObjectError::NoSpace)?];
        file.read_exact_at(&mut bytes, range.start)?;
        if name == CONFIG {
            self.is_store.store(true, Ordering::Relaxed);
        }
        Ok(Fetched { bytes, size })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let directory = match prefix.rsplit_once('/') {
            Some((directory, _)) => self.path(directory)?,
            None => self.root.clone(),
        };
        let mut found = Vec::new();
        self.walk(&directory, &mut found)?;
        found.retain(|object| object.name.starts_with(prefix));
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        // What is removed later must not be gone before this is.
        Ok(File::open(path.parent().unwrap_or(&self.root))?.sync_all()?)
    }

    fn sweep(&self, age: Duration) -> Result<u64, ObjectError> {
        let entries = match fs::read_dir(self.root.join(UNFINISHED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            let is_old = |modified: std::time::SystemTime| modified.elapsed().is_ok_and(|passed| passed >= age);
            if entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(is_old) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn window(&self) -> u64 {
        0
    }
}

impl From<io::Error> for ObjectError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound | Kind::NotADirectory => Self::NotFound,
            Kind::AlreadyExists => Self::AlreadyExists,
            Kind::StorageFull | Kind::QuotaExceeded => Self::NoSpace,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Denied(Arc::new(error)),
            Kind::Interrupted | Kind::TimedOut | Kind::WouldBlock | Kind::StaleNetworkFileHandle => {
                Self::Transient(Arc::new(error))
            }
            _ => Self::Other(Arc::new(error)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directory_is_for_its_owner_only() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("a/b");
        let store = Directory::new(&root);
        store.put("packs/ab/x", b"secret", Put::New).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for directory in ["", "packs", "packs/ab", "tmp"] {
            assert_eq!(mode(root.join(directory)), 0o700, "{directory}");
        }
        assert_eq!(mode(root.join("packs/ab/x")), 0o600);
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_in_the_place_of_a_store_that_is_not_mounted() {
        let place = tempfile::tempdir().unwrap();
        let (root, away) = (place.path().join("store"), place.path().join("away"));
        let store = Directory::new(&root);
        store.put(CONFIG, b"config", Put::New).unwrap();
        store.get(CONFIG, Part::All(10)).unwrap();
        fs::rename(&root, &away).unwrap();
        fs::create_dir(&root).unwrap();
        let error = store.put("packs/ab/x", b"1", Put::New).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("mounted"), "{error}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        fs::remove_dir(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        store.put("packs/ab/x", b"1", Put::New).unwrap();
    }

    #[test]
    fn name_is_created_once_and_replaced_only_on_request() {
        let place = tempfile::tempdir().unwrap();
        let store = Directory::new(place.path());
        store.put("a/one", b"1", Put::New).unwrap();
        assert!(matches!(store.put("a/one", b"2", Put::New), Err(ObjectError::AlreadyExists)));
        assert_eq!(store.get("a/one", Part::All(10)).unwrap().bytes, b"1");
        store.put("a/one", b"22", Put::Replace).unwrap();
        assert_eq!(
            store.get("a/one", Part::Last(1)).unwrap(),
            Fetched {
                bytes: b"2".to_vec(),
                size: 2
            }
        );
        assert!(matches!(
            store.get("a/one", Part::All(1)),
            Err(ObjectError::TooLarge { size: 2, limit: 1 })
        ));
        assert!(matches!(
            store.get("a/one", Part::Bytes(1..4)),
            Err(ObjectError::Beyond { size: 2, end: 4 })
        ));
        store.delete("a/one").unwrap();
        store.delete("a/one").unwrap();
        assert!(matches!(store.get("a/one", Part::All(10)), Err(ObjectError::NotFound)));
    }

    #[test]
    fn list_has_names_below_the_prefix_in_order_and_no_unfinished_files() {
        let place = tempfile::tempdir().unwrap();
        let store = Directory::new(place.path());
        assert!(store.list("").unwrap().is_empty());
        for name in ["b/2", "b/1", "bc/3", "a"] {
            store.put(name, name.as_bytes(), Put::New).unwrap();
        }
        fs::write(place.path().join("tmp/left"), b"x").unwrap();
        let names = |prefix: &str| {
            store
                .list(prefix)
                .unwrap()
                .into_iter()
                .map(|meta| meta.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["a", "b/1", "b/2", "bc/3"]);
        assert_eq!(names("b/"), ["b/1", "b/2"]);
        assert_eq!(names("none/"), Vec::<String>::new());
        assert_eq!(store.sweep(Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.sweep(Duration::ZERO).unwrap(), 1);
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let place = tempfile::tempdir().unwrap();
        let store = Directory::new(place.path().join("root"));
        for name in ["../x", "a/../../x", "", "/x", "a//b"] {
            assert!(store.put(name, b"x", Put::Replace).is_err(), "{name:?}");
            assert!(store.get(name, Part::All(1)).is_err(), "{name:?}");
        }
    }
}
