// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether a place keeps its promise about new objects.

use std::sync::Arc;

use super::{ObjectError, Objects, Part, Put};
use crate::hex::to_hex;
use crate::random::random;

/// Whether the place refuses to create an object of a name that exists. Some servers accept If-None-Match and ignore it.
///
/// # Errors
///
/// If the place cannot be written to, or gives back other bytes than it was given.
pub(crate) fn creates_exclusively(objects: &dyn Objects) -> Result<bool, ObjectError> {
    let own = random::<16>().map_err(|error| ObjectError::Other(Arc::new(error)))?;
    let name = format!("probe/{}", to_hex(&own));
    objects.put(&name, b"first", Put::New)?;
    let second = objects.put(&name, b"second", Put::New);
    let found = objects.get(&name, Part::All(16));
    objects.delete(&name)?;
    match (second, found?.bytes.as_slice()) {
        (Err(ObjectError::AlreadyExists), b"first") => Ok(true),
        (Ok(()), b"second") => Ok(false),
        (Err(error), _) if !matches!(error, ObjectError::AlreadyExists) => Err(error),
        _ => Err(ObjectError::other("it was read with other bytes than were written")),
    }
}
