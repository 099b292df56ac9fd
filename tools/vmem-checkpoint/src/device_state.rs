// SPDX-License-Identifier: GPL-2.0-or-later
//! The device state of a checkpoint.

use std::io::Read;

use vmem_store::{BackendKind, Image};

use crate::error::Error;
use crate::{DEVICE_STATE, MAX_DEVICE_STATE};

/// Reads the device state.
///
/// # Errors
///
/// The checkpoint has none, or one that is too long or cannot be read.
pub(crate) fn device_state(image: &Image) -> Result<Vec<u8>, Error> {
    let checkpoint = &image.manifest().checkpoint;
    if image
        .manifest()
        .backend(DEVICE_STATE)
        .is_none_or(|(_, backend)| backend.kind != BackendKind::Blob)
    {
        return Err(Error::other(format!(
            "checkpoint {checkpoint} has no device state: it is not of a guest of QEMU; restore its memory without a command of QEMU, or \
             export it as raw"
        )));
    }
    let mut blob = image.blob(DEVICE_STATE)?;
    if blob.len() > MAX_DEVICE_STATE as u64 {
        return Err(Error::StateTooLong(MAX_DEVICE_STATE));
    }
    let mut state = Vec::new();
    let read = blob.read_to_end(&mut state);
    read.map_err(vmem_cli::Error::call(format!(
        "cannot read the device state of checkpoint {checkpoint}"
    )))?;
    Ok(state)
}
