// SPDX-License-Identifier: GPL-2.0-or-later
//! Marks of removals that are under way, so that a reader who begins at the same time is not overlooked.
//!
//! Who removes checkpoints sets a mark, and then reads the leases. Who reads a checkpoint takes a lease, and then reads the marks. Whatever
//! happens between these four steps, at least one of the two sees the other: the remover keeps a checkpoint with a reader's lease, and the
//! reader waits until the mark is gone before it looks whether its checkpoint is there.

use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::envelope::{Kind, Seal, unwrap, wrap};
use crate::error::Error;
use crate::names::{CheckpointName, GuestName, LEASES, WriterId};
use crate::objects::{ObjectError, ObjectMeta, Part, Put};

/// Checkpoints of one mark, at most.
pub(crate) const MAX_CHECKPOINTS: usize = 1000;

/// How long a reader waits for a removal, at most. A removal takes a second or so; one that was killed leaves its mark.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

const ENDING: &str = ".removing";

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Who removes, for a person to read.
    holder: String,
    /// When the mark ends, in milliseconds since 1970.
    expires: u64,
    guest: GuestName,
    sequences: Vec<u64>,
}

/// Whether an object among the leases is a mark.
pub(crate) fn is_mark(name: &str) -> bool {
    let id = name.strip_prefix(LEASES).and_then(|file| file.strip_suffix(ENDING));
    id.is_some_and(|id| id.parse::<WriterId>().is_ok())
}

/// A mark that is set. It ends when it is dropped.
pub(crate) struct RemovalMark<'a> {
    base: &'a Base,
    name: String,
    set: u64,
}

impl<'a> RemovalMark<'a> {
    /// Says that these checkpoints are about to be removed: at most [`MAX_CHECKPOINTS`].
    pub(crate) fn set(base: &'a Base, guest: &GuestName, sequences: &[u64]) -> Result<Self, Error> {
        let mark = Self {
            base,
            name: format!("{LEASES}{}{ENDING}", WriterId::new()?),
            set: base.now(),
        };
        let body = Body {
            holder: format!("process {}", std::process::id()),
            expires: mark.set + base.lease_time,
            guest: guest.clone(),
            sequences: sequences.to_vec(),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let object = wrap(Kind::Removal, &mark.name, &body, &Seal::Store(&base.crypto))?;
        // If this fails, the mark may be there: the drop deletes it.
        base.put(&mark.name, &object, Put::New)?;
        Ok(mark)
    }

    /// For how many milliseconds it has been set, if that is so long that a deletion that begins now could end after the mark.
    pub(crate) fn late(&self) -> Option<u64> {
        let passed = self.base.now().saturating_sub(self.set);
        (passed > self.base.lease_time / 2).then_some(passed)
    }
}

impl Drop for RemovalMark<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.base.delete(&self.name) {
            tracing::warn!("{error}; it ends by itself");
        }
    }
}

/// What a reader learns of a mark.
enum State {
    /// It has ended, or is gone.
    Ended,
    /// It holds for these checkpoints; for all, if it cannot be read.
    Holds { body: Option<Body>, milliseconds: u64 },
}

fn look(base: &Base, meta: &ObjectMeta) -> Result<State, Error> {
    let read = base.get(&meta.name, Part::All(Kind::Removal.limit()));
    let read = read.and_then(|object| unwrap(Kind::Removal, &meta.name, &object.bytes, &Seal::Store(&base.crypto)));
    let read = read
        .and_then(|body| serde_json::from_slice::<Body>(&body).map_err(|error| Error::damaged(&meta.name, error.to_string())));
    let (body, expires) = match read {
        Ok(body) => {
            let expires = body.expires;
            (Some(body), expires)
        }
        Err(error) if error.is_not_found() => return Ok(State::Ended),
        // It belongs to another user, or is damaged. When it was written says when it ends.
        Err(
            Error::Damaged { .. }
            | Error::Object {
                cause: ObjectError::Denied(_),
                ..
            },
        ) => {
            let written = meta.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            (
                None,
                u64::try_from(written).unwrap_or(u64::MAX).saturating_add(base.lease_time),
            )
        }
        Err(error) => return Err(error),
    };
    // The clocks of two hosts may differ by as much again.
    Ok(match expires.saturating_add(base.lease_time).saturating_sub(base.now()) {
        0 => State::Ended,
        milliseconds => State::Holds { body, milliseconds },
    })
}

/// Whether this mark has ended without being deleted: who set it was killed.
pub(crate) fn has_ended(base: &Base, meta: &ObjectMeta) -> Result<bool, Error> {
    Ok(matches!(look(base, meta)?, State::Ended))
}

/// The error of a reader whose checkpoint is being removed now. `None` if it is not.
fn removal_of(base: &Base, checkpoint: &CheckpointName) -> Result<Option<Error>, Error> {
    for meta in base.list(LEASES)?.iter().filter(|meta| is_mark(&meta.name)) {
        let State::Holds { body, milliseconds } = look(base, meta)? else {
            continue;
        };
        let is_of = |body: &Body| body.guest == checkpoint.guest && body.sequences.contains(&checkpoint.sequence);
        if body.as_ref().is_none_or(is_of) {
            return Ok(Some(Error::BeingRemoved {
                checkpoint: checkpoint.clone(),
                holder: body.map_or_else(|| "another user".to_owned(), |body| body.holder),
                seconds: milliseconds.div_ceil(1000),
            }));
        }
    }
    Ok(None)
}

/// Waits until nobody removes this checkpoint. It may be gone then.
///
/// # Errors
///
/// [`Error::BeingRemoved`] if that takes too long.
pub(crate) fn wait(base: &Base, checkpoint: &CheckpointName) -> Result<(), Error> {
    let until = Instant::now() + LONGEST_WAIT.min(Duration::from_millis(base.lease_time / 10));
    let mut pause = SHORTEST_PAUSE;
    while let Some(error) = removal_of(base, checkpoint)? {
        if Instant::now() >= until {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}
