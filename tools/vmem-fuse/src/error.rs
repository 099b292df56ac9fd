// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a request fails, and why a store cannot be mounted.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fuser::Errno;
use vmem_store::PageError;

/// Why a request fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such file, or not any more.
    #[error("there is no such file")]
    NotFound,
    /// It is not a directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// It is a directory.
    #[error("it is a directory")]
    IsDirectory,
    /// After an offset there is no data, or the file has ended.
    #[error("there is nothing after this offset")]
    NothingThere,
    /// No such way to seek, or a negative offset.
    #[error("the offset is of no kind that is known")]
    Seek,
    /// The store did not answer. It may later.
    #[error("{0}")]
    Away(String),
    /// What was asked for is lost.
    #[error("{0}")]
    Lost(String),
}

impl Error {
    /// What the kernel gets.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::IsDirectory => Errno::EISDIR,
            Self::NothingThere => Errno::ENXIO,
            Self::Seek => Errno::EINVAL,
            Self::Away(_) | Self::Lost(_) => Errno::EIO,
        }
    }

    /// Whether the user has to be told more than the errno.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Lost(_))
    }
}

impl From<PageError> for Error {
    fn from(error: PageError) -> Self {
        match error {
            PageError::Damaged(vmem_store::Error::NoCheckpoint(_)) => Self::NotFound,
            PageError::Away(error) => Self::Away(chain(&error)),
            error => Self::Lost(chain(&error)),
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors print their cause themselves.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The pause before something is tried again that was away.
const PAUSE: Duration = Duration::from_millis(500);

/// Tries until the store is there, or until the deadline.
pub(crate) fn retry<T>(deadline: Instant, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match attempt() {
            Err(Error::Away(why)) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(Error::Away(why)),
                left => sleep(left.min(PAUSE)),
            },
            ended => return ended,
        }
    }
}

/// Why a store cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory cannot be looked at.
    #[error("cannot use {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file system is mounted at the directory whose program has ended.
    #[error("the program of the file system at {0} has ended: unmount it first (umount {0})")]
    Ended(PathBuf),
    /// Not a directory.
    #[error("{0} is not a directory")]
    NotDirectory(PathBuf),
    /// The store would be hidden by its own view.
    #[error("the store {store} is below {directory}: it could not be read any more. Use another directory")]
    OverStore {
        /// The store.
        store: PathBuf,
        /// The directory.
        directory: PathBuf,
    },
    /// The kernel, or `fusermount3`, refuses.
    #[error("cannot mount at {path} (users other than root need fusermount3, of Debian's package fuse3)")]
    Mount {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be unmounted.
    #[error("cannot unmount {path}: its files can not be read any more")]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_that_is_away_is_tried_again_until_the_deadline() {
        let mut attempts = 0;
        let found = retry(Instant::now() + Duration::from_secs(20), || {
            attempts += 1;
            match attempts {
                1 => Err(Error::Away("away".to_owned())),
                _ => Ok(attempts),
            }
        });
        assert_eq!(found, Ok(2));
        let began = Instant::now();
        let failed: Result<(), _> = retry(began + Duration::from_millis(50), || Err(Error::Away("away".to_owned())));
        assert_eq!(failed, Err(Error::Away("away".to_owned())));
        assert!((Duration::from_millis(50)..Duration::from_secs(10)).contains(&began.elapsed()));
    }

    #[test]
    fn what_is_lost_is_not_tried_again() {
        let mut attempts = 0;
        let failed: Result<(), _> = retry(Instant::now() + Duration::from_secs(20), || {
            attempts += 1;
            Err(Error::Lost("damaged".to_owned()))
        });
        assert_eq!((failed.map_err(|error| error.errno().code()), attempts), (Err(5), 1));
    }
}
