// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes over a control connection: JSON objects, one on a line. `Documentation/control.rst` describes them.

use std::ops::RangeInclusive;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use vmem_process::Identity;

use crate::error::{Error, ErrorKind};
use crate::event::{Event, Status};
use crate::rounds::Change;

/// Versions of this protocol that are spoken here.
pub const VERSIONS: RangeInclusive<u32> = 1..=1;

/// The longest line that a client may send, with its end.
pub const LONGEST_REQUEST: usize = 16 << 10;

/// The longest line that a daemon may send, with its end: [`MAX_REGIONS`](crate::MAX_REGIONS) take 200 KiB.
pub const LONGEST_REPLY: usize = 1 << 20;

/// The latest version that both sides speak, if there is one: the peer speaks those from `oldest` to `latest`.
#[must_use]
pub fn agree(oldest: u32, latest: u32) -> Option<u32> {
    let version = latest.min(*VERSIONS.end());
    (version >= oldest && VERSIONS.contains(&version)).then_some(version)
}

/// What a daemon does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// It serves pages to other machines.
    Serve,
    /// It fetches pages.
    Fetch,
    /// It is no vmemd: a vmemctl that migrates a guest.
    Migrate,
}

impl Duty {
    /// The program that has this duty.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Serve | Self::Fetch => "vmemd",
            Self::Migrate => "vmemctl",
        }
    }
}

/// A request, with the number that its answer will have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Call {
    /// The client's number for it.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client wants of a daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// First on each connection.
    Hello {
        /// The oldest version that the client speaks.
        oldest: u32,
        /// The latest one.
        latest: u32,
    },
    /// Where the daemon stands.
    Status,
    /// The end of `--hold`: pages may be fetched. It means nothing if they are being fetched.
    Start,
    /// The program has stopped: the source takes what was written last, and its rounds are over. [`Event::Finished`] says when.
    Finish,
    /// The source may give back what has been delivered.
    Release,
    /// All events from now on.
    Subscribe,
    /// A source changes how it sends.
    Set(Change),
    /// A migration is given up, and the guest continues at the source.
    Abort,
    /// The end, now. The answer says that everything is let go of.
    Stop,
    /// A request that this version does not know.
    #[serde(other)]
    Unknown,
}

/// An answer, with the number of its request; 0 if that has not been understood.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reply {
    /// The client's number for the request.
    pub id: u64,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What a daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To HELLO.
    Hello {
        /// The version that is spoken from now on.
        version: u32,
        /// The daemon was started for this session; empty if for none.
        session: String,
        /// What the daemon does.
        duty: Duty,
        /// Which process the daemon is.
        process: Identity,
    },
    /// To STATUS.
    Status(Box<Status>),
    /// It is done.
    Done,
    /// To STOP: everything is let go of, and the daemon ends.
    Stopped,
    /// It is not done.
    Error {
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        text: String,
    },
}

/// What comes from a daemon.
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// To a request.
    Reply(Reply),
    /// To a subscription.
    Event(Event),
}

impl Message {
    /// Reads a line.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`]: it is neither.
    pub fn parse(line: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Probe {
            answer: Option<IgnoredAny>,
        }
        let parsed = serde_json::from_slice::<Probe>(line).and_then(|probe| match probe.answer {
            Some(_) => serde_json::from_slice(line).map(Self::Reply),
            None => serde_json::from_slice(line).map(Self::Event),
        });
        // The text of the error can have any bytes of the line in it.
        parsed.map_err(|error| Error::Foreign(format!("{}: {}", excerpt(error.to_string().as_bytes()), excerpt(line))))
    }
}

/// The beginning of what came, without what would harm a terminal.
pub(crate) fn excerpt(line: &[u8]) -> String {
    let line = &line[..line.len().min(80)];
    String::from_utf8_lossy(line).trim().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_version_of_both_is_spoken() {
        assert_eq!(agree(1, 1), Some(1));
        assert_eq!(agree(0, 7), Some(1));
        assert_eq!(agree(2, 7), None);
        assert_eq!(agree(0, 0), None);
        assert_eq!(agree(7, 1), None, "a range that is none");
    }

    #[test]
    fn requests_and_answers_have_one_form() {
        let calls = [
            (
                Request::Hello { oldest: 1, latest: 3 },
                r#"{"id":7,"request":"hello","oldest":1,"latest":3}"#,
            ),
            (Request::Status, r#"{"id":7,"request":"status"}"#),
            (Request::Start, r#"{"id":7,"request":"start"}"#),
            (Request::Finish, r#"{"id":7,"request":"finish"}"#),
            (Request::Release, r#"{"id":7,"request":"release"}"#),
            (Request::Subscribe, r#"{"id":7,"request":"subscribe"}"#),
            (Request::Stop, r#"{"id":7,"request":"stop"}"#),
            (Request::Abort, r#"{"id":7,"request":"abort"}"#),
            (
                Request::Set(Change {
                    bandwidth: Some(1 << 20),
                    max_downtime_ms: Some(300),
                    mode: Some("hybrid".to_owned()),
                    switch_now: true,
                }),
                r#"{"id":7,"request":"set","bandwidth":1048576,"max_downtime_ms":300,"mode":"hybrid","switch_now":true}"#,
            ),
            (Request::Set(Change::default()), r#"{"id":7,"request":"set"}"#),
        ];
        for (request, line) in calls {
            let call = Call { id: 7, request };
            assert_eq!(serde_json::to_string(&call).expect("JSON"), line);
            assert_eq!(serde_json::from_str::<Call>(line).expect("a request"), call);
        }
        let reply = Reply {
            id: u64::MAX,
            answer: Answer::Error {
                kind: ErrorKind::UnknownRequest,
                text: "no".to_owned(),
            },
        };
        let line = r#"{"id":18446744073709551615,"answer":"error","kind":"unknown_request","text":"no"}"#;
        assert_eq!(serde_json::to_string(&reply).expect("JSON"), line);
        assert_eq!(Message::parse(line.as_bytes()).expect("an answer"), Message::Reply(reply));
    }

    #[test]
    fn line_that_is_neither_answer_nor_event_is_refused() {
        for bad in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"answer":"done"}"#,
            r#"{"id":1,"answer":"what"}"#,
            "\u{1b}[2J",
        ] {
            let error = Message::parse(bad.as_bytes()).expect_err(bad);
            assert!(!error.to_string().contains('\u{1b}'), "{bad}");
        }
        let known = Message::parse(br#"{"event":"later"}"#).expect("an event");
        assert_eq!(known, Message::Event(Event::Unknown));
    }
}
