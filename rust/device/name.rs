// SPDX-License-Identifier: GPL-2.0

//! Names of regions.

use crate::sys::uapi::VMEM_NAME_MAX;
use kernel::{
    ffi,
    prelude::*, //
};

const MAX: usize = VMEM_NAME_MAX as usize;

/// A name of a node: 1 to 31 of `A-Z a-z 0-9 . _ -`, not beginning with a dot, and not the name of
/// the control device.
///
/// # Invariants
///
/// The bytes end with a NUL, after which there are only NULs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name([u8; MAX]);

impl Name {
    /// Parses the field of an ioctl. [`None`] if it is empty, `EINVAL` if it is not a valid name.
    pub(crate) fn parse(field: &[ffi::c_char; MAX]) -> Result<Option<Self>> {
        let bytes = *field;
        let len = bytes.iter().position(|&b| b == 0).ok_or(EINVAL)?;
        let (name, padding) = bytes.split_at(len);
        if padding.iter().any(|&b| b != 0) {
            return Err(EINVAL);
        }
        if name.is_empty() {
            return Ok(None);
        }
        let allowed = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !name.iter().all(allowed) || name.starts_with(b".") || name == b"control" {
            return Err(EINVAL);
        }
        // INVARIANT: `len` is where the NULs begin.
        Ok(Some(Self(bytes)))
    }

    /// The name that a path has. [`None`] if no region can have this name.
    pub(crate) fn from_path(name: &[u8]) -> Option<Self> {
        let mut field = [0; MAX];
        // A byte is left for the NUL.
        let (text, _) = field
            .split_at_mut_checked(name.len())
            .filter(|(_, rest)| !rest.is_empty())?;
        for (to, from) in text.iter_mut().zip(name) {
            *to = *from as ffi::c_char;
        }
        Self::parse(&field).ok().flatten()
    }

    /// The bytes, with the NULs.
    pub(crate) fn to_field(self) -> [ffi::c_char; MAX] {
        self.0.map(|byte| byte as ffi::c_char)
    }

    /// As a string.
    pub(crate) fn as_str(&self) -> &str {
        let text = self.0.split(|&b| b == 0).next().unwrap_or(&[]);
        core::str::from_utf8(text).unwrap_or_default()
    }

    /// As a C string.
    pub(crate) fn as_c_str(&self) -> Result<&CStr> {
        CStr::from_bytes_until_nul(&self.0).map_err(|_| EINVAL)
    }
}
