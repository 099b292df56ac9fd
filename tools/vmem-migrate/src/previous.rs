// SPDX-License-Identifier: GPL-2.0-or-later
//! A vmemctl of the version before: it says what that one has said, byte for byte, and understands what that one has understood.

mod message;

use std::collections::HashMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message as today;

/// A move, from the first message to the last.
const CONVERSATION: &str = include_str!("previous/conversation.txt");

/// Messages that this move does not have.
const OTHERS: &str = include_str!("previous/others.txt");

/// The session of [`CONVERSATION`].
pub(crate) const SESSION: &str = "0123456789abcdef0123456789abcdef";

/// How long the vmemctl of today may take for a message.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// A message of the fixture.
struct Line {
    connection: &'static str,
    side: Side,
    text: &'static str,
}

impl Line {
    fn parse(text: &'static str) -> Self {
        let (connection, rest) = text.split_once(' ').expect("a connection");
        let (side, text) = rest.split_once(' ').expect("a side");
        let side = match side {
            ">" => Side::Source,
            "<" => Side::Destination,
            other => panic!("{other}"),
        };
        Self { connection, side, text }
    }

    /// Checks that the vmemctl of the version before takes `said` for the same message.
    fn check(&self, said: &str) {
        match self.side {
            Side::Source => same::<message::FromSource>(self.text, said),
            Side::Destination => same::<message::FromDestination>(self.text, said),
        }
    }

    /// This message as the vmemctl of today says it.
    fn repeated(&self) -> String {
        match self.side {
            Side::Source => repeat::<today::FromSource>(self.text),
            Side::Destination => repeat::<today::FromDestination>(self.text),
        }
    }
}

fn lines(text: &'static str) -> impl Iterator<Item = Line> {
    text.lines().filter(|line| !line.starts_with('#')).map(Line::parse)
}

fn same<T: DeserializeOwned + PartialEq + Debug>(expected: &str, said: &str) {
    let read = |text: &str| serde_json::from_str::<T>(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read(said), read(expected));
}

fn repeat<T: DeserializeOwned + Serialize>(text: &str) -> String {
    let message: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    serde_json::to_string(&message).expect("JSON")
}

/// What the destination of the version before has said with this name, as today's vmemctl understands it.
pub(crate) fn of_destination(name: &str) -> today::FromDestination {
    let named = format!("{{\"say\":\"{name}\"");
    let line = lines(CONVERSATION).find(|line| line.side == Side::Destination && line.text.starts_with(&named));
    serde_json::from_str(line.expect("a message").text).expect("a message of today")
}

/// Plays one side of the move against the vmemctl of today on the other. `connect` makes, or accepts, the next connection.
pub(crate) fn play(side: Side, connect: impl Fn() -> TcpStream) {
    let mut connections: HashMap<_, BufReader<TcpStream>> = HashMap::new();
    for line in lines(CONVERSATION) {
        let connection = connections.entry(line.connection).or_insert_with(|| {
            let stream = connect();
            stream.set_read_timeout(Some(LIMIT)).expect("a socket");
            BufReader::new(stream)
        });
        if line.side == side {
            writeln!(connection.get_mut(), "{}", line.text).unwrap_or_else(|error| panic!("{error}: {}", line.text));
        } else {
            let mut said = String::new();
            let count = connection.read_line(&mut said);
            assert!(
                count.as_ref().is_ok_and(|count| *count > 0),
                "{count:?}, and not {}",
                line.text
            );
            line.check(&said);
        }
    }
}

#[test]
fn messages_of_both_versions_are_understood_by_the_other() {
    for line in lines(CONVERSATION).chain(lines(OTHERS)) {
        line.check(&line.repeated());
    }
}
