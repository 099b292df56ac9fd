// SPDX-License-Identifier: GPL-2.0-or-later
//! The migrations that this host takes part in, as other commands than their own see them: by their directories, without a lock.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmem_cli::chain;
use vmem_control::Client;

use crate::Phase;
use crate::error::Cause;
use crate::migrate::control::SOCKET;
use crate::record::{Incoming, Outgoing, StateDir};

/// How long a vmemctl or a vmemd may take to answer.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// How long a vmemctl may take from its start until it listens: it connects to QEMU before.
const BEGINNING: Duration = Duration::from_secs(2);

/// From one attempt to reach such a vmemctl to the next.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A migration.
#[derive(Debug)]
pub(crate) struct Ongoing {
    pub(crate) directory: PathBuf,
    /// The guest's name; its key as long as there is no record.
    pub(crate) guest: String,
    pub(crate) key: String,
    /// The guest comes to this host, and does not leave it.
    pub(crate) is_coming: bool,
    pub(crate) record: Record,
}

/// What is recorded of a migration.
#[derive(Debug)]
pub(crate) enum Record {
    /// Of a guest that leaves this host; `None` before anything is recorded.
    Out(Option<Outgoing>),
    /// Of a guest that comes.
    In(Incoming),
    /// It cannot be read.
    Unreadable(String),
}

impl Ongoing {
    /// All migrations that are recorded in `state`, or that a vmemctl has begun.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub(crate) fn all(state: &Path) -> Result<Vec<Self>, Cause> {
        let mut all = Vec::new();
        for directory in StateDir::directories(state, "out")? {
            let record = match StateDir::peek::<Outgoing>(&directory) {
                // An earlier vmemctl has left it, or it is about to be removed.
                Ok(None) if !directory.join(SOCKET).exists() => continue,
                Ok(record) => Record::Out(record),
                Err(error) => Record::Unreadable(chain(&error)),
            };
            all.push(Self::new(directory, false, record));
        }
        for directory in StateDir::directories(state, "in")? {
            let record = match StateDir::peek::<Incoming>(&directory) {
                Ok(None) => continue,
                Ok(Some(record)) => Record::In(record),
                Err(error) => Record::Unreadable(chain(&error)),
            };
            all.push(Self::new(directory, true, record));
        }
        all.sort_by(|one, other| one.directory.cmp(&other.directory));
        Ok(all)
    }

    fn new(directory: PathBuf, is_coming: bool, record: Record) -> Self {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let key = name.split_once('.').map_or(String::new(), |(_, key)| key.to_owned());
        let guest = match &record {
            Record::Out(Some(record)) => record.guest.clone(),
            Record::In(record) => record.guest.clone(),
            Record::Out(None) | Record::Unreadable(_) => key.clone(),
        };
        Self {
            directory,
            guest,
            key,
            is_coming,
            record,
        }
    }

    /// Those of [`all`](Self::all) whose guest has this name or key; at least one.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn named(state: &Path, guest: &str) -> Result<Vec<Self>, Cause> {
        let mut found = Self::all(state)?;
        found.retain(|migration| migration.guest == guest || migration.key == guest);
        match found.is_empty() {
            false => Ok(found),
            true => Err(Cause::other(format!(
                "no migration of a guest {guest:?} is recorded in {}",
                state.display()
            ))),
        }
    }

    /// The one that leaves this host.
    ///
    /// # Errors
    ///
    /// There is none, or there are several.
    pub(crate) fn leaving(state: &Path, guest: &str) -> Result<Self, Cause> {
        let mut found = Self::named(state, guest)?;
        found.retain(|migration| !migration.is_coming);
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                found.push(last);
                let keys: Vec<_> = found.iter().map(|migration| migration.key.as_str()).collect();
                Err(Cause::other(format!(
                    "several guests {guest:?} leave this host: name one of {}",
                    keys.join(", ")
                )))
            }
            (None, _) => Err(Cause::other(format!(
                "guest {guest:?} comes to this host: its migration is controlled at its source"
            ))),
        }
    }

    /// Connects to the vmemctl that is at work on it.
    ///
    /// # Errors
    ///
    /// There is none, or it does not answer.
    pub(crate) fn connect(&self) -> Result<Client, Cause> {
        self.connect_until(Instant::now())
    }

    /// As [`connect`](Self::connect), also to a vmemctl that has just begun and does not listen yet.
    ///
    /// # Errors
    ///
    /// As those, after a time.
    pub(crate) fn connect_soon(&self) -> Result<Client, Cause> {
        self.connect_until(Instant::now() + BEGINNING)
    }

    /// As [`connect`](Self::connect), again and again until then while nobody listens.
    fn connect_until(&self, until: Instant) -> Result<Client, Cause> {
        loop {
            return match Client::connect(&self.directory.join(SOCKET), LIMIT) {
                Ok(client) => Ok(client),
                Err(error) if error.is_nobody() && Instant::now() < until => {
                    sleep(RETRY_INTERVAL);
                    continue;
                }
                Err(error) if error.is_nobody() => Err(Cause::other(self.without_vmemctl())),
                Err(error) => Err(Cause::other(format!(
                    "the vmemctl that migrates guest {:?} cannot be asked: {}",
                    self.guest,
                    chain(&error)
                ))),
            };
        }
    }

    /// That no vmemctl is at work on it, and what to do.
    pub(crate) fn without_vmemctl(&self) -> String {
        let guest = &self.guest;
        match &self.record {
            Record::Out(Some(record)) if record.phase == Phase::Prepared => format!(
                "no vmemctl is at work on the migration of guest {guest:?} any more, which has not left this host: 'vmemctl recover' ends the \
                 migration"
            ),
            Record::Out(Some(_)) => format!(
                "no vmemctl is at work on the migration of guest {guest:?} any more, and the destination owns the guest: 'vmemctl recover' continues it"
            ),
            _ => format!("no vmemctl is at work on a migration of guest {guest:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn migration_is_found_by_name_and_key_while_its_vmemctl_holds_the_directory() {
        let state = tempfile::tempdir().expect("a directory");
        assert!(Ongoing::all(&state.path().join("none")).expect("nothing").is_empty());
        let dir = StateDir::new(state.path(), "out", "guest 0").expect("a state directory");
        assert!(Ongoing::all(state.path()).expect("nothing").is_empty(), "nothing is begun");
        drop(UnixListener::bind(dir.path(SOCKET)).expect("a socket"));
        let found = Ongoing::named(state.path(), "guest%200").expect("it is begun");
        assert!(
            matches!(
                found[..],
                [Ongoing {
                    record: Record::Out(None),
                    ..
                }]
            ),
            "{found:?}"
        );
        // The socket of a vmemctl that was killed.
        let why = chain(&found[0].connect().expect_err("nobody listens"));
        assert!(why.contains("no vmemctl is at work"), "{why}");
        let _other = StateDir::new(state.path(), "in", "guest1").expect("a state directory");
        std::fs::write(state.path().join("in.guest1/record"), "{}").expect("a file");
        let all = Ongoing::all(state.path()).expect("two");
        assert!(
            all.iter().any(|migration| matches!(migration.record, Record::Unreadable(_))),
            "{all:?}"
        );
        assert!(Ongoing::named(state.path(), "guest").is_err());
    }
}
