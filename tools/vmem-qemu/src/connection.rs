// SPDX-License-Identifier: GPL-2.0-or-later
//! One connection to one QEMU.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::error::Error;
use crate::lines::Lines;
use crate::socket;

/// A time limit for commands that suits most programs. QEMU executes a command in its main loop, which can wait for a disk, for example.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The longest line accepted, in bytes. The largest replies have some hundred KiB.
const MAX_LINE: usize = 16 << 20;

/// The most events that wait for [`Qmp::next_event`]. A further one replaces the oldest.
const MAX_EVENTS: usize = 1024;

/// An event that QEMU emitted.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// The name of the event, such as `STOP`.
    pub name: String,
    /// The data of the event, or null.
    pub data: Value,
    /// When it happened: the time since 1970 by QEMU's clock, if QEMU could read that.
    pub time: Option<Duration>,
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    limit: Duration,
    /// The `id` of the latest command.
    last_id: u64,
    lines: Lines,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects to the socket at `path`, and waits until QEMU accepts commands. `limit` is the time limit of each command.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] (no QEMU listens), [`Error::TimedOut`] (QEMU serves another client), [`Error::NotQmp`], and the others.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Connect {
            path: path.to_owned(),
            source,
        };
        match socket::connect(path, limit) {
            Ok(socket) => Self::new(socket, limit),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::TimedOut {
                what: "the connection".to_owned(),
                limit,
            }),
            Err(error) => Err(failed(error)),
        }
    }

    /// As [`connect`](Self::connect), to a QEMU that is being started: retries for up to `timeout` while nothing listens.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn connect_retry(path: &Path, limit: Duration, timeout: Duration) -> Result<Self, Error> {
        const RETRY_INTERVAL: Duration = Duration::from_millis(20);
        let until = Instant::now() + timeout;
        loop {
            match Self::connect(path, limit) {
                Err(Error::Connect { .. }) if Instant::now() < until => thread::sleep(RETRY_INTERVAL),
                other => return other,
            }
        }
    }

    pub(crate) fn new(socket: UnixStream, limit: Duration) -> Result<Self, Error> {
        let mut qmp = Self {
            socket,
            limit,
            last_id: 0,
            lines: Lines::new(MAX_LINE),
            events: VecDeque::new(),
        };
        qmp.socket.set_write_timeout(Some(limit)).map_err(Error::Io)?;
        // A QEMU that has another client sends its greeting when that client has left.
        let greeting = qmp.line("the connection", Instant::now() + limit)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::NotQmp(greeting.to_string()));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The process ID of the QEMU that listens at the socket (`SO_PEERCRED`).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the error of `getsockopt(2)`.
    pub fn peer_pid(&self) -> Result<i32, Error> {
        let peer = rustix::net::sockopt::socket_peercred(&self.socket);
        let peer = peer.map_err(|error| Error::Io(error.into()))?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Executes a command, and returns its result.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::TimedOut`], or the connection is lost.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.begin(command, arguments)?;
        self.reply(command)
    }

    /// Sends a command, whose result [`result`](Self::result) waits for.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub fn begin(&mut self, command: &str, arguments: Value) -> Result<(), Error> {
        let line = self.command(command, &arguments);
        self.socket.write_all(line.as_bytes()).map_err(io_error)
    }

    /// The result of the latest command; `None` if it has not arrived by `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], or the connection is lost.
    pub fn result(&mut self, command: &str, deadline: Instant) -> Result<Option<Value>, Error> {
        match self.reply_by(command, deadline) {
            Err(Error::TimedOut { .. }) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Sends QEMU an open file (`getfd`), which commands can name as `fd:NAME` from then on. QEMU closes an earlier file of that name.
    ///
    /// # Errors
    ///
    /// As for [`execute`](Self::execute).
    pub fn send_fd(&mut self, name: &str, file: impl AsFd) -> Result<(), Error> {
        self.execute_with_fd("getfd", &json!({"fdname": name}), file).map(drop)
    }

    /// Sends QEMU an open file (`add-fd`). Returns the number of its set, for `remove-fd`, and that of the descriptor in QEMU.
    ///
    /// # Errors
    ///
    /// As for [`execute`](Self::execute).
    pub fn add_fd(&mut self, file: impl AsFd) -> Result<(u64, u64), Error> {
        let added = self.execute_with_fd("add-fd", &json!({}), file)?;
        let number = |field: &'static str| {
            let number = added.get(field).and_then(Value::as_u64);
            number.ok_or(Error::Reply {
                command: "add-fd",
                field,
            })
        };
        Ok((number("fdset-id")?, number("fd")?))
    }

    fn execute_with_fd(&mut self, command: &str, arguments: &Value, file: impl AsFd) -> Result<Value, Error> {
        let line = self.command(command, arguments);
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        with.push(SendAncillaryMessage::ScmRights(&files));
        let piece = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(&self.socket, &piece, &mut with, SendFlags::NOSIGNAL).map_err(|error| io_error(error.into()))?;
        // The file travels with the first byte.
        let rest = line.as_bytes().get(sent..).unwrap_or_default();
        self.socket.write_all(rest).map_err(io_error)?;
        self.reply(command)
    }

    /// Encodes the next command as a line.
    fn command(&mut self, command: &str, arguments: &Value) -> String {
        self.last_id += 1;
        let line = json!({"execute": command, "arguments": arguments, "id": self.last_id});
        format!("{line}\n")
    }

    /// Waits for the result of the latest command.
    fn reply(&mut self, command: &str) -> Result<Value, Error> {
        self.reply_by(command, Instant::now() + self.limit)
    }

    fn reply_by(&mut self, command: &str, deadline: Instant) -> Result<Value, Error> {
        loop {
            let mut line = self.line(command, deadline)?;
            if line.get("id").is_some_and(|id| *id != json!(self.last_id)) {
                // A late reply to a command that timed out.
                continue;
            }
            if let Some(reply) = line.get_mut("return") {
                return Ok(reply.take());
            }
            if let Some(error) = line.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(Error::Refused {
                    command: command.to_owned(),
                    reason: reason.to_owned(),
                });
            }
            self.queue_event(line)?;
        }
    }

    /// Takes the oldest event that is queued, or waits for one until `deadline`; `None` if none has arrived by then.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub fn next_event(&mut self, deadline: Instant) -> Result<Option<Event>, Error> {
        while self.events.is_empty() {
            match self.line("an event", deadline) {
                // A late reply to a command that timed out.
                Ok(line) if line.get("return").is_some() || line.get("error").is_some() => {}
                Ok(line) => self.queue_event(line)?,
                Err(Error::TimedOut { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    fn queue_event(&mut self, mut line: Value) -> Result<(), Error> {
        let Some(name) = line.get("event").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Error::NotQmp(line.to_string()));
        };
        let data = line.get_mut("data").map_or(Value::Null, Value::take);
        let time = line.get("timestamp").and_then(timestamp);
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { name, data, time });
        Ok(())
    }

    /// Reads the next message. One that is incomplete at the deadline is kept for the next call.
    fn line(&mut self, what: &str, deadline: Instant) -> Result<Value, Error> {
        let began = Instant::now();
        let line = self.lines.next(&self.socket, deadline)?.ok_or_else(|| Error::TimedOut {
            what: what.to_owned(),
            limit: began.elapsed(),
        })?;
        serde_json::from_slice(&line).map_err(|_| Error::NotQmp(String::from_utf8_lossy(&line).trim().to_owned()))
    }
}

/// The time of an event. QEMU writes -1 for a part that it does not know.
fn timestamp(timestamp: &Value) -> Option<Duration> {
    let part = |name: &str| timestamp.get(name)?.as_u64();
    Some(Duration::from_secs(part("seconds")?) + Duration::from_micros(part("microseconds")?.min(999_999)))
}

fn io_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::Io(error),
    }
}

#[cfg(test)]
pub(crate) mod tests;
