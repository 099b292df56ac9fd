// SPDX-License-Identifier: GPL-2.0-or-later
//! Versions of the protocol.

/// A version of the page protocol that this side speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Version {
    /// Identities of exports have 32 bits.
    V3 = 3,
    /// Identities have 128 bits.
    V4 = 4,
    /// Exports have the size of their memory to the byte.
    V5 = 5,
}

impl Version {
    /// The version that a destination asks for first.
    pub(crate) const LATEST: Self = Self::V5;

    /// `None` for a version that this side does not speak.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        [Self::V3, Self::V4, Self::V5]
            .into_iter()
            .find(|version| version.number() == number)
    }

    pub(crate) const fn number(self) -> u16 {
        self as u16
    }
}
