// SPDX-License-Identifier: GPL-2.0-or-later
//! Why a command fails.

use std::error::Error as StdError;

use crate::signals::Stopped;

/// Why a command, or a step of it, fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call has failed.
    #[error("{what}")]
    Call {
        /// What could not be done, on what.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A signal.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// For `map_err`: says what could not be done.
    pub fn call<E: Into<Box<dyn StdError + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |error| Self::Call {
            what,
            source: error.into(),
        }
    }

    /// Anything else, in words.
    pub fn other(what: impl Into<String>) -> Self {
        Self::Other(what.into())
    }

    /// Whether a signal is the cause.
    pub fn is_signal(&self) -> bool {
        matches!(self, Self::Stopped(Stopped::Signal(_)))
    }
}
