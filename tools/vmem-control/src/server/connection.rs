// SPDX-License-Identifier: GPL-2.0-or-later
//! A client, as the server sees it. Nothing here waits.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use vmem_lines::{Lines, TooLong};

use crate::error::ErrorKind;
use crate::event::Event;
use crate::limits::cut;
use crate::message::{Answer, Call, LONGEST_REQUEST, Reply};

/// No request of a client is read while so many bytes wait for it to be taken.
const ANSWERS: usize = 64 << 10;

/// Events are left out while so many bytes wait.
const EVENTS: usize = 1 << 20;

/// A client that takes nothing for so long gives its place up if another one needs it.
const STALLED: Duration = Duration::from_secs(5);

/// Lines that are no requests: after so many the connection ends.
const GARBAGE: u32 = 10;

/// What a client's bytes come to.
#[derive(Debug)]
pub(super) enum Heard {
    /// A request.
    Call(Call),
    /// A line that is none.
    Garbage,
    /// A line that is too long.
    TooLong,
}

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    /// No other client has this number.
    pub(super) number: u64,
    socket: UnixStream,
    lines: Lines,
    /// What it has not taken yet.
    output: Vec<u8>,
    /// Events that were left out.
    dropped: u64,
    /// When it was last known to take what is sent.
    moved: Instant,
    garbage: u32,
    /// It has said HELLO.
    pub(super) greeted: bool,
    pub(super) subscribed: bool,
    /// Its latest STOP that has not been answered.
    pub(super) stop: Option<u64>,
    /// Nothing of it is read any more; it is closed once it has taken what waits.
    pub(super) closing: bool,
    pub(super) since: Instant,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, number: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self {
            number,
            socket,
            lines: Lines::new(LONGEST_REQUEST),
            output: Vec::new(),
            dropped: 0,
            moved: now,
            garbage: 0,
            greeted: false,
            subscribed: false,
            stop: None,
            closing: false,
            since: now,
        })
    }

    /// Whether requests are to be read.
    pub(super) fn reads(&self) -> bool {
        !self.closing && self.output.len() < ANSWERS
    }

    /// Whether something waits to be taken.
    pub(super) fn writes(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether it has not taken for long what waits.
    pub(super) fn is_stalled(&self) -> bool {
        self.writes() && self.moved.elapsed() >= STALLED
    }

    /// Reads what has come. Whether the client is there.
    pub(super) fn receive(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.lines.push(&bytes[..count]);
                true
            }
            Err(error) => is_for_now(&error),
        }
    }

    /// What the next line is, if one is there.
    pub(super) fn next(&mut self) -> Option<Heard> {
        if !self.reads() {
            return None;
        }
        match self.lines.next() {
            Ok(None) => None,
            Ok(Some(line)) => Some(match serde_json::from_slice(&line) {
                Ok(call) => Heard::Call(call),
                Err(_) => {
                    self.garbage += 1;
                    self.closing = self.garbage >= GARBAGE;
                    Heard::Garbage
                }
            }),
            Err(TooLong(_)) => {
                self.closing = true;
                Some(Heard::TooLong)
            }
        }
    }

    /// Has it get an answer.
    pub(super) fn answer(&mut self, id: u64, answer: Answer) {
        self.push(&Reply { id, answer });
    }

    /// Has it hear that something is not done.
    pub(super) fn refuse(&mut self, id: u64, kind: ErrorKind, text: impl Into<String>) {
        let mut text = text.into();
        cut(&mut text);
        self.answer(id, Answer::Error { kind, text });
    }

    /// Has it get an event, if it has subscribed, and takes them. The last one it gets in any case.
    pub(super) fn event(&mut self, event: &Event) {
        if !self.subscribed || self.closing {
            return;
        }
        if self.output.len() >= EVENTS && !matches!(event, Event::End { .. }) {
            self.dropped += 1;
            return;
        }
        if let lines @ 1.. = std::mem::take(&mut self.dropped) {
            self.push(&Event::Dropped { lines });
        }
        self.push(event);
    }

    fn push(&mut self, message: &impl Serialize) {
        if self.output.is_empty() {
            self.moved = Instant::now();
        }
        // Numbers and strings: serializing them does not fail.
        if serde_json::to_writer(&mut self.output, message).is_ok() {
            self.output.push(b'\n');
        }
    }

    /// Sends what the client takes. Whether it is there.
    pub(super) fn send(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(0) => return false,
                Ok(count) => {
                    self.output.drain(..count);
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
