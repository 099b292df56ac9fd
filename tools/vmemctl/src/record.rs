// SPDX-License-Identifier: GPL-2.0
//! What is known of a migration, in a file: whoever takes it up after a death reads it.
//!
//! A file for each guest and side, in a directory that a reboot empties, as it empties the memory that the file speaks of.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guest::Settings;
use crate::message::Backend;
use crate::migrate::served::Served;
use crate::name::clean;
use crate::process::Identity;

/// Where records are, unless told.
pub(crate) const DIRECTORY: &str = "/run/vmem";

/// Where logs are if records are in [`DIRECTORY`], and where in the directory of the records if not.
const LOGS: &str = "/var/log/vmem";
const LOGS_BESIDE: &str = "log";

/// A record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no record of a migration", .0.display())]
    Foreign(PathBuf),
    #[error("another vmemctl is at work on this guest ({})", .0.display())]
    Busy(PathBuf),
}

/// How far a migration has come. What has been recorded has happened, or is about to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The guest is the source's.
    Prepared,
    /// The guest is the destination's, whether it runs there already or not.
    Committed,
    /// QEMU was told to run it, or is about to be: it may have run. At the destination only.
    Starting,
    /// It runs there.
    Running,
    /// Its memory is there, too, and the source has to hear that. At the destination only.
    Complete,
    /// It has not run at the destination and never will, and the source has to hear that. At the destination only.
    Failed,
}

/// What the source knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    pub(crate) session: String,
    pub(crate) guest: String,
    pub(crate) phase: Phase,
    /// QEMU's socket.
    pub(crate) qmp: PathBuf,
    /// Where the destination's vmemctl listens.
    pub(crate) to: String,
    /// The arguments of the source's vmemd, with the port that it got.
    pub(crate) vmemd: Vec<String>,
    /// The files of its memory.
    pub(crate) served: Vec<Served>,
    /// The guest ran when it was asked to move.
    pub(crate) run: bool,
    /// QEMU's, before they were changed.
    pub(crate) settings: Option<Settings>,
}

/// What the destination knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Incoming {
    pub(crate) session: String,
    pub(crate) guest: String,
    pub(crate) phase: Phase,
    /// QEMU's socket.
    pub(crate) qmp: PathBuf,
    /// What this host's QEMU calls the guest.
    pub(crate) name: String,
    pub(crate) memory: Vec<Backend>,
    /// Where that is here.
    pub(crate) regions: Vec<String>,
    /// The kernel's number of each of these regions: another region of the same name has another.
    #[serde(default)]
    pub(crate) region_ids: Vec<u64>,
    /// QEMU's process, if that is known.
    #[serde(default)]
    pub(crate) qemu: Option<Identity>,
    /// The arguments of the destination's vmemd when it takes up what another one has begun.
    pub(crate) vmemd: Vec<String>,
    /// The guest shall run, once it is here.
    pub(crate) run: bool,
    /// QEMU's, before they were changed; until they are put back.
    pub(crate) settings: Option<Settings>,
    /// Why it has failed.
    pub(crate) reason: Option<String>,
}

/// Where the record of a guest is, and other files about it. One process at a time has it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    /// Held as long as this or a clone of it is.
    _lock: Arc<File>,
}

impl Place {
    /// The directory `under`/`side`.`guest`, which is made if it is not there.
    pub(crate) fn new(under: &Path, side: &str, guest: &str) -> Result<Self, RecordError> {
        let directory = under.join(format!("{side}.{}", clean(guest, usize::MAX)));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        // With the number of a migration, anybody could say COMMIT or ABORT.
        let made = made.and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)));
        made.map_err(|source| io_of(&directory, source))?;
        Self::lock(directory)
    }

    fn lock(directory: PathBuf) -> Result<Self, RecordError> {
        let path = directory.join("lock");
        let failed = |source| io_of(&path, source);
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Whoever had it may have removed it with all else, between these two calls.
                let (held, there) = (file.metadata().map_err(failed)?, fs::metadata(&path).map_err(failed)?);
                if held.ino() != there.ino() {
                    return Err(RecordError::Busy(directory));
                }
                Ok(Self {
                    directory,
                    _lock: Arc::new(file),
                })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RecordError::Busy(directory)),
            Err(error) => Err(io_of(&path, error.into())),
        }
    }

    /// All of `side` below `under` that have a record, and nobody at work on them.
    pub(crate) fn all(under: &Path, side: &str) -> Result<Vec<Self>, RecordError> {
        let prefix = format!("{side}.");
        let entries = match fs::read_dir(under) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| io_of(under, source))?,
        };
        let mut free = Vec::new();
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) && entry.path().join("record").exists() {
                match Self::lock(entry.path()) {
                    Ok(place) => free.push(place),
                    Err(RecordError::Busy(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(free)
    }

    /// Those of [`all`](Self::all) whose record `is` one. One that cannot be read matters only if there is no such record.
    pub(crate) fn find<T: DeserializeOwned>(
        under: &Path,
        side: &str,
        is: impl Fn(&T) -> bool,
    ) -> Result<Vec<(Self, T)>, RecordError> {
        let mut found = Vec::new();
        let mut unreadable = None;
        for place in Self::all(under, side)? {
            match place.read::<T>() {
                Ok(Some(record)) if is(&record) => found.push((place, record)),
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A file for what a program says, which stays when the migration is over: QEMU and vmemd live on, and why something has failed is
    /// asked later.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf, RecordError> {
        let under = self.directory.parent().unwrap_or(&self.directory);
        let beside = under.join(LOGS_BESIDE);
        let wanted = if under == Path::new(DIRECTORY) {
            PathBuf::from(LOGS)
        } else {
            beside.clone()
        };
        let make = |directory: &Path| DirBuilder::new().recursive(true).mode(0o700).create(directory);
        // A host whose /var cannot be written to can have guests.
        let logs = match make(&wanted) {
            Ok(()) => wanted,
            Err(_) => {
                make(&beside).map_err(|source| io_of(&beside, source))?;
                beside
            }
        };
        let guest = self.directory.file_name().unwrap_or_default().to_string_lossy();
        Ok(logs.join(format!("{guest}.{name}")))
    }

    /// Replaces the record: at any moment the old one is there, or the new one.
    pub(crate) fn write(&self, record: &impl Serialize) -> Result<(), RecordError> {
        let (path, new) = (self.path("record"), self.path("record.new"));
        let text = serde_json::to_vec_pretty(record).map_err(|error| io_of(&path, error.into()))?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| io_of(&path, source))
    }

    /// The record, if there is one.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, RecordError> {
        let path = self.path("record");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|_| RecordError::Foreign(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_of(&path, source)),
        }
    }

    /// The migration is over.
    pub(crate) fn remove(&self) {
        // What stays is replaced by the next one.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn io_of(path: &Path, source: io::Error) -> RecordError {
    RecordError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_record_is_read() {
        let under = tempfile::tempdir().expect("a directory");
        let place = Place::new(under.path(), "out", "../a guest").expect("a place");
        assert_eq!(place.read::<Phase>().expect("nothing"), None);
        let mode = fs::metadata(&place.directory).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else can read the session");
        place.write(&Phase::Prepared).expect("a record");
        place.write(&Phase::Committed).expect("a record");
        assert_eq!(place.read().expect("a record"), Some(Phase::Committed));
        let again = Place::new(under.path(), "out", "../a guest");
        assert!(matches!(again, Err(RecordError::Busy(_))), "one at a time");
        let path = place.path("record");
        drop(place);
        let all = |side| Place::all(under.path(), side).expect("a directory");
        assert_eq!(all("out")[0].read().expect("a record"), Some(Phase::Committed));
        assert!(all("in").is_empty());
        let other = Place::new(under.path(), "out", "b").expect("a place");
        assert_eq!(all("out").len(), 1, "one without a record is none");
        other.write(&Phase::Running).expect("a record");
        assert_eq!(all("out").len(), 1, "somebody is at work on it");
        drop(other);
        let mut both = all("out");
        assert_eq!(both.len(), 2);
        both.drain(..)
            .filter(|place| place.read().is_ok_and(|phase| phase == Some(Phase::Running)))
            .for_each(|place| place.remove());
        assert_eq!(all("out").len(), 1);
        fs::write(path, "no record").expect("a file");
        assert!(matches!(all("out")[0].read::<Phase>(), Err(RecordError::Foreign(_))));
        let find = |wanted| Place::find(under.path(), "out", move |phase: &Phase| *phase == wanted);
        assert!(
            matches!(find(Phase::Running), Err(RecordError::Foreign(_))),
            "it may be that one"
        );
        Place::new(under.path(), "out", "c")
            .and_then(|place| place.write(&Phase::Running))
            .expect("a record");
        assert_eq!(find(Phase::Running).map(|found| found.len()).ok(), Some(1));
    }
}
