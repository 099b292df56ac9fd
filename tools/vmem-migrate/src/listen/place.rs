// SPDX-License-Identifier: GPL-2.0-or-later
//! The number of guests that arrive at a time, and their names. Both are locks of files: they end with the process that holds them,
//! and a new `listen` needs to know nothing of what an earlier one has accepted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::Cause;
use crate::handover;

/// The place of an arriving guest. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` for a guest that had its place before, and lost it with its process.
    _number: Option<Lock>,
    _name: Lock,
}

impl Place {
    /// Takes one of `most` places for the guest of this name, which has been checked.
    pub(super) fn take(state: &Path, guest: &str, most: u16) -> Result<Self, Cause> {
        let failed = || Cause::call("cannot take a place for the guest");
        let Self { _name: name, .. } = Self::again(state, guest)?;
        let directory = handover::make_directory(state).map_err(failed())?;
        for number in 1..=most {
            if let Some(lock) = Lock::take(directory.join(format!("place.{number}"))).map_err(failed())? {
                return Ok(Self {
                    _number: Some(lock),
                    _name: name,
                });
            }
        }
        Err(Cause::other(format!(
            "no more than {most} guests may be on their way here at a time (--most): try again later"
        )))
    }

    /// Takes the name of a guest that is here already, at least in part.
    pub(super) fn again(state: &Path, guest: &str) -> Result<Self, Cause> {
        let failed = || Cause::call("cannot take the name of the guest");
        let directory = handover::make_directory(state).map_err(failed())?;
        let name = Lock::take(directory.join(format!("guest.{guest}"))).map_err(failed())?;
        let name = name.ok_or_else(|| Cause::other(format!("another guest of the name {guest} is on its way here")))?;
        Ok(Self {
            _number: None,
            _name: name,
        })
    }
}

/// A file that one process at a time has locked, with the number of that process. Dropping it removes the file.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// `None`: another process has locked the file.
    fn take(path: PathBuf) -> io::Result<Option<Self>> {
        loop {
            let file = File::options().create(true).append(true).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                locked => locked?,
            }
            // The process that held the lock may have removed the file between these two calls.
            let own = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == own) {
                file.set_len(0)?;
                writeln!(&file, "{}", std::process::id())?;
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays is locked by the next process.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_guests_than_places_and_one_of_a_name() {
        let state = tempfile::tempdir().expect("a directory");
        let take = |guest: &str| Place::take(state.path(), guest, 2);
        let first = take("a").expect("a place");
        let same = take("a").expect_err("the name").to_string();
        assert!(same.contains("another guest of the name a"), "{same}");
        let second = take("b").expect("a place");
        let third = take("c").expect_err("no place").to_string();
        assert!(third.contains("no more than 2 guests"), "{third}");
        let holder = fs::read_to_string(state.path().join(handover::DIRECTORY).join("guest.a")).expect("a file");
        assert_eq!(holder, format!("{}\n", std::process::id()));
        drop(first);
        let third = take("c").expect("a place again");
        let again = Place::again(state.path(), "d").expect("no place is needed");
        assert!(Place::again(state.path(), "d").is_err(), "one of a name");
        drop((second, third, again));
        let left = fs::read_dir(state.path().join(handover::DIRECTORY))
            .expect("a directory")
            .count();
        assert_eq!(left, 0, "nothing stays");
    }
}
