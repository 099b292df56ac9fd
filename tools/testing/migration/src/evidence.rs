// SPDX-License-Identifier: GPL-2.0-or-later
//! What is left of guests and of the programs that move them, whatever ends them: a thread copies their consoles and logs to the results of the run
//! as they grow. So what was said a moment before the machine itself has died is there, too, and what vmemctl has removed when a move succeeded.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime};

/// From one look at the files to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// More than this of one file is not copied.
const LARGEST: u64 = 4 << 20;
/// How deep directories are looked into.
const DEPTH: u32 = 4;

static MIRROR: OnceLock<Mutex<Mirror>> = OnceLock::new();
static KEEPS_DEAD: AtomicBool = AtomicBool::new(false);

/// Copies of the files below a directory.
struct Mirror {
    from: PathBuf,
    to: PathBuf,
    /// Size and time of what has been copied.
    copied: HashMap<PathBuf, (u64, Option<SystemTime>)>,
}

/// From now on what is below this directory is copied to the results, if the run has any.
pub(crate) fn keep(from: &Path) {
    let Some(results) = std::env::var_os("VMEM_RESULTS") else {
        return;
    };
    let mirror = Mirror::new(from, &PathBuf::from(results).join("guests"));
    if MIRROR.set(Mutex::new(mirror)).is_ok() {
        thread::spawn(|| {
            loop {
                copy();
                sleep(INTERVAL);
            }
        });
    }
}

/// Copies what has grown since: before it is removed.
pub(crate) fn copy() {
    if let Some(mirror) = MIRROR.get() {
        mirror.lock().unwrap_or_else(PoisonError::into_inner).copy();
    }
}

/// From now on QEMU does not end with a guest that ends itself (a triple fault, say), and what a dead guest's processor held is kept.
pub(crate) fn keep_dead() {
    KEEPS_DEAD.store(true, Ordering::Relaxed);
}

/// Whether it is so.
pub(crate) fn keeps_dead() -> bool {
    KEEPS_DEAD.load(Ordering::Relaxed)
}

impl Mirror {
    fn new(from: &Path, to: &Path) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            copied: HashMap::new(),
        }
    }

    fn copy(&mut self) {
        let from = self.from.clone();
        self.copy_directory(&from, DEPTH);
    }

    /// What cannot be read or written is left out: it may be gone already.
    fn copy_directory(&mut self, directory: &Path, depth: u32) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            match kind {
                Ok(kind) if kind.is_dir() && depth > 0 => self.copy_directory(&path, depth - 1),
                Ok(kind) if kind.is_file() => drop(self.copy_file(&path)),
                _ => (),
            }
        }
    }

    fn copy_file(&mut self, path: &Path) -> Option<()> {
        let metadata = fs::metadata(path).ok()?;
        let state = (metadata.len(), metadata.modified().ok());
        if metadata.len() == 0 || metadata.len() > LARGEST || self.copied.get(path) == Some(&state) {
            return None;
        }
        let to = self.to.join(path.strip_prefix(&self.from).ok()?);
        fs::create_dir_all(to.parent()?).ok()?;
        fs::copy(path, to).ok()?;
        self.copied.insert(path.to_owned(), state);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_grown_is_copied_and_stays_when_it_is_removed() -> std::io::Result<()> {
        let directory = std::env::temp_dir().join(format!("vmem-evidence-{}", std::process::id()));
        let (from, to) = (directory.join("from"), directory.join("to"));
        fs::create_dir_all(from.join("guest/state"))?;
        let (log, copy) = (from.join("guest/state/vmemd.log"), to.join("guest/state/vmemd.log"));
        let mut mirror = Mirror::new(&from, &to);
        fs::write(&log, "one")?;
        mirror.copy();
        assert_eq!(fs::read_to_string(&copy)?, "one");
        fs::write(&log, "one, two")?;
        mirror.copy();
        assert_eq!(fs::read_to_string(&copy)?, "one, two");
        fs::remove_dir_all(from)?;
        mirror.copy();
        assert_eq!(fs::read_to_string(&copy)?, "one, two");
        fs::remove_dir_all(directory)
    }
}
