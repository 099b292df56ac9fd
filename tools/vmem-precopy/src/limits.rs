// SPDX-License-Identifier: GPL-2.0-or-later
//! What the user can set: the mode, and the limits of the rounds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Error;

/// What ends the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only that what is left fits into the downtime, or a limit. What is left is sent while the program is stopped.
    Precopy,
    /// Also that what is left does not become less: post-copy brings it.
    Hybrid,
    /// As hybrid, and also that a round gains little for what it sends.
    #[default]
    Auto,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Precopy, Self::Hybrid, Self::Auto];

    fn name(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Hybrid => "hybrid",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| Error::Mode(text.to_owned()))
    }
}

/// When the rounds end at the latest, and how long the downtime may be.
///
/// No limit can be looser than the loosest of Xen's and Palacios': rounds always end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of rounds.
    pub rounds: u32,
    /// How many times all of the memory is sent.
    pub factor: u32,
    /// With fewer pages left than this, another round is not worth it.
    pub pages_left: u64,
    /// How long it may take to send what is left.
    pub downtime: Duration,
}

impl Limits {
    /// Xen's limits: 29 rounds, three times the memory, 50 pages. The default.
    pub const XEN: Self = Self {
        rounds: 29,
        factor: 3,
        pages_left: 50,
        downtime: Duration::from_millis(100),
    };

    /// Palacios' limits: 32 rounds, 200 pages. It limits no bytes; here Xen's limit applies.
    pub const PALACIOS: Self = Self {
        rounds: 32,
        pages_left: 200,
        ..Self::XEN
    };

    const MAX_DOWNTIME: Duration = Duration::from_secs(60);

    /// The limits with this name: `xen` or `palacios`.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "xen" => Some(Self::XEN),
            "palacios" => Some(Self::PALACIOS),
            _ => None,
        }
    }

    /// The limits, if they are valid.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`].
    pub fn check(self) -> Result<Self, Error> {
        let limit = |what, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::Limit {
                what,
                value,
                least,
                most,
            }),
        };
        limit("rounds", self.rounds.into(), 1, Self::PALACIOS.rounds.into())?;
        limit("times the memory", self.factor.into(), 1, Self::XEN.factor.into())?;
        limit("pages left", self.pages_left, 0, Self::PALACIOS.pages_left)?;
        let most = Self::MAX_DOWNTIME.as_millis() as u64;
        // A part of a millisecond counts as one.
        let downtime = u64::try_from(self.downtime.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        limit("ms of downtime", downtime, 1, most)?;
        Ok(self)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::XEN
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_looser_than_every_preset_are_refused() {
        let refused = |change: fn(&mut Limits)| {
            let mut limits = Limits::XEN;
            change(&mut limits);
            limits.check().is_err()
        };
        assert!(Limits::XEN.check().is_ok() && Limits::PALACIOS.check().is_ok());
        assert!(refused(|limits| limits.rounds = 33) && refused(|limits| limits.rounds = 0));
        assert!(refused(|limits| limits.factor = 4) && refused(|limits| limits.factor = 0));
        assert!(refused(|limits| limits.pages_left = 201));
        assert!(refused(|limits| limits.downtime = Duration::ZERO));
        assert!(refused(|limits| limits.downtime = Duration::MAX));
    }

    #[test]
    fn mode_is_read_as_it_is_shown() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert!("postcopy".parse::<Mode>().is_err());
    }
}
