// SPDX-License-Identifier: GPL-2.0
//! One connection to one QEMU.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{LineError, Lines, QmpError};

/// The longest line that is taken: the largest replies have some hundred KiB.
const LONGEST_LINE: usize = 16 << 20;

/// Events that nobody has asked for yet. Those after them push out the oldest.
const MOST_EVENTS: usize = 1024;

/// Something that QEMU says by itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// What has happened.
    pub name: String,
    /// Details, or null.
    pub data: Value,
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    limit: Duration,
    /// Of the latest command.
    number: u64,
    lines: Lines,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects to the socket at `path`, and waits until QEMU takes commands. No command may take longer than `limit`.
    ///
    /// # Errors
    ///
    /// There is no QEMU, it is busy with another client for all that time, or it is no QEMU.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Connect {
            path: path.to_owned(),
            source,
        };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(QmpError::Io)?;
        // A QEMU that has a client, and others who wait, lets nobody connect. This limit is one for connecting, too.
        socket.set_write_timeout(Some(limit)).map_err(QmpError::Io)?;
        match SockAddr::unix(path).and_then(|address| socket.connect(&address)) {
            Ok(()) => Self::new(UnixStream::from(OwnedFd::from(socket)), limit),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(QmpError::TimedOut {
                what: "the connection".to_owned(),
                limit,
            }),
            Err(error) => Err(failed(error)),
        }
    }

    /// As [`connect`](Self::connect), to a QEMU that is just being started: tries until `patience` is over.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn connect_soon(path: &Path, limit: Duration, patience: Duration) -> Result<Self, QmpError> {
        const PAUSE: Duration = Duration::from_millis(20);
        let until = Instant::now() + patience;
        loop {
            match Self::connect(path, limit) {
                Err(QmpError::Connect { .. }) if Instant::now() < until => thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    pub(crate) fn new(socket: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self {
            socket,
            limit,
            number: 0,
            lines: Lines::new(LONGEST_LINE),
            events: VecDeque::new(),
        };
        qmp.socket.set_write_timeout(Some(limit)).map_err(QmpError::Io)?;
        // A QEMU that has another client greets only when that one has left.
        let greeting = qmp.line("the connection", Instant::now() + limit)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::NotQmp(greeting.to_string()));
        }
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The number of QEMU's process: of the one that listens at the socket.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn process(&self) -> Result<i32, QmpError> {
        let peer = rustix::net::sockopt::socket_peercred(&self.socket);
        let peer = peer.map_err(|error| QmpError::Io(error.into()))?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Carries out a command, and returns what it gives.
    ///
    /// # Errors
    ///
    /// QEMU refuses it, or is gone.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let line = self.command(command, &arguments);
        self.socket.write_all(line.as_bytes()).map_err(of_io)?;
        self.reply(command)
    }

    /// Gives QEMU an open file, which it knows as `fd:NAME` from then on; one that it knew so before it closes.
    ///
    /// # Errors
    ///
    /// QEMU refuses it, or is gone.
    pub fn give(&mut self, name: &str, file: impl AsFd) -> Result<(), QmpError> {
        const COMMAND: &str = "getfd";
        let line = self.command(COMMAND, &json!({"fdname": name}));
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        with.push(SendAncillaryMessage::ScmRights(&files));
        let piece = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(&self.socket, &piece, &mut with, SendFlags::NOSIGNAL).map_err(|error| of_io(error.into()))?;
        // The file goes with the first byte.
        let rest = line.as_bytes().get(sent..).unwrap_or_default();
        self.socket.write_all(rest).map_err(of_io)?;
        self.reply(COMMAND).map(drop)
    }

    /// The line that says the next command.
    fn command(&mut self, command: &str, arguments: &Value) -> String {
        self.number += 1;
        let line = json!({"execute": command, "arguments": arguments, "id": self.number});
        format!("{line}\n")
    }

    /// What the latest command gives.
    fn reply(&mut self, command: &str) -> Result<Value, QmpError> {
        let deadline = Instant::now() + self.limit;
        loop {
            let mut line = self.line(command, deadline)?;
            if line.get("id").is_some_and(|id| *id != json!(self.number)) {
                // The reply to a command that took too long.
                continue;
            }
            if let Some(reply) = line.get_mut("return") {
                return Ok(reply.take());
            }
            if let Some(error) = line.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: reason.to_owned(),
                });
            }
            self.note(line)?;
        }
    }

    /// The oldest event that has not been looked at yet; waits for one until `deadline`. `None` if there is none.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Event>, QmpError> {
        while self.events.is_empty() {
            match self.line("an event", deadline) {
                // The reply to a command that took too long.
                Ok(line) if line.get("return").is_some() || line.get("error").is_some() => {}
                Ok(line) => self.note(line)?,
                Err(QmpError::TimedOut { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    fn note(&mut self, mut line: Value) -> Result<(), QmpError> {
        let Some(name) = line.get("event").and_then(Value::as_str).map(str::to_owned) else {
            return Err(QmpError::NotQmp(line.to_string()));
        };
        let data = line.get_mut("data").map_or(Value::Null, Value::take);
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { name, data });
        Ok(())
    }

    /// The next line. One that is not here by `deadline` stays for later.
    fn line(&mut self, what: &str, deadline: Instant) -> Result<Value, QmpError> {
        let began = Instant::now();
        let line = match self.lines.next(&self.socket, deadline) {
            Ok(Some(line)) => line,
            Ok(None) => {
                return Err(QmpError::TimedOut {
                    what: what.to_owned(),
                    limit: began.elapsed(),
                });
            }
            Err(LineError::Closed) => return Err(QmpError::Closed),
            Err(LineError::Io(error)) => return Err(QmpError::Io(error)),
            Err(error @ LineError::TooLong(_)) => return Err(QmpError::NotQmp(error.to_string())),
        };
        serde_json::from_slice(&line).map_err(|_| QmpError::NotQmp(String::from_utf8_lossy(&line).trim().to_owned()))
    }
}

fn of_io(error: io::Error) -> QmpError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => QmpError::Closed,
        _ => QmpError::Io(error),
    }
}
