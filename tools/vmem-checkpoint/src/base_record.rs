// SPDX-License-Identifier: GPL-2.0-or-later
//! The record of a base, by which `clone` finds its regions, and `create` proves which checkpoint a clone's memory is of.
//!
//! The process that holds the base holds a lock on the record (`flock(2)`) as long as it lives, whatever way it ends. A record that nobody has
//! locked says nothing: the regions may be gone, and others may have their names.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vmem_process::clean;
use vmem_store::{CheckpointName, GuestName};
use vmem_store_source::Address;

use crate::error::Error;

/// The layout of the record.
const VERSION: u32 = 1;

/// The longest record that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The longest name, in bytes.
const LONGEST_NAME: usize = 64;

/// The name of a base: 1 to 64 letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseName(String);

impl BaseName {
    /// The name of a guest, with `_` for what a name of a base cannot have.
    #[must_use]
    pub fn of_guest(guest: &GuestName) -> Self {
        Self(clean(guest.as_str(), LONGEST_NAME))
    }

    fn path(&self, state: &Path) -> PathBuf {
        state.join(format!("base.{self}"))
    }
}

impl FromStr for BaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || clean(text, LONGEST_NAME) != text {
            return Err(format!("a name of a base has 1 to {LONGEST_NAME} letters, digits, _ and -"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for BaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A memory of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The memory backend.
    pub(crate) memory: String,
    /// The name of its region.
    pub(crate) region: String,
    /// The number of its region, which the module gives no other one.
    pub(crate) number: u64,
    /// The size of the region in bytes.
    pub(crate) bytes: u64,
}

/// What a base is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaseRecord {
    version: u32,
    /// The process that holds it.
    pub(crate) process: u32,
    /// Where the checkpoint is, as [`Address`] has it.
    address: String,
    /// The number of the store.
    pub(crate) store: String,
    /// The checkpoint.
    pub(crate) checkpoint: CheckpointName,
    /// The checkpoint's memories.
    pub(crate) memories: Vec<Memory>,
}

impl BaseRecord {
    /// The record of a base that this process holds.
    pub(crate) fn new(address: &Address, store: &str, checkpoint: &CheckpointName, memories: Vec<Memory>) -> Self {
        Self {
            version: VERSION,
            process: std::process::id(),
            address: address.to_string(),
            store: store.to_owned(),
            checkpoint: checkpoint.clone(),
            memories,
        }
    }

    /// Where the checkpoint is.
    ///
    /// # Errors
    ///
    /// The record has something else.
    pub(crate) fn address(&self) -> Result<Address, Error> {
        self.address.parse().map_err(Error::other)
    }
}

/// A record that this process has locked.
pub(crate) struct HeldRecord {
    path: PathBuf,
    file: File,
}

impl HeldRecord {
    /// Locks the record of a new base.
    ///
    /// # Errors
    ///
    /// There is a base of this name, or a call fails.
    pub(crate) fn lock(state: &Path, name: &BaseName) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.map_err(vmem_cli::Error::call(format!("cannot make {}", state.display())))?;
        let path = name.path(state);
        loop {
            let failed = || vmem_cli::Error::call(format!("cannot write {}", path.display()));
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed())?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::other(format!(
                        "there is a base {name} already: choose another name, or end the process that holds it"
                    )));
                }
                Err(error) => return Err(vmem_cli::Error::call(format!("cannot lock {}", path.display()))(error).into()),
            }
            // Another process may have removed the file between these calls.
            let held = file.metadata().map_err(failed())?;
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                // What an earlier one has left says nothing about this one.
                file.set_len(0).map_err(failed())?;
                return Ok(Self { path, file });
            }
        }
    }

    /// Writes it. Until then, the base cannot be found.
    pub(crate) fn write(&mut self, record: &BaseRecord) -> Result<(), Error> {
        let what = format!("cannot write {}", self.path.display());
        let text = serde_json::to_vec(record).map_err(vmem_cli::Error::call(what.clone()))?;
        let written = self.file.rewind().and_then(|()| self.file.write_all(&text));
        written.map_err(vmem_cli::Error::call(what))?;
        Ok(())
    }

    /// Removes it: the base cannot be found any more.
    pub(crate) fn remove(self) {
        // Without its lock, it says nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// The record of a base that lives.
///
/// # Errors
///
/// There is none of this name, or it is not ready.
pub(crate) fn find(state: &Path, name: &BaseName) -> Result<BaseRecord, Error> {
    let path = name.path(state);
    let none = || {
        Error::other(format!(
            "there is no base {name} in {}: make it with 'vmemctl checkpoint base', which holds it as long as it runs",
            state.display()
        ))
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(none()),
        Err(error) => return Err(vmem_cli::Error::call(format!("cannot open {}", path.display()))(error).into()),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        // The lock ends with the file.
        Ok(()) => return Err(none()),
        Err(error) => return Err(vmem_cli::Error::call(format!("cannot lock {}", path.display()))(error).into()),
    }
    let mut text = String::new();
    let read = (&file).take(LONGEST).read_to_string(&mut text);
    read.map_err(vmem_cli::Error::call(format!("cannot read {}", path.display())))?;
    if text.is_empty() {
        return Err(Error::other(format!("base {name} is not ready yet")));
    }
    let record: BaseRecord =
        serde_json::from_str(&text).map_err(vmem_cli::Error::call(format!("cannot read {}", path.display())))?;
    match record.version {
        VERSION => Ok(record),
        version => Err(Error::other(format!(
            "{} has version {version}, and this vmemctl knows {VERSION}",
            path.display()
        ))),
    }
}

/// The records of all bases that live.
///
/// # Errors
///
/// The directory cannot be read. A record that cannot be read is left out.
pub(crate) fn all(state: &Path) -> Result<Vec<BaseRecord>, Error> {
    let entries = match fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(vmem_cli::Error::call(format!("cannot read {}", state.display()))(error).into()),
    };
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("base.")?.parse().ok();
    let names = entries.flatten().filter_map(name);
    Ok(names.filter_map(|name: BaseName| find(state, &name).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> BaseRecord {
        let address: Address = "/srv/ckpt#guest0@7".parse().expect("an address");
        let checkpoint = CheckpointName {
            guest: "guest0".parse().expect("a name"),
            sequence: 7,
        };
        let memory = Memory {
            memory: "ram".to_owned(),
            region: "guest0.ram".to_owned(),
            number: 3,
            bytes: 8192,
        };
        BaseRecord::new(&address, "5a", &checkpoint, vec![memory])
    }

    #[test]
    fn base_is_found_while_its_record_is_locked_and_not_before_and_not_after() {
        let state = tempfile::tempdir().expect("a directory");
        let name: BaseName = "web".parse().expect("a name");
        let none = |found: Result<BaseRecord, Error>| found.expect_err("there is none").to_string();
        assert!(none(find(state.path(), &name)).contains("there is no base web"));
        let mut held = HeldRecord::lock(state.path(), &name).expect("a record");
        assert!(none(find(state.path(), &name)).contains("not ready"));
        held.write(&record()).expect("room");
        assert_eq!(find(state.path(), &name).expect("a base"), record());
        assert_eq!(all(state.path()).expect("a directory"), [record()]);
        let second = HeldRecord::lock(state.path(), &name).err().expect("it is held").to_string();
        assert!(second.contains("there is a base web already"), "{second}");
        // As after SIGKILL: the record is there, and nobody holds it.
        drop(held);
        assert!(none(find(state.path(), &name)).contains("there is no base web"));
        let held = HeldRecord::lock(state.path(), &name).expect("the name is free");
        assert!(
            none(find(state.path(), &name)).contains("not ready"),
            "the old record says nothing"
        );
        held.remove();
        assert!(none(find(state.path(), &name)).contains("there is no base web"));
    }

    #[test]
    fn name_cannot_lead_into_another_directory() {
        for bad in ["", "a/b", "..", "a b", &"a".repeat(65)] {
            assert!(bad.parse::<BaseName>().is_err(), "{bad}");
        }
        let guest: GuestName = "guest0.a".parse().expect("a name");
        assert_eq!(BaseName::of_guest(&guest).to_string(), "guest0_a");
    }
}
