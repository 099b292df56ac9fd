// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest agent of QEMU (`qemu-ga`), which runs in the guest and answers through a socket of QEMU. QEMU's `docs/interop/qemu-ga-ref`
//! describes the commands.
//!
//! The guest decides what arrives here: every wait has a limit, and so has the length of an answer.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::Error as LinesError;
use crate::lines::Lines;
use crate::socket;

/// The byte before the answer to `guest-sync-delimited`, and the one that resets the parser of the agent. No JSON has it.
const DELIMITER: u8 = 0xff;

/// The longest answer accepted, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// How long an agent may take to say that it is there, for a client that can do without it. One that is not too busy needs some milliseconds.
pub const PRESENCE: Duration = Duration::from_secs(3);

/// Something could not be done with a guest agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot connect to the socket of the guest agent at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of `connect(2)`.
        #[source]
        source: io::Error,
    },
    /// Nothing answers in the guest, or another client has the socket.
    #[error(
        "no guest agent answers within {} s: it does not run in the guest, or another client (such as libvirt) uses its socket", .0.as_secs_f32()
    )]
    Absent(Duration),
    /// The agent answered before, and does not answer this command. It may execute it later.
    #[error("the guest agent has not answered {command} within {} s", limit.as_secs_f32())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The agent refuses the command, and has not executed it.
    #[error("the guest agent refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its description of the error.
        reason: String,
    },
    /// The answer is none of the protocol.
    #[error("the guest agent answers {command} with something else than a result")]
    Answer {
        /// The command.
        command: &'static str,
    },
    /// QEMU closed the socket, or it failed.
    #[error("the socket of the guest agent failed")]
    Io(#[source] io::Error),
}

/// A connection to an agent that has answered.
#[derive(Debug)]
pub struct Agent {
    socket: UnixStream,
    lines: Lines,
    limit: Duration,
    /// How long it may take to say that it is there.
    presence: Duration,
    last_id: u64,
    /// A command has no answer yet: the next answer may be that.
    is_behind: bool,
}

impl Agent {
    /// Connects to QEMU's socket for the agent, and waits until the agent answers, for `presence` at most ([`PRESENCE`]; `limit` if the agent
    /// must be there). `limit` is the time limit of each command.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Absent`], [`Error::Io`].
    pub fn connect(path: &Path, presence: Duration, limit: Duration) -> Result<Self, Error> {
        let presence = presence.min(limit);
        let socket = socket::connect(path, presence).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Error::Absent(presence),
            _ => Error::Connect {
                path: path.to_owned(),
                source,
            },
        })?;
        Self::new(socket, presence, limit)
    }

    fn new(socket: UnixStream, presence: Duration, limit: Duration) -> Result<Self, Error> {
        socket.set_write_timeout(Some(limit)).map_err(Error::Io)?;
        // An agent keeps what it was asked before this guest was saved, or by another client. A time is no earlier number.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut agent = Self {
            socket,
            lines: Lines::new(MAX_ANSWER),
            limit,
            presence,
            last_id: now.as_micros() as u64 & (u64::MAX >> 12),
            is_behind: true,
        };
        agent.sync()?;
        Ok(agent)
    }

    /// Waits until the agent has answered everything before, and drops those answers.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Io`].
    pub fn sync(&mut self) -> Result<(), Error> {
        let limit = self.presence;
        let until = Instant::now() + limit;
        self.last_id += 1;
        let id = self.last_id;
        let command = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let mut bytes = vec![DELIMITER];
        bytes.extend_from_slice(format!("{command}\n").as_bytes());
        self.write(&bytes, limit)?;
        // A guest that sends line after line must not extend the deadline.
        while let Some(line) = self.line(until)?.filter(|_| Instant::now() < until) {
            let Some(at) = line.iter().rposition(|byte| *byte == DELIMITER) else {
                continue;
            };
            let answer: Value = serde_json::from_slice(line.get(at + 1..).unwrap_or_default()).unwrap_or_default();
            if answer.get("return") == Some(&json!(id)) {
                self.is_behind = false;
                return Ok(());
            }
        }
        Err(Error::Absent(limit))
    }

    /// Freezes the guest's file systems: what programs have written before is on the disks, and what they write waits. Returns how many.
    ///
    /// # Errors
    ///
    /// After [`Error::Refused`], none is frozen by this. After the others, they may be, now or later: see [`thaw`](Self::thaw).
    pub fn freeze(&mut self) -> Result<u64, Error> {
        self.count("guest-fsfreeze-freeze")
    }

    /// Thaws the guest's file systems, also if [`freeze`](Self::freeze) got no answer: the agent executes one command after the other.
    /// Returns how many.
    ///
    /// # Errors
    ///
    /// They may be frozen still.
    pub fn thaw(&mut self) -> Result<u64, Error> {
        self.count("guest-fsfreeze-thaw")
    }

    /// Sets the guest's clock to this time since 1970.
    ///
    /// # Errors
    ///
    /// It may not be set.
    pub fn set_time(&mut self, time: Duration) -> Result<(), Error> {
        let nanoseconds = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        self.execute("guest-set-time", &json!({"time": nanoseconds})).map(drop)
    }

    fn count(&mut self, command: &'static str) -> Result<u64, Error> {
        let answer = self.execute(command, &json!({}))?;
        answer.as_u64().ok_or(Error::Answer { command })
    }

    fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<Value, Error> {
        if self.is_behind {
            self.sync()?;
        }
        let limit = self.limit;
        let until = Instant::now() + limit;
        self.is_behind = true;
        let line = json!({"execute": command, "arguments": arguments});
        self.write(format!("{line}\n").as_bytes(), limit)?;
        let line = self.line(until)?.ok_or(Error::TimedOut { command, limit })?;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|_| Error::Answer { command })?;
        if let Some(result) = answer.get_mut("return") {
            self.is_behind = false;
            return Ok(result.take());
        }
        let error = answer.get("error").ok_or(Error::Answer { command })?;
        self.is_behind = false;
        let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
        // The guest has written this, and it gets to the operator's terminal.
        let reason = reason.chars().take(200).collect::<String>().escape_debug().to_string();
        Err(Error::Refused { command, reason })
    }

    fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Error> {
        self.socket.write_all(bytes).map_err(|error| match error.kind() {
            // Nobody in the guest reads.
            io::ErrorKind::WouldBlock => Error::Absent(limit),
            _ => Error::Io(error),
        })
    }

    /// The next line; `None` if no whole line has arrived until then.
    fn line(&mut self, until: Instant) -> Result<Option<Vec<u8>>, Error> {
        loop {
            match self.lines.next(&self.socket, until) {
                Ok(line) => return Ok(line),
                // It is none of an agent.
                Err(LinesError::TooLong(_)) if Instant::now() < until => {}
                Err(LinesError::TooLong(_)) => return Ok(None),
                Err(LinesError::Io(error)) => return Err(Error::Io(error)),
                Err(_) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread::{self, JoinHandle};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    /// An agent that answers each command with what `answer` says; the commands that it got.
    fn agent(answer: impl Fn(&Value) -> Vec<u8> + Send + 'static) -> (UnixStream, JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let thread = thread::spawn(move || {
            let mut commands = Vec::new();
            let mut reader = BufReader::new(theirs.try_clone().expect("a socket"));
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text: Vec<u8> = line.drain(..).filter(|byte| *byte != DELIMITER).collect();
                let command: Value = serde_json::from_slice(&text).expect("a command");
                commands.push(command["execute"].as_str().expect("a name").to_owned());
                if (&theirs).write_all(&answer(&command)).is_err() {
                    break;
                }
            }
            commands
        });
        (ours, thread)
    }

    fn synced(command: &Value) -> Vec<u8> {
        let answer = json!({"return": command["arguments"]["id"]});
        [&[DELIMITER][..], answer.to_string().as_bytes(), b"\n"].concat()
    }

    fn is_sync(command: &Value) -> bool {
        command["execute"] == json!("guest-sync-delimited")
    }

    #[test]
    fn file_systems_are_frozen_and_thawed_and_the_clock_is_set() {
        let (socket, thread) = agent(|command| match command["execute"].as_str() {
            Some("guest-set-time") => {
                assert_eq!(command["arguments"]["time"], json!(1_500_000_000u64));
                b"{\"return\": {}}\n".to_vec()
            }
            Some("guest-sync-delimited") => synced(command),
            _ => b"{\"return\": 3}\n".to_vec(),
        });
        let mut agent = Agent::new(socket, LIMIT, LIMIT).expect("an agent");
        assert_eq!(agent.freeze().expect("frozen"), 3);
        assert_eq!(agent.thaw().expect("thawed"), 3);
        agent.set_time(Duration::from_millis(1500)).expect("a clock");
        drop(agent);
        let commands = thread.join().expect("no panic");
        let expected = [
            "guest-sync-delimited",
            "guest-fsfreeze-freeze",
            "guest-fsfreeze-thaw",
            "guest-set-time",
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn answers_to_what_others_have_asked_are_dropped() {
        let (socket, _thread) = agent(|command| {
            let late = b"{\"return\": 9}\nhalf an ans\xff{\"return\": 7}\n{\"ret";
            [&late[..], &synced(command)].concat()
        });
        Agent::new(socket, LIMIT, LIMIT).expect("an agent");
    }

    #[test]
    fn agent_that_does_not_answer_is_given_up() {
        for silent in [&b""[..], b"x", b"{\"return\": 1}\n", b"\xff{\"return\": 1}\n"] {
            let (socket, _thread) = agent(move |_| silent.to_vec());
            let began = Instant::now();
            let error = Agent::new(socket, LIMIT, LIMIT).expect_err("no agent");
            assert!(matches!(error, Error::Absent(_)), "{error}");
            assert!(began.elapsed() < Duration::from_secs(2));
        }
    }

    #[test]
    fn agent_may_take_its_time_to_say_that_it_is_there_and_no_longer() {
        let late = |command: &Value| {
            thread::sleep(LIMIT);
            synced(command)
        };
        let (socket, _thread) = agent(late);
        Agent::new(socket, 10 * LIMIT, 10 * LIMIT).expect("an agent");
        let (socket, _thread) = agent(late);
        let error = Agent::new(socket, LIMIT / 3, 10 * LIMIT).expect_err("too late");
        assert!(matches!(error, Error::Absent(limit) if limit == LIMIT / 3), "{error}");
    }

    #[test]
    fn guest_that_sends_without_end_is_given_up() {
        for sent in [vec![b'x'; 1 << 16], b"{}\n".repeat(1 << 14)] {
            let (ours, mut theirs) = UnixStream::pair().expect("sockets");
            let thread = thread::spawn(move || while theirs.write_all(&sent).is_ok() {});
            let error = Agent::new(ours, LIMIT, LIMIT).expect_err("no agent");
            assert!(matches!(error, Error::Absent(_)), "{error}");
            thread.join().expect("no panic");
        }
    }

    #[test]
    fn late_answer_is_not_taken_for_that_of_the_next_command() {
        let (socket, thread) = agent(|command| match command["execute"].as_str() {
            Some("guest-fsfreeze-freeze") => {
                thread::sleep(LIMIT + Duration::from_millis(150));
                b"{\"return\": 3}\n".to_vec()
            }
            Some("guest-fsfreeze-thaw") => b"{\"return\": 4}\n".to_vec(),
            _ => synced(command),
        });
        let mut agent = Agent::new(socket, LIMIT, LIMIT).expect("an agent");
        let error = agent.freeze().expect_err("late");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert_eq!(agent.thaw().expect("thawed"), 4);
        drop(agent);
        let commands = thread.join().expect("no panic");
        assert_eq!(commands.iter().filter(|name| *name == "guest-sync-delimited").count(), 2);
    }

    #[test]
    fn refusal_is_an_error_without_control_characters() {
        let (socket, _thread) = agent(|command| {
            if is_sync(command) {
                return synced(command);
            }
            format!(
                "{}\n",
                json!({"error": {"class": "x", "desc": format!("no \u{1b}[2J{}", "y".repeat(1000))}})
            )
            .into_bytes()
        });
        let mut agent = Agent::new(socket, LIMIT, LIMIT).expect("an agent");
        let error = agent.freeze().expect_err("a refusal").to_string();
        assert!(
            error.starts_with("the guest agent refuses guest-fsfreeze-freeze: no \\u{1b}[2J"),
            "{error}"
        );
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn answer_of_another_form_is_an_error() {
        for odd in [&b"7\n"[..], b"{\"return\": \"x\"}\n", b"no json\n", b"{}\n"] {
            let (socket, _thread) = agent(move |command| if is_sync(command) { synced(command) } else { odd.to_vec() });
            let mut agent = Agent::new(socket, LIMIT, LIMIT).expect("an agent");
            assert!(matches!(agent.freeze(), Err(Error::Answer { .. })));
        }
    }
}
