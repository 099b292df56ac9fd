// SPDX-License-Identifier: GPL-2.0-or-later
//! The renewal of an identity whose files have changed.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::allowed::AllowedNames;
use crate::configs::Configs;
use crate::error::Error;
use crate::stamps::Stamps;

/// How long the files are not looked at again.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How many different failures are logged until the files can be loaded again.
const MOST_FAILURES: usize = 8;

/// The configurations of an identity, which follow its files.
#[derive(Debug)]
pub(crate) struct Renewal {
    directory: PathBuf,
    allowed: AllowedNames,
    configs: Mutex<Arc<Configs>>,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    next_look: Instant,
    /// What the files were when they were loaded.
    loaded: Option<Stamps>,
    /// The failures that have been logged since.
    logged: Vec<String>,
}

/// What the administrator should know.
#[derive(Debug)]
pub(crate) enum Notice {
    /// New files are in use. There may be warnings about them.
    Renewed(Vec<String>),
    /// The files have changed and cannot be used.
    Kept(String),
    /// Nobody knows whether the files have changed: this process may not look at them.
    Blind(String),
}

impl Renewal {
    /// Loads the files in `directory`.
    pub(crate) fn load(directory: &Path, allowed: AllowedNames) -> Result<Self, Error> {
        // Before the files are read: a change since then is a change. If there is no stamp, the error is that of loading.
        let loaded = Stamps::of(directory).ok();
        let configs = Configs::load(directory, &allowed, None)?;
        Ok(Self {
            directory: directory.to_owned(),
            allowed,
            configs: Mutex::new(Arc::new(configs)),
            watch: Mutex::new(Watch {
                next_look: Instant::now() + LOOK_INTERVAL,
                loaded,
                logged: Vec::new(),
            }),
        })
    }

    /// The configurations for a new connection. Looks at the files if it is time to, and logs what came of it.
    pub(crate) fn renewed(&self) -> Arc<Configs> {
        let watch = match self.watch.try_lock() {
            Ok(watch) => Some(watch),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            // Another connection looks at them. This one does not wait for the file system.
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut watch) = watch.filter(|watch| watch.next_look <= Instant::now()) {
            let notice = self.look(&mut watch);
            watch.next_look = Instant::now() + LOOK_INTERVAL;
            if let Some(notice) = notice {
                self.log(&notice);
            }
        }
        self.current()
    }

    /// The configurations that were loaded last.
    pub(crate) fn current(&self) -> Arc<Configs> {
        Arc::clone(&self.configs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads the files if they have changed. Failed attempts are repeated: whoever replaces several files is in the middle of it, perhaps.
    fn look(&self, watch: &mut Watch) -> Option<Notice> {
        let before = match Stamps::of(&self.directory) {
            Ok(stamps) => stamps,
            Err((path, error)) => {
                let message = watch.new_failure(format!("{}: {error}", path.display()))?;
                return Some(match error.kind() {
                    io::ErrorKind::PermissionDenied => Notice::Blind(message),
                    _ => Notice::Kept(message),
                });
            }
        };
        if watch.loaded == Some(before) {
            return None;
        }
        let configs = Configs::load(&self.directory, &self.allowed, Some(&self.current()));
        if Stamps::of(&self.directory).ok() != Some(before) {
            // Old and new files may be mixed. The next look finds what has become of them.
            return None;
        }
        match configs {
            Ok(configs) => {
                let warnings = configs.warnings.clone();
                *self.configs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(configs);
                (watch.loaded, watch.logged) = (Some(before), Vec::new());
                Some(Notice::Renewed(warnings))
            }
            Err(error) => {
                let source = error.source().map_or(String::new(), |source| format!(": {source}"));
                watch.new_failure(format!("{error}{source}")).map(Notice::Kept)
            }
        }
    }

    fn log(&self, notice: &Notice) {
        let directory = self.directory.display();
        match notice {
            Notice::Renewed(warnings) => {
                tracing::info!("{directory}: the certificates were renewed: new connections use the new ones");
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            Notice::Kept(why) => tracing::warn!(
                "{directory}: the files have changed and cannot be used: {why}. New connections use the certificates that were loaded before, \
                 until the files can be used, or this process is started again"
            ),
            // It is no fault if a process ends before its certificate does, and most do.
            Notice::Blind(why) => tracing::info!(
                "{directory}: certificates that are renewed there will not be seen before this process is started again, because its user \
                 may not look at them: {why}"
            ),
        }
    }
}

impl Watch {
    /// The message, if it was not logged since the files could be used.
    fn new_failure(&mut self, message: String) -> Option<String> {
        if self.logged.len() >= MOST_FAILURES || self.logged.contains(&message) {
            return None;
        }
        self.logged.push(message.clone());
        Some(message)
    }
}

#[cfg(test)]
impl Renewal {
    /// Looks at the files now.
    pub(crate) fn look_now(&self) -> Option<Notice> {
        self.look(&mut self.watch.lock().expect("no panic"))
    }
}
