// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of the store.

use std::sync::Arc;

use crate::holder::Reader;
use crate::names::{CheckpointName, GuestName, NameError};
use crate::objects::ObjectError;
use crate::random::NoRandom;

/// An operation on the store failed. Nothing that was committed before is changed by it.
///
/// Errors can be cloned: several threads may wait for one object.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place where the objects are kept failed.
    #[error("cannot {action} {name}: {cause}")]
    Object {
        /// `read`, `write`, `list` or `delete`.
        action: &'static str,
        /// The object's name in the store.
        name: String,
        /// Why.
        cause: ObjectError,
    },
    /// An object is not what was written.
    #[error("{name} is damaged: {what}")]
    Damaged {
        /// The object's name in the store.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// An object was written by a newer version of this program.
    #[error("{name} has format version {version}; this program knows versions up to {known}: use a newer vmem")]
    NewerVersion {
        /// The object's name in the store.
        name: String,
        /// Its version.
        version: u16,
        /// The newest version that this program reads.
        known: u16,
    },
    /// There is no store at this place, which may be empty.
    #[error("there is no checkpoint store here (no object \"config\"); init makes one")]
    NoStore,
    /// There is a store at this place already.
    #[error("there is a checkpoint store here already")]
    StoreExists,
    /// The place holds other objects.
    #[error("the place is not empty ({0} is there): a store is made in an empty directory or under a prefix of its own")]
    NotEmpty(String),
    /// The place takes a second object of a name that it has already.
    #[error("this server accepts If-None-Match and ignores it: two writers could commit the same checkpoint. Use another server")]
    NoConditionalCreate,
    /// The store is encrypted, and no key was given.
    #[error("the store is encrypted: it needs a key (--key-file or --key-command)")]
    KeyNeeded,
    /// The given key opens none of the store's key objects.
    #[error("the key does not open this store")]
    WrongKey,
    /// A key was given for a store that is not encrypted.
    #[error("the store is not encrypted: a key does not belong to it")]
    NotEncrypted,
    /// A key cannot be obtained.
    #[error("cannot get the key: {0}")]
    Key(String),
    /// A name of a guest, a backend or a checkpoint breaks the rules for names.
    #[error("{0}")]
    Name(String),
    /// The guest has no checkpoint.
    #[error("guest {0} has no checkpoint in this store")]
    NoCheckpoints(GuestName),
    /// There is no such checkpoint.
    #[error("there is no checkpoint {0} in this store")]
    NoCheckpoint(CheckpointName),
    /// The checkpoint is protected.
    #[error("checkpoint {0} is protected: unprotect it first")]
    Protected(CheckpointName),
    /// A reader has a lease on the checkpoint.
    #[error(
        "checkpoint {checkpoint} is being read by {}: remove it when that has ended",
        readers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    )]
    BeingRead {
        /// The checkpoint.
        checkpoint: CheckpointName,
        /// Who reads it.
        readers: Vec<Reader>,
    },
    /// Somebody removes the checkpoint, or was killed while removing it.
    #[error(
        "checkpoint {checkpoint} is being removed by {holder}: if that has ended early, the checkpoint can be read in {seconds} s, and \
         checkpoint rm removes it at once"
    )]
    BeingRemoved {
        /// The checkpoint.
        checkpoint: CheckpointName,
        /// Who removes it.
        holder: String,
        /// When the mark of the removal ends that nobody deletes.
        seconds: u64,
    },
    /// The store, or this program, stood still while checkpoints were removed.
    #[error(
        "the removal stood still for {0} s, and somebody may have begun to read the checkpoint meanwhile: it stays. Try again"
    )]
    RemovalLate(u64),
    /// Pages that the backend does not have, or bytes that are not whole pages.
    #[error("backend {backend}: {what}")]
    Range {
        /// The backend's name.
        backend: String,
        /// What is wrong with the range.
        what: String,
    },
    /// A page was put a second time into one checkpoint.
    #[error("backend {backend}: page {page} was put twice")]
    PutTwice {
        /// The backend's name.
        backend: String,
        /// The page's offset in the backend, in pages.
        page: u64,
    },
    /// A checkpoint without a parent does not say what some of its pages are.
    #[error("backend {backend}: page {page} was not put, and the checkpoint has no parent that has it")]
    Incomplete {
        /// The backend's name.
        backend: String,
        /// The first such page's offset in the backend, in pages.
        page: u64,
    },
    /// A limit of the format would be exceeded.
    #[error("too large for the format: {0}")]
    TooLarge(String),
    /// A policy would keep nothing, or a range of checkpoints has no sense.
    #[error("{0}")]
    Policy(String),
    /// The lease was not renewed in time: garbage collection may have taken what it protected.
    #[error("the lease on the store expired (it was not renewed for {0} s): the checkpoint is given up")]
    LeaseLost(u64),
    /// Somebody else collects garbage.
    #[error("another garbage collection runs in this store (lease {0})")]
    Busy(String),
    /// The writer failed before.
    #[error("the checkpoint failed before: {0}")]
    Failed(Arc<Error>),
}

impl Error {
    pub(crate) fn damaged(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged {
            name: name.into(),
            what: what.into(),
        }
    }

    /// Whether the operation may succeed later, with the store unchanged: the place of the objects is away or overloaded.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Object { cause, .. } => cause.is_transient(),
            Self::Failed(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether an object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Object {
                cause: ObjectError::NotFound,
                ..
            }
        )
    }
}

impl From<NameError> for Error {
    fn from(NameError(what): NameError) -> Self {
        Self::Name(what)
    }
}

impl From<NoRandom> for Error {
    fn from(error: NoRandom) -> Self {
        Self::Key(error.to_string())
    }
}

/// Why a page of a checkpoint cannot be read. Such a page is never given out as zeros.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The page could not be read when the checkpoint was made, either.
    #[error("the page was unreadable when the checkpoint was made")]
    Unreadable,
    /// The page had not arrived at the guest when the checkpoint was made.
    #[error("the page was absent when the checkpoint was made")]
    Absent,
    /// The page's contents fail verification, or are lost.
    #[error(transparent)]
    Damaged(Error),
    /// The store did not answer: the page may be readable later.
    #[error(transparent)]
    Away(Error),
}

impl From<Error> for PageError {
    fn from(error: Error) -> Self {
        if error.is_transient() {
            Self::Away(error)
        } else {
            Self::Damaged(error)
        }
    }
}
