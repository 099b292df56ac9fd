// SPDX-License-Identifier: GPL-2.0

//! Error numbers that `kernel::error::code` does not have.

use kernel::{
    bindings,
    prelude::*, //
};

/// No more requests will come.
pub(crate) fn nodata() -> Error {
    Error::from_errno(-(bindings::ENODATA as i32))
}

/// The file does not support the operation.
pub(crate) fn opnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}
