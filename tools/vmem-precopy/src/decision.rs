// SPDX-License-Identifier: GPL-2.0-or-later
//! That it is time to switch, and why.

use std::fmt;
use std::time::Duration;

use vmem_pages::PAGE_SIZE;

use crate::limits::Mode;

/// It is time to switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// The mode in which it was made.
    pub mode: Mode,
    /// The round that had ended, or the one that runs.
    pub round: u32,
    /// Pages that are left.
    pub pages_left: u64,
    /// The smoothed bandwidth in bytes per second; `None` if nothing was sent.
    pub bandwidth: Option<u64>,
    /// How long it takes to send what is left: every page with all of its bytes, or those that pages took lately if they are compressed, at the
    /// smoothed bandwidth. It contains no guess at what else
    /// a downtime has in it, as the time to stop the program and to send the state of its devices.
    pub expected: Option<Duration>,
    /// The downtime that is allowed.
    pub limit: Duration,
}

/// Why it is time to switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// What is left can be sent within the downtime.
    Fits,
    /// So little is left that another round is not worth it.
    FewPages,
    /// What is left does not become less, and is as little now as it has been.
    Stalled,
    /// The last round had to send at least four pages for each page less that is left.
    LittleGain,
    /// The limit of rounds is reached.
    Rounds,
    /// All of the memory was sent as often as the limit allows.
    Factor,
    /// The user wants it.
    Requested,
}

impl Decision {
    /// Whether what is left can be sent within the downtime.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.expected.is_some_and(|expected| expected <= self.limit)
    }

    /// Whether the downtime will be longer than allowed: in the mode [`Mode::Precopy`] what is left is sent in it.
    #[must_use]
    pub fn is_longer(&self) -> bool {
        self.mode == Mode::Precopy && !self.fits()
    }
}

/// How long it takes to send so many pages. Each takes `page_bytes` on the network: all of its bytes if that is not known, and never more.
pub(crate) fn time_to_send(pages: u64, page_bytes: Option<u64>, bandwidth: Option<u64>) -> Option<Duration> {
    const ALL: u64 = PAGE_SIZE as u64;
    match (pages, bandwidth) {
        (0, _) => Some(Duration::ZERO),
        (_, None | Some(0)) => None,
        (pages, Some(bandwidth)) => {
            let bytes = u128::from(pages) * u128::from(page_bytes.map_or(ALL, |bytes| bytes.min(ALL)));
            let nanos = bytes * 1_000_000_000 / u128::from(bandwidth);
            Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.pages_left;
        write!(f, "switch after round {}: ", self.round)?;
        match self.reason {
            Reason::Fits => write!(f, "the {left} pages that are left can be sent within the downtime"),
            Reason::FewPages => write!(f, "only {left} pages are left"),
            Reason::Stalled => write!(
                f,
                "the program writes as fast as pages are sent, and what is left ({left} pages) does not become less"
            ),
            Reason::LittleGain => write!(
                f,
                "the last round sent four pages or more for each page less that is left ({left} pages)"
            ),
            Reason::Rounds => write!(f, "the limit of rounds is reached, with {left} pages left"),
            Reason::Factor => write!(
                f,
                "the limit of bytes is reached (a multiple of the memory), with {left} pages left"
            ),
            Reason::Requested => write!(f, "the user asked for it, with {left} pages left"),
        }?;
        match self.expected {
            Some(expected) if self.is_longer() => write!(
                f,
                "; the downtime will be longer than {} ms: about {} ms and the time for the devices",
                self.limit.as_millis(),
                expected.as_millis()
            ),
            None if self.is_longer() => write!(f, "; the downtime cannot be predicted: nothing was sent yet"),
            Some(expected) if self.fits() => write!(f, " ({} ms of {} ms)", expected.as_millis(), self.limit.as_millis()),
            Some(expected) => write!(f, "; post-copy brings them in about {} ms", expected.as_millis()),
            None => write!(f, "; post-copy brings them"),
        }
    }
}
