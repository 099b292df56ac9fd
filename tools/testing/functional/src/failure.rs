// SPDX-License-Identifier: GPL-2.0-or-later
//! What a test fails with: what went wrong and where in the test.

use std::fmt::Display;
use std::panic::Location;

/// Why a test failed.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    is_lack: bool,
}

/// What a test, or a step of it, returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// This machine lacks what the test wants: the test is skipped, and has not failed.
    pub(crate) fn lack(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            is_lack: true,
        }
    }

    /// Whether it is such a lack.
    pub(crate) fn is_lack(&self) -> bool {
        self.is_lack
    }

    /// What went wrong, with the place.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl<E: Display> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self {
            text: format!("{}: {error}", Location::caller()),
            is_lack: false,
        }
    }
}

/// Fails the test unless the condition holds.
macro_rules! ensure {
    ($condition:expr) => {
        if !$condition {
            return Err(concat!("does not hold: ", stringify!($condition)).into());
        }
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}
pub(crate) use ensure;

/// Fails the test unless both are equal.
macro_rules! equal {
    ($left:expr, $right:expr) => {
        match (&$left, &$right) {
            (left, right) if left == right => (),
            (left, right) => {
                return Err(format!("{} is {left:?} and not {right:?}", stringify!($left)).into());
            }
        }
    };
}
pub(crate) use equal;

/// Fails the test unless the call failed with this errno (a constant of `Errno`).
macro_rules! refused {
    ($call:expr, $errno:ident) => {
        match $call {
            Ok(_) => return Err(concat!(stringify!($call), " was not refused").into()),
            Err(error) => {
                let errno = crate::failure::errno_of(&error);
                if errno != Some(rustix::io::Errno::$errno) {
                    return Err(format!(
                        "{} failed with {error} ({errno:?}) and not with {}",
                        stringify!($call),
                        stringify!($errno)
                    )
                    .into());
                }
            }
        }
    };
}
pub(crate) use refused;

/// The errno in an error of the standard library, of rustix, or of a mapping.
pub(crate) fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<rustix::io::Errno> {
    let mut error = Some(error);
    while let Some(inner) = error {
        if let Some(errno) = inner.downcast_ref::<rustix::io::Errno>() {
            return Some(*errno);
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
        }
        error = inner.source();
    }
    None
}
