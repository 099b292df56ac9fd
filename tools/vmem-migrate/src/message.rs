// SPDX-License-Identifier: GPL-2.0
//! What `vmemctl migrate` and `vmemctl receive` say to each other: JSON objects, one on a line. `Documentation/migration.rst` describes
//! them.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Versions of this conversation that are spoken here.
pub(crate) const VERSIONS: RangeInclusive<u32> = 2..=2;

/// The latest version that both sides speak, if there is one: the other one speaks those from `oldest` to `latest`.
pub(crate) fn agree(oldest: u32, latest: u32) -> Option<u32> {
    let version = latest.min(*VERSIONS.end());
    (version >= oldest && VERSIONS.contains(&version)).then_some(version)
}

/// Who does not say which version is spoken from then on speaks the first one that did not have to.
fn unsaid() -> u32 {
    2
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// To move a guest.
    Migrate,
    /// To carry QEMU's own migration stream, in both directions, from the next byte on.
    State,
    /// To learn what became of a guest, and to go on with it.
    Recover,
}

/// One piece of a guest's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// Name of the memory backend in QEMU.
    pub(crate) id: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// What the source's vmemd calls it.
    pub(crate) export: String,
}

/// What the source says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromSource {
    /// First on each connection.
    Hello {
        /// The oldest version that it speaks.
        version: u32,
        /// The latest. `None`: it speaks one only.
        #[serde(default)]
        latest: Option<u32>,
        /// Which migration: a number that nobody else has.
        session: String,
        purpose: Purpose,
    },
    /// A guest.
    Offer {
        /// Its name, for people.
        guest: String,
        /// What tells it from others. `None`: its name.
        #[serde(default)]
        key: Option<String>,
        memory: Vec<Backend>,
        /// Where the source's vmemd listens: a port of the source's address, or `HOST:PORT`.
        pages: String,
        /// The source gives pages back.
        release: bool,
    },
    /// The guest has stopped: pages may be fetched.
    Start,
    /// The guest will never run at the source again, unless the destination says that it has not run there.
    Commit {
        /// It shall run; otherwise it was paused, and stays so.
        run: bool,
    },
    /// It goes on at the source.
    Abort { reason: String },
    /// FAILED, GONE or COMPLETE has been heard: the destination may forget the guest's move.
    Heard,
}

/// What the destination says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromDestination {
    /// The connection is taken.
    Welcome {
        /// The version that is spoken from now on.
        #[serde(default = "unsaid")]
        version: u32,
    },
    /// It is not, or the guest is not.
    Refuse { reason: String },
    /// QEMU waits for the guest's state.
    Ready,
    /// The guest runs here (or is here, if it was paused).
    Running,
    /// The guest has not run here and never will.
    Failed { reason: String },
    /// The guest was the destination's, and its QEMU has ended there.
    Gone { reason: String },
    /// A line of the destination's vmemd.
    PageFetcher { line: Value },
    /// The memory is complete, and plain.
    Complete { summary: Value },
    /// Something keeps the memory from coming. For people.
    Incomplete { reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_version_of_both_is_spoken() {
        assert_eq!(agree(2, 2), Some(2));
        assert_eq!(agree(1, 7), Some(2));
        assert_eq!(agree(3, 7), None);
        assert_eq!(agree(1, 1), None);
    }

    #[test]
    fn messages_of_programs_that_speak_one_version_are_understood() {
        let hello = r#"{"say":"hello","version":2,"session":"7","purpose":"state"}"#;
        let hello: FromSource = serde_json::from_str(hello).expect("HELLO");
        let purpose = Purpose::State;
        let session = "7".to_owned();
        assert_eq!(
            hello,
            FromSource::Hello {
                version: 2,
                latest: None,
                session,
                purpose
            }
        );
        let welcome: FromDestination = serde_json::from_str(r#"{"say":"welcome"}"#).expect("WELCOME");
        assert_eq!(welcome, FromDestination::Welcome { version: 2 });
    }
}
