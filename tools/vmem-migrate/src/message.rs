// SPDX-License-Identifier: GPL-2.0-or-later
//! The protocol between `vmemctl migrate` and `vmemctl receive`: JSON objects, one on a line. `Documentation/migration.rst` describes it.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The versions of the protocol that this vmemctl speaks.
pub(crate) const VERSIONS: RangeInclusive<u32> = 2..=2;

/// The latest version that both sides speak, if there is one. The peer speaks those from `oldest` to `latest`.
pub(crate) fn agree(oldest: u32, latest: u32) -> Option<u32> {
    let version = latest.min(*VERSIONS.end());
    (version >= oldest && VERSIONS.contains(&version)).then_some(version)
}

/// The version of a destination whose WELCOME has none: the first version of which WELCOME need not say it.
fn unsaid() -> u32 {
    2
}

/// For fields that earlier versions do not have.
fn is_false(value: &bool) -> bool {
    !value
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// To move a guest.
    Migrate,
    /// To carry QEMU's own migration stream, in both directions, from the next byte on.
    State,
    /// To learn what happened to a guest, and to continue its move.
    Recover,
}

/// One memory backend of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// Name of the memory backend in QEMU.
    pub(crate) id: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// Its export at the source's vmemd.
    pub(crate) export: String,
}

/// A message of the source.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromSource {
    /// The first message on each connection.
    Hello {
        /// The oldest version that the source speaks.
        version: u32,
        /// The latest version. `None`: the source speaks only one.
        #[serde(default)]
        latest: Option<u32>,
        /// The number of the session, which no other move has.
        session: String,
        purpose: Purpose,
    },
    /// Offers a guest.
    Offer {
        /// The guest's name, for messages.
        guest: String,
        /// What identifies the guest. `None`: its name does.
        #[serde(default)]
        key: Option<String>,
        memory: Vec<Backend>,
        /// Where the source's vmemd listens: a port of the source's address, or `HOST:PORT`.
        pages: String,
        /// The source frees pages that the destination has.
        release: bool,
        /// The source can send pages in rounds while the guest runs there. An earlier version does not know the field.
        #[serde(default, skip_serializing_if = "is_false")]
        rounds: bool,
        /// The destination is to compare all memory before it loads the guest's state. An earlier version does not know the field.
        #[serde(default, skip_serializing_if = "is_false")]
        verify: bool,
        /// How many connections the destination is to use for pages that the guest does not wait for. `None`, or an earlier version, leaves it
        /// to the destination.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        streams: Option<u8>,
        /// How the destination is to have those pages compressed, as vmemd's `--compress` has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        compress: Option<String>,
    },
    /// The guest has stopped, and QEMU has saved its devices: pages may be fetched.
    Start,
    /// The guest will never run at the source again, unless the destination says that it has not run there.
    Commit {
        /// The guest ran at the source and must run. If not, the guest was paused and stays paused.
        run: bool,
    },
    /// The guest continues at the source.
    Abort { reason: String },
    /// The source has received FAILED, GONE or COMPLETE: the destination may forget the move.
    Heard,
}

/// A message of the destination.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum FromDestination {
    /// The connection is accepted.
    Welcome {
        /// The version of the protocol from now on.
        #[serde(default = "unsaid")]
        version: u32,
    },
    /// The connection or the guest is refused.
    Refuse { reason: String },
    /// QEMU waits for the guest's state.
    Ready {
        /// The destination takes pages in rounds. Only if the source has offered that.
        #[serde(default, skip_serializing_if = "is_false")]
        rounds: bool,
        /// The destination compares all memory once it is there. Only if the source has asked for that.
        #[serde(default, skip_serializing_if = "is_false")]
        verify: bool,
    },
    /// The guest runs at the destination, or is paused there if it was paused at the source.
    Running,
    /// The guest has not run at the destination and never will.
    Failed { reason: String },
    /// The destination owned the guest, and its QEMU has ended there.
    Gone { reason: String },
    /// A line of the destination's vmemd.
    Pages { line: Value },
    /// The guest's memory is complete, and plain.
    Complete { summary: Value },
    /// Pages do not arrive at the moment, and why. For the user.
    Incomplete { reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_common_version_is_chosen() {
        assert_eq!(agree(2, 2), Some(2));
        assert_eq!(agree(1, 7), Some(2));
        assert_eq!(agree(3, 7), None);
        assert_eq!(agree(1, 1), None);
    }

    #[test]
    fn messages_without_version_fields_are_understood() {
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

    #[test]
    fn rounds_and_verify_are_written_only_if_true_and_false_if_missing() {
        let ready = |rounds, verify| FromDestination::Ready { rounds, verify };
        let offer = |rounds, verify| FromSource::Offer {
            guest: "g".to_owned(),
            key: None,
            memory: Vec::new(),
            pages: "1".to_owned(),
            release: false,
            rounds,
            verify,
            streams: None,
            compress: None,
        };
        let text = |message: &FromSource| serde_json::to_string(message).expect("JSON");
        // What version 2 had before there were rounds.
        let earlier = r#"{"say":"offer","guest":"g","key":null,"memory":[],"pages":"1","release":false}"#;
        assert_eq!(text(&offer(false, false)), earlier);
        assert_eq!(text(&offer(true, false)), earlier.replace('}', r#","rounds":true}"#));
        assert_eq!(text(&offer(false, true)), earlier.replace('}', r#","verify":true}"#));
        let text = |message: &FromDestination| serde_json::to_string(message).expect("JSON");
        assert_eq!(text(&ready(false, false)), r#"{"say":"ready"}"#);
        assert_eq!(text(&ready(true, false)), r#"{"say":"ready","rounds":true}"#);
        assert_eq!(text(&ready(false, true)), r#"{"say":"ready","verify":true}"#);
        for (rounds, verify) in [(false, false), (true, false), (false, true), (true, true)] {
            let sent = serde_json::to_string(&offer(rounds, verify)).expect("JSON");
            assert_eq!(
                serde_json::from_str::<FromSource>(&sent).expect("OFFER"),
                offer(rounds, verify)
            );
            let sent = text(&ready(rounds, verify));
            assert_eq!(
                serde_json::from_str::<FromDestination>(&sent).expect("READY"),
                ready(rounds, verify)
            );
        }
    }

    #[test]
    fn streams_and_compress_are_written_only_if_given() {
        let earlier = r#"{"say":"offer","guest":"g","key":null,"memory":[],"pages":"1","release":false}"#;
        let given = earlier.replace('}', r#","streams":3,"compress":"zstd:2"}"#);
        let parse = |text: &str| serde_json::from_str::<FromSource>(text).expect("OFFER");
        for text in [earlier, given.as_str()] {
            assert_eq!(serde_json::to_string(&parse(text)).expect("JSON"), text);
        }
        assert!(matches!(
            parse(&given),
            FromSource::Offer { streams: Some(3), compress: Some(compress), .. } if compress == "zstd:2"
        ));
    }

    #[test]
    fn messages_keep_their_names_on_the_wire() {
        let name = |message: &FromDestination| serde_json::to_value(message).expect("JSON")["say"].clone();
        let text = String::new;
        for (message, wire) in [
            (FromDestination::Welcome { version: 2 }, "welcome"),
            (FromDestination::Refuse { reason: text() }, "refuse"),
            (
                FromDestination::Ready {
                    rounds: false,
                    verify: false,
                },
                "ready",
            ),
            (FromDestination::Running, "running"),
            (FromDestination::Failed { reason: text() }, "failed"),
            (FromDestination::Gone { reason: text() }, "gone"),
            (FromDestination::Pages { line: Value::Null }, "pages"),
            (FromDestination::Complete { summary: Value::Null }, "complete"),
            (FromDestination::Incomplete { reason: text() }, "incomplete"),
        ] {
            assert_eq!(name(&message), wire);
        }
    }
}
