// SPDX-License-Identifier: GPL-2.0-or-later
//! The record of a move, in a file. A vmemctl that resumes the move after the death of another one reads it.
//!
//! Each guest has one file on each host. A reboot empties the directory of the records, just as it empties the memory that they describe.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Phase;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmem_cli::log;
use vmem_process::{Identity, clean};
use vmem_qemu::BackendFile;
use vmem_qemu::migration::Settings;

use crate::key::Key;
use crate::message::Backend;
use crate::name::public_session;

/// The default directory of the records.
pub(crate) const DIRECTORY: &str = "/run/vmemctl";

/// The directory of the logs if the records are in [`DIRECTORY`], and its name within any other directory of records.
const LOGS: &str = "/var/log/vmem";
const LOGS_BESIDE: &str = "log";

/// A record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot access {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no record of a move", .0.display())]
    Foreign(PathBuf),
    #[error(
        "{} was written by another version of vmemctl: continue the move with that version, or remove the record if the move is over",
        .0.display()
    )]
    Layout(PathBuf),
    #[error("another vmemctl is at work on this guest, and holds {}: wait until it has ended", .0.display())]
    Busy(PathBuf),
}

/// The layout of the records. A record without this number is of a vmemctl that named records by the guest's name alone.
const LAYOUT: u64 = 2;

/// The source's record of a move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    pub(crate) session: String,
    /// The guest's name, for messages.
    pub(crate) guest: String,
    /// What identifies the guest.
    pub(crate) key: Key,
    pub(crate) phase: Phase,
    /// QEMU's QMP socket.
    pub(crate) qmp: PathBuf,
    /// Where the destination's vmemctl listens.
    pub(crate) to: String,
    /// The arguments of the source's vmemd, with the port at which it listens.
    pub(crate) vmemd: Vec<String>,
    /// The files of the guest's memory.
    pub(crate) served: Vec<BackendFile>,
    /// The guest ran before the move.
    pub(crate) run: bool,
    /// QEMU's settings before the move changed them.
    pub(crate) settings: Option<Settings>,
}

/// What is logged from now on is about this guest.
pub(crate) fn log_subject(guest: &str, session: &str) {
    log::set_subject(&[("guest", guest), ("session", public_session(session))]);
}

impl Outgoing {
    /// Makes this guest the subject of all further log lines.
    pub(crate) fn log_subject(&self) {
        log_subject(&self.guest, &self.session);
    }
}

/// The destination's record of a move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Incoming {
    pub(crate) session: String,
    pub(crate) guest: String,
    pub(crate) phase: Phase,
    /// QEMU's QMP socket.
    pub(crate) qmp: PathBuf,
    /// The guest's name in this host's QEMU.
    pub(crate) name: String,
    pub(crate) memory: Vec<Backend>,
    /// The region of each memory backend.
    pub(crate) regions: Vec<String>,
    /// The kernel's number of each of these regions. Another region of the same name has another number.
    #[serde(default)]
    pub(crate) region_ids: Vec<u64>,
    /// QEMU's process, if it is known.
    #[serde(default)]
    pub(crate) qemu: Option<Identity>,
    /// The arguments of a destination's vmemd that resumes what an earlier one has begun.
    pub(crate) vmemd: Vec<String>,
    /// The guest must run here: it ran at the source.
    pub(crate) run: bool,
    /// QEMU's settings before the move changed them. `None` once they are restored.
    pub(crate) settings: Option<Settings>,
    /// Why the move has failed.
    pub(crate) reason: Option<String>,
}

impl Incoming {
    /// The record of this session, whoever holds it.
    pub(crate) fn of_session(state: &Path, session: &str) -> Result<Option<Self>, RecordError> {
        for directory in StateDir::directories(state, "in")? {
            // Another one that cannot be read does not matter.
            if let Ok(Some(record)) = StateDir::peek::<Self>(&directory) {
                if record.session == session {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }
}

/// A record with the phase of its move.
pub(crate) trait Record: Clone + Serialize {
    fn set_phase(&mut self, phase: Phase);
}

impl Record for Outgoing {
    fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }
}

impl Record for Incoming {
    fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }
}

/// The prefix of the name of a directory that is being removed.
const REMOVED: &str = "removed.";

/// The directory with the record of a guest, and with other files about it. One process at a time holds it.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    directory: PathBuf,
    /// The lock, which is held as long as a clone of this exists.
    _lock: Arc<File>,
}

impl StateDir {
    /// Opens the directory `under`/`side`.`guest`. Creates it if it does not exist.
    pub(crate) fn new(under: &Path, side: &str, guest: impl Into<Key>) -> Result<Self, RecordError> {
        let directory = Self::path_of(under, side, &guest.into());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        // The record has the session number, with which any process could send COMMIT or ABORT. So only the owner may read it.
        let made = made.and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)));
        made.map_err(|source| io_of(&directory, source))?;
        clear(under);
        Self::lock(directory)
    }

    /// The path of the directory of a guest.
    pub(crate) fn path_of(under: &Path, side: &str, guest: &Key) -> PathBuf {
        under.join(format!("{side}.{}", guest.as_str()))
    }

    fn lock(directory: PathBuf) -> Result<Self, RecordError> {
        let path = directory.join("lock");
        let failed = |source| io_of(&path, source);
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // The process that held the lock may have removed the directory between these two calls.
                let held = file.metadata().map_err(failed)?;
                if fs::metadata(&path).map_or(true, |there| held.ino() != there.ino()) {
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

    /// The last component of the directory's path.
    pub(crate) fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Refuses a guest of this name if an earlier version of vmemctl has a record of it, at the path of that version.
    pub(crate) fn check_earlier(under: &Path, side: &str, name: &str) -> Result<(), RecordError> {
        let path = under.join(format!("{side}.{}", clean(name, usize::MAX))).join("record");
        match read_record::<Value>(&path) {
            Err(error @ RecordError::Layout(_)) => Err(error),
            _ => Ok(()),
        }
    }

    /// All directories of `side` below `under` that have a record and that no other process holds.
    pub(crate) fn all(under: &Path, side: &str) -> Result<Vec<Self>, RecordError> {
        let mut free = Vec::new();
        for directory in Self::directories(under, side)? {
            if directory.join("record").exists() {
                match Self::lock(directory) {
                    Ok(state_dir) => free.push(state_dir),
                    Err(RecordError::Busy(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(free)
    }

    /// The directories of `side` below `under`, whether another process holds them or not.
    pub(crate) fn directories(under: &Path, side: &str) -> Result<Vec<PathBuf>, RecordError> {
        let prefix = format!("{side}.");
        let entries = match fs::read_dir(under) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| io_of(under, source))?,
        };
        let of_side = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        Ok(of_side.map(|entry| entry.path()).collect())
    }

    /// Whether another process holds a directory.
    pub(crate) fn is_held(directory: &Path) -> bool {
        let lock = File::open(directory.join("lock"));
        lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// The record in a directory that another process may hold, if there is one. It is a whole one, and may be outdated already.
    pub(crate) fn peek<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>, RecordError> {
        read_record(&directory.join("record"))
    }

    /// The directories of [`all`](Self::all) with a record for which `is` is true. An unreadable record is an error only if there is no
    /// such record.
    pub(crate) fn find<T: DeserializeOwned>(
        under: &Path,
        side: &str,
        is: impl Fn(&T) -> bool,
    ) -> Result<Vec<(Self, T)>, RecordError> {
        let mut found = Vec::new();
        let mut unreadable = None;
        for state_dir in Self::all(under, side)? {
            match state_dir.read::<T>() {
                Ok(Some(record)) if is(&record) => found.push((state_dir, record)),
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// The text of the guest's key.
    pub(crate) fn key(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        name.split_once('.').map_or(String::new(), |(_, key)| key.to_owned())
    }

    /// The path of the directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The path of a program's log. The log stays when the move is over, because QEMU and vmemd continue to run, and because the reasons of
    /// a failure are read later.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf, RecordError> {
        let under = self.directory.parent().unwrap_or(&self.directory);
        let beside = under.join(LOGS_BESIDE);
        let wanted = if under == Path::new(DIRECTORY) {
            PathBuf::from(LOGS)
        } else {
            beside.clone()
        };
        let make = |directory: &Path| DirBuilder::new().recursive(true).mode(0o700).create(directory);
        // A host with a read-only /var can have guests.
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

    /// Writes `record` with `phase`. If that fails, the phase in memory stays as it was.
    pub(crate) fn write_phase(&self, record: &mut impl Record, phase: Phase) -> Result<(), RecordError> {
        let mut next = record.clone();
        next.set_phase(phase);
        self.write(&next)?;
        *record = next;
        Ok(())
    }

    /// Replaces the record atomically: a reader finds the old record or the new one.
    pub(crate) fn write(&self, record: &impl Serialize) -> Result<(), RecordError> {
        let (path, new) = (self.path("record"), self.path("record.new"));
        let failed = |error: serde_json::Error| io_of(&path, error.into());
        let mut record = serde_json::to_value(record).map_err(failed)?;
        if let Some(fields) = record.as_object_mut() {
            fields.insert("layout".to_owned(), LAYOUT.into());
        }
        let text = serde_json::to_vec_pretty(&record).map_err(failed)?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| io_of(&path, source))
    }

    /// The record, if there is one.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, RecordError> {
        read_record(&self.path("record"))
    }

    /// Removes the directory, because the move is over. The directory is renamed first, so no process finds half of it.
    pub(crate) fn remove(&self) {
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        let away = self
            .directory
            .with_file_name(format!("{REMOVED}{name}.{}", std::process::id()));
        // If this fails, the next vmemctl removes or replaces what stays.
        let _ = match fs::rename(&self.directory, &away) {
            Ok(()) => fs::remove_dir_all(&away),
            Err(_) => fs::remove_dir_all(&self.directory),
        };
    }
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_of(path, source)),
    };
    let foreign = |_| RecordError::Foreign(path.to_owned());
    let record: Value = serde_json::from_slice(&text).map_err(foreign)?;
    match record.as_object() {
        None => Err(RecordError::Foreign(path.to_owned())),
        Some(fields) if fields.get("layout") != Some(&LAYOUT.into()) => Err(RecordError::Layout(path.to_owned())),
        Some(_) => serde_json::from_value(record).map(Some).map_err(foreign),
    }
}

/// Removes directories that another vmemctl has renamed and not removed.
fn clear(under: &Path) {
    for entry in fs::read_dir(under).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(REMOVED) {
            let _ = fs::remove_dir_all(entry.path());
        }
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

    /// A minimal record.
    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Note {
        phase: Phase,
    }

    fn note(phase: Phase) -> Note {
        Note { phase }
    }

    #[test]
    fn latest_record_is_read() {
        let under = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(under.path(), "out", "../a guest").expect("a state directory");
        assert_eq!(state_dir.read::<Note>().expect("nothing"), None);
        let mode = fs::metadata(&state_dir.directory).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else can read the session");
        state_dir.write(&note(Phase::Prepared)).expect("a record");
        state_dir.write(&note(Phase::Committed)).expect("a record");
        assert_eq!(state_dir.read().expect("a record"), Some(note(Phase::Committed)));
        let again = StateDir::new(under.path(), "out", "../a guest");
        assert!(matches!(again, Err(RecordError::Busy(_))), "one at a time");
        let path = state_dir.path("record");
        drop(state_dir);
        let all = |side| StateDir::all(under.path(), side).expect("a directory");
        assert_eq!(all("out")[0].read().expect("a record"), Some(note(Phase::Committed)));
        assert!(all("in").is_empty());
        let other = StateDir::new(under.path(), "out", "b").expect("a state directory");
        assert_eq!(all("out").len(), 1, "one without a record is none");
        other.write(&note(Phase::Running)).expect("a record");
        assert_eq!(all("out").len(), 1, "somebody is at work on it");
        drop(other);
        let mut both = all("out");
        assert_eq!(both.len(), 2);
        both.drain(..)
            .filter(|state_dir| state_dir.read().is_ok_and(|phase| phase == Some(note(Phase::Running))))
            .for_each(|state_dir| state_dir.remove());
        assert_eq!(all("out").len(), 1);
        fs::write(path, "no record").expect("a file");
        assert!(matches!(all("out")[0].read::<Note>(), Err(RecordError::Foreign(_))));
        let find = |wanted| StateDir::find(under.path(), "out", move |note: &Note| note.phase == wanted);
        assert!(
            matches!(find(Phase::Running), Err(RecordError::Foreign(_))),
            "it may be that one"
        );
        StateDir::new(under.path(), "out", "c")
            .and_then(|state_dir| state_dir.write(&note(Phase::Running)))
            .expect("a record");
        assert_eq!(find(Phase::Running).map(|found| found.len()).ok(), Some(1));
    }

    #[test]
    fn guests_of_similar_names_have_separate_directories() {
        let under = tempfile::tempdir().expect("a directory");
        let places = ["a b", "a_b"].map(|name| StateDir::new(under.path(), "out", name));
        for state_dir in places {
            state_dir
                .expect("nobody else is there")
                .write(&note(Phase::Running))
                .expect("a record");
        }
        assert_eq!(StateDir::all(under.path(), "out").expect("a directory").len(), 2);
    }

    #[test]
    fn record_of_an_earlier_layout_is_refused() {
        let under = tempfile::tempdir().expect("a directory");
        fs::create_dir(under.path().join("out.a_b")).expect("a directory");
        let path = under.path().join("out.a_b/record");
        fs::write(&path, r#"{"session": "", "guest": "a b", "phase": "committed"}"#).expect("a file");
        let earlier = StateDir::check_earlier(under.path(), "out", "a b");
        assert!(matches!(earlier, Err(RecordError::Layout(found)) if found == path));
        let found = StateDir::find(under.path(), "out", |_: &Note| true);
        assert!(matches!(found, Err(RecordError::Layout(_))));
        assert!(StateDir::check_earlier(under.path(), "out", "c").is_ok());
        fs::write(&path, "{}").expect("a file");
        StateDir::new(under.path(), "out", "a_b")
            .and_then(|state_dir| state_dir.write(&note(Phase::Running)))
            .expect("a record");
        assert!(StateDir::check_earlier(under.path(), "out", "a b").is_ok());
    }

    #[test]
    fn removed_directory_is_free_at_once_and_renamed_leftovers_are_cleared() {
        let under = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(under.path(), "out", "a").expect("a state directory");
        state_dir.write(&note(Phase::Running)).expect("a record");
        let half = under.path().join("removed.out.b.1");
        fs::create_dir(&half).expect("a directory");
        fs::write(half.join("record"), "{}").expect("a file");
        state_dir.remove();
        // The first handle still exists.
        let again = StateDir::new(under.path(), "out", "a").expect("a state directory");
        assert_eq!(again.read::<Note>().expect("nothing"), None);
        state_dir.remove();
        drop(again);
        let left: Vec<_> = fs::read_dir(under.path()).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn log_stays_when_the_directory_is_removed() {
        let under = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::new(under.path(), "in", "a").expect("a state directory");
        state_dir.write(&note(Phase::Running)).expect("a record");
        let log = state_dir.log("qemu.log").expect("a path");
        fs::write(&log, "the last words").expect("a log");
        state_dir.remove();
        assert_eq!(fs::read_to_string(&log).expect("the log"), "the last words");
        // The next move of the guest writes to the same log.
        let again = StateDir::new(under.path(), "in", "a").expect("a state directory");
        assert_eq!(again.log("qemu.log").expect("a path"), log);
    }
}
