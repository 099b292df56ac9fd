// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the objects of a store are kept, and what the store needs of such a place.

mod directory;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod probe;
#[cfg(feature = "s3")]
mod remote;
mod retry;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use directory::Directory;
#[cfg(any(test, feature = "testing"))]
pub use memory::{Counts, Faults, Memory};
pub(crate) use probe::creates_exclusively;
#[cfg(feature = "s3")]
pub use remote::Remote;
pub use retry::{Outage, Retry, Retrying, Waiting};

/// An operation on one object failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// There is no object of this name.
    #[error("there is no such object")]
    NotFound,
    /// There is no bucket of this name.
    #[error("there is no bucket {0:?}")]
    NoBucket(String),
    /// There is an object of this name already.
    #[error("there is such an object already")]
    AlreadyExists,
    /// The object is larger than the caller takes.
    #[error("it has {size} bytes, and at most {limit} are accepted")]
    TooLarge {
        /// Bytes of the object.
        size: u64,
        /// Bytes that the caller takes.
        limit: u64,
    },
    /// Bytes were asked for that the object does not have.
    #[error("it has {size} bytes, and bytes up to {end} were asked for")]
    Beyond {
        /// Bytes of the object.
        size: u64,
        /// The end of what was asked for.
        end: u64,
    },
    /// Fewer bytes came than were asked for.
    #[error("it ends after {got} bytes of {wanted}")]
    Short {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// The file system or the quota is full.
    #[error("no space is left")]
    NoSpace,
    /// The store may not be accessed.
    #[error("access denied: {0}")]
    Denied(Arc<dyn std::error::Error + Send + Sync>),
    /// The operation may succeed when it is tried again: a time-out, a lost connection, a server that is overloaded.
    #[error("{0}")]
    Transient(Arc<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    #[error("{0}")]
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

impl ObjectError {
    pub(crate) fn other(what: impl Into<String>) -> Self {
        Self::Other(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(what.into())))
    }

    #[cfg(any(test, feature = "testing"))]
    fn transient(what: &str) -> Self {
        Self::Transient(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(what)))
    }

    /// Whether the same operation may succeed later. A body that is too short is tried again, too: it may have been cut on the way.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_) | Self::Short { .. })
    }
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of them; an error if they are more than this.
    All(u64),
    /// These, all of which have to be there.
    Bytes(Range<u64>),
    /// Those of these that are there.
    Within(Range<u64>),
    /// The last ones, at most so many.
    Last(u64),
}

impl Part {
    /// The bytes of an object of `size` bytes.
    pub fn of(&self, size: u64) -> Result<Range<u64>, ObjectError> {
        match self {
            Self::All(limit) if size > *limit => Err(ObjectError::TooLarge { size, limit: *limit }),
            Self::All(_) => Ok(0..size),
            Self::Bytes(bytes) if bytes.end > size => Err(ObjectError::Beyond { size, end: bytes.end }),
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Within(bytes) => Ok(bytes.start.min(size)..bytes.end.min(size)),
            Self::Last(count) => Ok(size.saturating_sub(*count)..size),
        }
    }
}

/// Bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The bytes that were asked for.
    pub bytes: Vec<u8>,
    /// Bytes of the whole object.
    pub size: u64,
}

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the clock of the place where it is kept.
    pub modified: SystemTime,
}

/// Whether a name may be in use already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It may not: [`ObjectError::AlreadyExists`].
    New,
    /// It may; the object is replaced in one step.
    Replace,
}

/// A place that keeps objects, as a directory and S3 do.
///
/// Names are of letters, digits and `._-`, in parts separated by `/`. What the store relies on:
///
/// - `put` makes the whole object visible at once or not at all; when it returns, the object survives a crash.
/// - After `put` returns, `get` finds the object, and so does `list`. (S3 has promised this since 2020. With a listing that lags behind,
///   nothing wrong is restored, but the newest checkpoints may not be seen.)
/// - `put` with [`Put::New`] fails if there is such an object. The store tests this when it is made.
pub trait Objects: Send + Sync + fmt::Debug {
    /// Writes an object.
    fn put(&self, name: &str, bytes: &[u8], put: Put) -> Result<(), ObjectError>;

    /// Reads an object, or a part of it.
    fn get(&self, name: &str, part: Part) -> Result<Fetched, ObjectError>;

    /// The objects whose names begin with `prefix`, in the order of their names. `prefix` is empty, or has a `/`.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError>;

    /// Removes an object. None of this name is no error.
    fn delete(&self, name: &str) -> Result<(), ObjectError>;

    /// Removes what writers left behind that were killed, if it is older than `age`, and counts it.
    fn sweep(&self, age: Duration) -> Result<u64, ObjectError> {
        let _ = age;
        Ok(0)
    }

    /// Bytes that are worth reading at once, rather than in two operations: few for a local disk, many for a server far away.
    fn window(&self) -> u64 {
        512 << 10
    }
}
